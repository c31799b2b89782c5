"""Where a round's time goes: a round in step, with a wait between drafting and verifying.

Nothing overlaps in step. The launch of its kernels counts to each part; the rest of a round is the
host's work between two of them.
"""

from __future__ import annotations

import time
from itertools import pairwise
from statistics import median
from typing import Any, NamedTuple

import mlx.core as mx

from mlx_gemma_mtp import device
from mlx_gemma_mtp.decode.round import Draft, Newest, PlayRound, Round, draft, verify
from mlx_gemma_mtp.decode.sampling import RowSettings
from mlx_gemma_mtp.model.cache import Buffers, KVCache
from mlx_gemma_mtp.model.drafter import Drafter
from mlx_gemma_mtp.model.target import Target


class Times(NamedTuple):
    """When a round started, had drafted and had verified, in seconds."""

    start: float
    drafted: float
    verified: float


class Stopwatch:
    """Plays rounds in step and keeps their times."""

    def __init__(self) -> None:
        self.rounds: list[Times] = []

    def split(self, last: int) -> dict[str, Any]:
        """The medians of the last rounds, at least two, by the names in a case."""
        rounds = self.rounds[-last - 1 :]
        return {
            "draft_ms": 1e3 * median(one.drafted - one.start for one in rounds),
            "verify_ms": 1e3 * median(one.verified - one.drafted for one in rounds),
            "host_ms": 1e3 * median(b.start - a.verified for a, b in pairwise(rounds)),
        }

    def player(self, target: Target, drafter: Drafter | None, *, draft: Draft = draft) -> PlayRound:
        """Like `round_player`, but each half of a round is compiled, waited for and timed."""

        def guess(
            buffers: Buffers, newest: Newest, settings: RowSettings, num_draft_tokens: int
        ) -> mx.array:
            cache = KVCache(target.config, buffers)
            return draft(target, drafter, cache, newest, settings, num_draft_tokens)

        def check(
            buffers: Buffers,
            newest: Newest,
            settings: RowSettings,
            max_accepted: mx.array,
            drafts: mx.array,
        ) -> tuple[Round, Buffers]:
            cache = KVCache(target.config, buffers)
            played = verify(target, cache, newest, settings, max_accepted, drafts)
            return played, cache.buffers

        if device.backend() != "cpu":
            guess, check = mx.compile(guess), mx.compile(check)

        def play_round(
            cache: KVCache,
            newest: Newest,
            settings: RowSettings,
            max_accepted: mx.array,
            num_draft_tokens: int,
        ) -> Round:
            mx.eval(max_accepted, newest, cache.offset)  # recomputed when a row joins or leaves
            start = time.perf_counter()
            drafts = guess(cache.buffers, newest, settings, num_draft_tokens)
            mx.eval(drafts)
            drafted = time.perf_counter()
            played, cache.buffers = check(cache.buffers, newest, settings, max_accepted, drafts)
            mx.eval(played, cache.buffers)
            self.rounds.append(Times(start, drafted, time.perf_counter()))
            return played

        return play_round
