"""`python -m jobs` is `pez`."""

from jobs.main import main

main()
