"""Errors meant for people: each is one line that says what is wrong and names the way out.

The command line prints them without a traceback and leaves with the kind's `exit_code`.
"""


class MgmError(Exception):
    """Base of every error this package raises on purpose."""

    exit_code = 1


class UsageError(MgmError):
    """A setting, a prompt or an argument that cannot be honoured as given."""

    exit_code = 2


class ModelNotFoundError(MgmError):
    """No such folder, and no such repository in the cache or on the Hub."""

    exit_code = 3


class CheckpointError(MgmError):
    """The files are there, but they are not a checkpoint this runtime can use."""
