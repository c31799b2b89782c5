"""What an engine is and does, in plain values for another process. Knows no arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from mlx_gemma_mtp.engine.status import Status
from mlx_gemma_mtp.memory import Pair


class About(NamedTuple):
    """What an engine says of itself, and what the checks of its prompts need.

    folder: of its tokenizer; None without one. pair: the sizes of its models. defaults: the
    checkpoint's generation_config, see `defaults`. identity: see `model_identity`. max_batch: the
    most rows. memory_limit: bytes that it may take; None for any. The others as of `Engine`.
    """

    folder: Path | None
    pair: Pair
    defaults: dict[str, Any]
    identity: str
    max_batch: int
    notes: tuple[str, ...]
    name: str | None
    drafter_name: str | None
    memory_limit: int | None


class State(NamedTuple):
    """What an engine in another process is doing, next to what the requests show.

    status: of that engine, whose queue holds only what was sent to it. available: bytes that MLX
    may hold there. The others as of `Engine`.
    """

    status: Status = Status()
    available: int = 0
    plain_tokens_per_second: float | None = None
    warming: bool = False
    loaded: bool = True
