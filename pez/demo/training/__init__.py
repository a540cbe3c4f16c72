"""Training of the shipped demo models: `python -m jobs.train_demo`, with the extra demo-training."""
