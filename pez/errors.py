"""The error that lies with the user; any other exception is a bug and shows its traceback."""


class UserError(ValueError):
    """Something the user gave is not usable.

    The message is one line that says what was found, what was expected and what to do. A command ends with status 2.
    """
