"""What a run measures, and what with.

Plain settings and what was made ready; knows nothing of turns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mlx.core as mx

from mlx_gemma_mtp import Engine, SamplingParams

from .drawn import Draws
from .floor import Floor
from .peer import Peer
from .record import Drafts
from .split import Stopwatch
from .workload import Row, Workload

WARM_UP = 4  # rounds before a window, where rounds are compiled; one elsewhere

Prompts = Callable[[int], list[Row]]  # wave by wave


@dataclass(frozen=True)
class Plan:
    """What to measure. tokens: of every row in a window. delay: seconds between two windows."""

    batches: Sequence[int]
    drafts: Sequence[Drafts]
    peer_drafts: Sequence[int]
    tokens: int
    repeat: int
    delay: float
    temperature: float
    endless: bool  # texts do not end: their model is noise, or peers beside us end none

    def params(self, drafts: Drafts) -> SamplingParams:
        """Of a text that is decoded until whoever times it ends it."""
        return SamplingParams(
            temperature=self.temperature, num_draft_tokens=drafts, ignore_eos=self.endless
        )


@dataclass(frozen=True)
class Bench:
    """What there is to measure with. in_step: a second engine, which splits rounds."""

    engine: Engine
    in_step: Engine
    stopwatch: Stopwatch
    workload: Workload
    floor: Floor
    peers: Sequence[Peer]
    draws: Draws | None  # of accepts, for a model that is noise


def compiled() -> bool:
    """Does this device play rounds that are compiled at their first use?"""
    return mx.default_device() == mx.Device(mx.gpu)


def warm_up_rounds() -> int:
    """Rounds before a window."""
    return WARM_UP if compiled() else 1
