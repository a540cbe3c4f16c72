"""From the input that a user names to items: units of work, streams, decoding."""
