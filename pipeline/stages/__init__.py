"""What to do with a unit of work: learn prompts, verify them."""
