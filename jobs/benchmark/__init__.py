"""`pez benchmark`: speed, quality against time, and overhead of the pipeline."""

from jobs.benchmark.job import main as main
