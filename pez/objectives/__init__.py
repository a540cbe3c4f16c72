"""Objectives: what prompts are scored by."""
