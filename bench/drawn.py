"""Rounds of a random pair whose accepts are drawn, on all of the compute that real ones take.

A random drafter is never right. So every draft counts as right, up to a number per row that is
drawn at stated rates and comes in as the row's limit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from unittest.mock import patch

import mlx.core as mx

from mlx_gemma_mtp.decode import round as speculate
from mlx_gemma_mtp.decode.round import Newest, PlayRound, Round
from mlx_gemma_mtp.decode.sampling import RowSettings
from mlx_gemma_mtp.model.cache import KVCache
from mlx_gemma_mtp.model.experts import ExpertRouter

# Their square roots are irrational and unrelated: one sequence for each row.
PRIMES = (2, 3, 5, 7, 11, 13, 17, 19)


class Draws:
    """How many drafts each row accepts, round by round.

    rates: the chance of a draft to come true where those before it did, by position; the last one
    holds from there on. The draws are quasi-random (additive recurrence, as in Niederreiter 1992),
    so that already a few rounds come near the rates; rows are independent of each other.
    """

    def __init__(self, rates: Sequence[float]) -> None:
        self.rates = tuple(rates)
        self._round = 0

    def __call__(self, num_rows: int, num_drafts: int) -> list[int]:
        """The next round's accepts of each row."""
        self._round += 1
        reached = [self._reached(count + 1) for count in range(num_drafts)]
        points = [math.modf(self._round * math.sqrt(prime))[0] for prime in PRIMES[:num_rows]]
        return [sum(point < chance for chance in reached) for point in points]

    def expected_tokens(self, num_drafts: int) -> float:
        """Tokens that a round yields per row on average, the extra one included."""
        return 1 + sum(self._reached(count + 1) for count in range(num_drafts))

    def _reached(self, count: int) -> float:
        rates = [self.rates[min(i, len(self.rates) - 1)] for i in range(count)]
        return math.prod(rates)


def drawn(play_round: PlayRound, draws: Draws, shared_experts: int = 0) -> PlayRound:
    """These rounds with drawn accepts.

    play_round: must not have played any yet, for what it traces is changed. shared_experts: of the
    experts of each token, how many are those of the first token that its row has in the round; 0
    leaves the routing to the random router.
    """
    agreeing, route = speculate.agreeing_prefix, ExpertRouter.__call__

    def play(
        cache: KVCache, head: Newest, settings: RowSettings, limit: mx.array, num_draft_tokens: int
    ) -> Round:
        num_rows = len(limit)
        accepts = mx.array(draws(num_rows, num_draft_tokens), mx.int32)

        def all_agree(drafts: mx.array, chosen: mx.array) -> mx.array:
            return mx.maximum(agreeing(drafts, chosen), drafts.shape[1])

        def share(router: ExpertRouter, normed: mx.array) -> tuple[mx.array, mx.array]:
            experts, weights = route(router, normed)
            by_row = experts.reshape(num_rows, -1, experts.shape[1])
            own = by_row[..., shared_experts:]
            first = mx.broadcast_to(
                by_row[:, :1, :shared_experts], (*own.shape[:2], shared_experts)
            )
            return mx.concatenate([first, own], axis=-1).reshape(experts.shape), weights

        # Only what is traced for the first time looks at these.
        with (
            patch.object(speculate, "agreeing_prefix", all_agree),
            patch.object(ExpertRouter, "__call__", share if shared_experts else route),
        ):
            return play_round(cache, head, settings, mx.minimum(limit, accepts), num_draft_tokens)

    return play
