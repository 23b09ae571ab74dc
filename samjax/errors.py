"""The one exception for mistakes that the user can mend."""


class InputError(ValueError):
    """Bad input: a file, an argument or a setting. The message is one line: what is wrong, where, how to mend it.

    The command line prints the message alone and exits with status 2.
    """
