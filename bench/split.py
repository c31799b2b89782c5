"""Where a round's time goes: a round in step, with a wait after each of its halves.

Nothing overlaps in step. The launch of its kernels counts to each half; the rest of a round is the
host's work.
"""

from __future__ import annotations

import time
from itertools import pairwise
from statistics import median
from typing import Any, NamedTuple

import mlx.core as mx

from mlx_gemma_mtp.decode.player import RoundPlayer, round_player
from mlx_gemma_mtp.decode.round import Newest, Round
from mlx_gemma_mtp.model.cache import KVCache
from mlx_gemma_mtp.model.drafter import Drafter
from mlx_gemma_mtp.model.target import Target


class Times(NamedTuple):
    """When a round started, and what its halves took, in seconds."""

    start: float
    draft: float
    verify: float


class Stopwatch:
    """Plays rounds in step, and keeps their times."""

    def __init__(self) -> None:
        self.rounds: list[Times] = []

    def split(self, last: int) -> dict[str, Any]:
        """The medians of the last rounds, at least two, by the names in a case."""
        rounds = self.rounds[-last - 1 :]
        others = [
            after.start - before.start - before.draft - before.verify
            for before, after in pairwise(rounds)
        ]
        return {
            "draft_ms": 1e3 * median(times.draft for times in rounds),
            "verify_ms": 1e3 * median(times.verify for times in rounds),
            "host_ms": 1e3 * median(others),
        }

    def player(self, target: Target, drafter: Drafter | None, **functions: Any) -> RoundPlayer:
        """Like `round_player`, but each half of a round is waited for and timed."""
        player = round_player(target, drafter, **functions)
        started = drafting = 0.0

        def draft(cache: KVCache, newest: Newest, *rest: Any) -> mx.array:
            nonlocal started, drafting
            mx.eval(newest, cache.offset)  # recomputed when a row joins or leaves
            started = time.perf_counter()
            drafts = player.draft(cache, newest, *rest)
            mx.eval(drafts)
            drafting = time.perf_counter() - started
            return drafts

        def verify(cache: KVCache, *rest: Any) -> Round:
            start = time.perf_counter()
            played = player.verify(cache, *rest)
            mx.eval(played, cache.buffers)
            self.rounds.append(Times(started, drafting, time.perf_counter() - start))
            return played

        return RoundPlayer(draft, verify)
