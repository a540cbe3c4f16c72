"""Text-to-image models on disk: their files and parts."""
