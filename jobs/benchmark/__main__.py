"""Makes `python -m jobs.benchmark` the same as `pez benchmark`."""

from jobs.benchmark.job import main

main()
