"""The one exception type that means "the input is at fault, not the program"."""


class UserError(Exception):
    """Bad input, told in one line: what is wrong, where, and the remedy.

    Commands print the message without a traceback and exit with status 2.
    """
