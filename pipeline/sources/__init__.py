"""From what a user names to items: units of work, streams, decoding."""
