"""Errors for people: each is one line that says what is wrong and names the way out.

The command line prints them without a traceback and exits with the `exit_code` of their class.
"""

from __future__ import annotations

import copy
import traceback

# In MLX's errors: "[malloc] Unable to allocate …", "[metal::malloc] Attempting to allocate …",
# "cudaMallocAsync(…) failed: out of memory", "Insufficient Memory". (On a CPU the process ends.)
OUT_OF_MEMORY = ("malloc", "out of memory", "insufficient memory")

INTERRUPTED = 130  # the exit code that shells give to Ctrl-C


class MgmError(Exception):
    """Base class of all errors that this package raises on purpose."""

    exit_code = 1


class UsageError(MgmError):
    """A setting, a prompt or an argument that is not valid."""

    exit_code = 2


class PromptTooLongError(UsageError):
    """A prompt that leaves no room for an answer in the context, or in memory."""


class ModelNotFoundError(MgmError):
    """No folder of this name, and no repository in the cache or on the Hub."""

    exit_code = 3


class CheckpointError(MgmError):
    """Files that are not a checkpoint this runtime can use."""


class NotEnoughMemoryError(MgmError):
    """Too little memory for this model, this prompt or a longer completion."""

    exit_code = 4


class VerificationError(MgmError):
    """A check that failed: of a file, a completion or a pair."""

    exit_code = 5


class QueueFullError(MgmError):
    """The engine's queue is full."""


class ClosedError(MgmError):
    """The engine was closed, or its process has ended."""


class LoadCancelledError(MgmError):
    """A load that its `cancel` event ended; nothing of it is left in memory."""


class WorkerDiedError(MgmError):
    """The worker process of an isolated engine ended while it was at work."""


class RequestTimeoutError(MgmError, TimeoutError):
    """A request took longer than its timeout."""


class SaveError(MgmError, OSError):
    """A file that cannot be written."""


class GenerationError(MgmError):
    """A failure on the device or in a callback, which is the `__cause__`."""


def one_line(error: BaseException) -> str:
    """Return an error's message as one line; the name of its type if it has no message."""
    return " ".join(str(error).split()) or type(error).__name__


def is_lack_of_memory(error: BaseException) -> bool:
    """True for Python's MemoryError, and for what MLX raises instead."""
    message = str(error).lower()
    return isinstance(error, MemoryError) or any(sign in message for sign in OUT_OF_MEMORY)


def as_failure(error: BaseException) -> MgmError:
    """Return the error to raise in the caller of a request, with this one as its cause."""
    if isinstance(error, MgmError):
        return copy.copy(error)  # raising writes into an error, and several threads may
    if error.__traceback__ is not None:
        # As text: the frames would keep models and buffers in memory while the error lives.
        frames = traceback.format_tb(error.__traceback__)
        error.add_note("".join(["In the engine's thread:\n", *frames]).rstrip())
        earlier: BaseException | None = error
        while earlier is not None:
            earlier.__traceback__, earlier = None, earlier.__cause__ or earlier.__context__
    message = f"{type(error).__name__}: {one_line(error)}"
    failure: MgmError = GenerationError(f"the request failed: {message}")
    if is_lack_of_memory(error):
        failure = NotEnoughMemoryError(
            f"not enough memory ({message}): shorten the request or load with a smaller max_batch"
        )
    failure.__cause__ = error
    return failure
