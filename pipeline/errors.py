"""Errors of jobs, and how errors are shown to people."""

from pez.errors import UserError


class OutputError(RuntimeError):
    """A file cannot be written to the output folder: full, read-only, or an object store that keeps failing."""


def one_line(error: BaseException | None) -> str:
    """The message of an error in one line; the name of its class if it has no message."""
    if isinstance(error, UserError):  # one line already, with names unchanged
        return str(error)
    return " ".join(str(error).split())[:500] or type(error).__name__
