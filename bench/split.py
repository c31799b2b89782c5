"""Where a round's time goes: a round in step, with a wait between drafting and verifying.

Nothing overlaps in step. The launch of its kernels counts to each part; the rest of a round is the
host's work between two of them.
"""

from __future__ import annotations

import time
from itertools import pairwise
from statistics import median
from typing import Any

import mlx.core as mx

from mlx_gemma_mtp import device
from mlx_gemma_mtp.decode.round import Draft, PlayRound, Round, draft, verify
from mlx_gemma_mtp.model.cache import Buffers, KVCache
from mlx_gemma_mtp.model.drafter import Drafter
from mlx_gemma_mtp.model.target import Target


class Stopwatch:
    """Plays rounds in step. rounds: when each started, had drafted and had verified, in seconds."""

    def __init__(self) -> None:
        self.rounds: list[tuple[float, float, float]] = []

    def split(self, last: int) -> dict[str, Any]:
        """The medians of the last rounds, at least two, by the names in a case."""
        rounds = self.rounds[-last - 1 :]
        return {
            "draft_ms": 1e3 * median(drafted - start for start, drafted, _ in rounds),
            "verify_ms": 1e3 * median(verified - drafted for _, drafted, verified in rounds),
            "host_ms": 1e3 * median(after[0] - before[2] for before, after in pairwise(rounds)),
        }

    def player(self, target: Target, drafter: Drafter | None, *, draft: Draft = draft) -> PlayRound:
        """Like `round_player`, but each half of a round is compiled, waited for and timed."""

        def guess(buffers: Buffers, *rest: Any) -> mx.array:
            return draft(target, drafter, KVCache(target.config, buffers), *rest)

        def check(buffers: Buffers, *rest: Any) -> tuple[Round, Buffers]:
            cache = KVCache(target.config, buffers)
            return verify(target, cache, *rest), cache.buffers

        if device.backend() != "cpu":
            guess, check = mx.compile(guess), mx.compile(check)

        def play_round(cache: KVCache, *rest: Any) -> Round:
            newest, settings, max_accepted, num_draft_tokens = rest
            mx.eval(max_accepted, newest, cache.offset)  # recomputed when a row joins or leaves
            start = time.perf_counter()
            drafts = guess(cache.buffers, newest, settings, num_draft_tokens)
            mx.eval(drafts)
            drafted = time.perf_counter()
            played, cache.buffers = check(cache.buffers, newest, settings, max_accepted, drafts)
            mx.eval(played, cache.buffers)
            self.rounds.append((start, drafted, time.perf_counter()))
            return played

        return play_round
