"""What can go wrong while a job writes."""


class OutputError(RuntimeError):
    """The output folder does not take a file: full, read-only, or an object store that keeps failing."""
