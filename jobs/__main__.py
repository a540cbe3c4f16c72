"""Makes `python -m jobs` the same as `pez`."""

from jobs.main import main

main()
