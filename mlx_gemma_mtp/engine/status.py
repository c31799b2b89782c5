"""What an engine is doing, in numbers. Knows nothing of how it is counted."""

from __future__ import annotations

from typing import NamedTuple


class Status(NamedTuple):
    """Requests of an engine by what they do, and the memory that MLX holds in this process.

    waiting: not started. reading: their prompts are being read. decoding: they have tokens.
    memory_bytes: the weights and caches of all engines of the process; of an isolated engine, of
    its worker process.
    """

    waiting: int
    reading: int
    decoding: int
    memory_bytes: int
