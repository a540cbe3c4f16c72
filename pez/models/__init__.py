"""Frozen CLIPs: loading by every kind of name, the image and text towers."""
