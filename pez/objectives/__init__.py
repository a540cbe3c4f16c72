"""What a prompt is scored by."""
