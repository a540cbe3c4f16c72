"""The error class for bad user input; any other exception is a bug and shows its traceback."""


class UserError(ValueError):
    """Invalid user input.

    The message is one line: what was found, what was expected and what to do. A command exits with status 2.
    """
