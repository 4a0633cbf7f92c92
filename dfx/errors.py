"""Errors that a user can mend."""


class UserError(Exception):
    """What the user gave cannot be used: the message is one line that names it and the way out.

    Not a ``ValueError``, which jsonargparse would take for a config that does not parse.
    """
