"""Ways of searching for a prompt."""
