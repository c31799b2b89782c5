"""What an engine is doing, in numbers. Knows nothing of how it is counted."""

from __future__ import annotations

from typing import NamedTuple


class Status(NamedTuple):
    """Requests of an engine by what they do, the memory of this process, and cached prefixes.

    waiting: not started. reading: their prompts are being read. decoding: they have tokens.
    memory_bytes: what MLX holds, the weights and caches of all engines of the process; of an
    isolated engine, of its worker process. prefix_bytes: the part of it that `prefix_cache` takes.
    prefix_hits: requests that found a prefix there, since the load. prefix_tokens: the tokens that
    they did not have to prefill.
    """

    waiting: int = 0
    reading: int = 0
    decoding: int = 0
    memory_bytes: int = 0
    prefix_bytes: int = 0
    prefix_hits: int = 0
    prefix_tokens: int = 0
