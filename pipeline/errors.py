"""What may go wrong for a reason that lies with the user or with a store; anything else is a bug and shows its traceback."""


class InputError(ValueError):
    """Something the user gave is not usable; the message is one line that says what was found and what to do."""


class OutputError(RuntimeError):
    """The output folder does not take a file: full, read-only, or an object store that keeps failing."""
