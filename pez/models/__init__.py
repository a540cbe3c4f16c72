"""Frozen CLIPs: loading by name, image and text towers."""
