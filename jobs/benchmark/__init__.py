"""`pez benchmark`: speed, quality for the time, and what the pipeline adds."""

from jobs.benchmark.job import main as main
