"""Errors meant for people: each is one line that says what is wrong and names the way out.

The command line prints them without a traceback and leaves with the kind's `exit_code`.
"""

from __future__ import annotations

import copy
import traceback

# What MLX's errors say where memory ran out: "[malloc] Unable to allocate …", "[metal::malloc]
# Attempting to allocate …", "cudaMallocAsync(…) failed: out of memory", "Insufficient Memory". (Its
# CPU backend ends the process instead.)
OUT_OF_MEMORY = ("malloc", "out of memory", "insufficient memory")


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


class NotEnoughMemoryError(MgmError):
    """The device has no room for this model, for this prompt, or for more of this text."""

    exit_code = 4


class VerificationError(MgmError):
    """What was checked is not what it should be: a file, a text, a pair."""

    exit_code = 5


class QueueFullError(MgmError):
    """As many requests wait as the engine was told to let wait."""


class GenerationError(MgmError):
    """A failure on the way, on the device or in a callback; `__cause__` tells which."""


def one_line(error: BaseException) -> str:
    """Return an error's message as one line; the name of its type if it has no message."""
    return " ".join(str(error).split()) or type(error).__name__


def as_failure(error: BaseException) -> MgmError:
    """What a caller is told whose request ended with this error, which becomes the cause."""
    if isinstance(error, MgmError):
        return copy.copy(error)  # to raise an error writes into it, and several threads may
    if error.__traceback__ is not None:
        # As text: the frames would keep models and buffers in memory as long as the error lives.
        frames = traceback.format_tb(error.__traceback__)
        error.add_note("".join(["In the engine's thread:\n", *frames]).rstrip())
        error.__traceback__ = None
    said = f"{type(error).__name__}: {one_line(error)}"
    failure: MgmError
    if isinstance(error, MemoryError) or any(sign in said.lower() for sign in OUT_OF_MEMORY):
        failure = NotEnoughMemoryError(
            f"not enough memory ({said}): shorten the request or load with a smaller max_batch"
        )
    else:
        failure = GenerationError(f"the request failed: {said}")
    failure.__cause__ = error
    return failure
