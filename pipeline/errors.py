"""Errors of writing."""


class OutputError(RuntimeError):
    """A file cannot be written to the output folder: full, read-only, or an object store that keeps failing."""
