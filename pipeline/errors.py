"""What can go wrong in a job, and errors as people read them."""

from pez.errors import UserError


class OutputError(RuntimeError):
    """The output folder does not take a file: full, read-only, or an object store that keeps failing."""


def one_line(error: BaseException | None) -> str:
    """What an error says, on one line; its class where it says nothing."""
    if isinstance(error, UserError):  # one line already, in which names stay as they are
        return str(error)
    return " ".join(str(error).split())[:500] or type(error).__name__
