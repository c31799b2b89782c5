"""Where a round's time goes: the same round with a wait between drafting and verifying.

Played in step, nothing overlaps. Each part holds the launching of its own kernels; what is left of
a round is the host's work between two of them. Knows nothing of prompts or of what is printed.
"""

from __future__ import annotations

import statistics
import time
from itertools import pairwise
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn

from mlx_gemma_mtp.decode.round import Newest, PlayRound, Round, draft, verify
from mlx_gemma_mtp.decode.sampling import RowSettings
from mlx_gemma_mtp.model.cache import Buffers, KVCache, SharedKV
from mlx_gemma_mtp.model.config import LayerKind
from mlx_gemma_mtp.model.drafter import Drafter
from mlx_gemma_mtp.model.target import Target

from .record import Split


class _Times(NamedTuple):
    """Of one round, in seconds; begun is when."""

    begun: float
    draft: float
    verify: float


class Stopwatch:
    """The rounds that a player of `in_step` has played."""

    def __init__(self) -> None:
        self._rounds: list[_Times] = []

    def add(self, begun: float, drafted: float, verified: float) -> None:
        """A round: when it began, was drafted and was verified."""
        self._rounds.append(_Times(begun, drafted - begun, verified - drafted))

    def clear(self) -> None:
        """Begin anew."""
        self._rounds.clear()

    def split(self, last: int) -> Split:
        """The medians of the last rounds, of which there must be two at least."""
        rounds = self._rounds[-last - 1 :]
        ends = [after.begun - one.begun for one, after in pairwise(rounds)]
        of = rounds[:-1]
        host = [end - one.draft - one.verify for end, one in zip(ends, of, strict=True)]
        return Split(
            statistics.median(one.draft for one in of) * 1e3,
            statistics.median(one.verify for one in of) * 1e3,
            statistics.median(host) * 1e3,
        )


def in_step(target: Target, drafter: Drafter | None, stopwatch: Stopwatch) -> PlayRound:
    """As `speculate.round_player`, but each half of a round is compiled, waited for and timed."""

    def guess(
        num_draft_tokens: int,
        settings: RowSettings,
        head: Newest,
        offset: mx.array,
        keys: list[mx.array],
        values: list[mx.array],
    ) -> mx.array:
        cache = KVCache(target.config, Buffers(offset, keys, values))
        return draft(target, drafter, cache, head, settings, num_draft_tokens)

    def check(
        drafts: mx.array,
        settings: RowSettings,
        limit: mx.array,
        head: Newest,
        offset: mx.array,
        keys: list[mx.array],
        values: list[mx.array],
    ) -> tuple[Round, mx.array, list[mx.array], list[mx.array]]:
        cache = KVCache(target.config, Buffers(offset, keys, values))
        played = verify(target, cache, head, settings, limit, drafts)
        return played, cache.offset, cache.keys, cache.values

    if mx.default_device() == mx.Device(mx.gpu):
        guess, check = mx.compile(guess), mx.compile(check)

    def play_round(
        cache: KVCache, head: Newest, settings: RowSettings, limit: mx.array, num_draft_tokens: int
    ) -> Round:
        mx.eval(limit, head, cache.offset)  # laid out anew where a row came or went
        begun = time.perf_counter()
        drafts = guess(num_draft_tokens, settings, head, cache.offset, cache.keys, cache.values)
        mx.eval(drafts)
        drafted = time.perf_counter()
        played, cache.offset, cache.keys, cache.values = check(
            drafts, settings, limit, head, cache.offset, cache.keys, cache.values
        )
        mx.eval(played, cache.offset, cache.keys, cache.values)
        stopwatch.add(begun, drafted, time.perf_counter())
        return played

    return play_round


class SlowDrafter(Drafter):
    """A drafter that does each step several times and gives the same: to test what is measured."""

    def __init__(self, drafter: Drafter, times: int) -> None:
        """Shares the drafter's modules."""
        nn.Module.__init__(self)
        dict.update(self, drafter)
        self.config = drafter.config
        self._times = times

    def __call__(
        self,
        embedding: mx.array,
        hidden: mx.array,
        memory: dict[LayerKind, SharedKV],
        position: mx.array,
    ) -> tuple[mx.array, mx.array]:
        """As a drafter's. A repetition depends on the one before, so that none falls away."""
        for _ in range(self._times - 1):
            _, again = super().__call__(embedding, hidden, memory, position)
            hidden = hidden + 0 * again
        return super().__call__(embedding, hidden, memory, position)
