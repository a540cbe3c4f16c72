"""Outputs in the formats that trainers read."""
