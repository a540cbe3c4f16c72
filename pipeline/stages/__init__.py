"""What is done with a unit of work: learning prompts, verifying them."""
