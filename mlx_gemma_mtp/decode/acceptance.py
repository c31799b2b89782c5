"""How often drafts are accepted, by position, and the chances that the first ones all are.

Counts only: knows nothing of the device, of time, or of why a draft was accepted.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from operator import mul
from typing import Any

from mlx_gemma_mtp.decode.params import MAX_DRAFT_TOKENS

ROW_MEMORY = 40  # verified drafts of a row after which one counts at most 1/e
SURPRISE = 0.3  # share of that memory which a draft against all expectation erases: texts change
POOL_MEMORY = 256  # verified drafts of all rows after which one counts 1/e
DOUBTFUL = 6.0  # verified drafts that the pool's rate is worth to a new row, or an old rate
FIRST_RATE = 0.6  # before anything was verified


@dataclass
class _Rate:
    """How often the draft at one position is accepted if those before it are."""

    mean: float = 0.0  # with exponential forgetting
    weight: float = 0.0  # verified drafts that the mean is worth,
    prior_weight: float = DOUBTFUL  # and those that the prior is still worth


class Acceptance:
    """The chances of drafts to be accepted: of one row, or of all rows together (without `pool`).

    A row starts from the pool's rates; the pool's deeper positions start from the rate before
    them.
    """

    def __init__(self, pool: Acceptance | None = None) -> None:
        self._pool = pool
        self._keep = 1 - 1 / (POOL_MEMORY if pool is None else ROW_MEMORY)
        self._at = [_Rate() for _ in range(MAX_DRAFT_TOKENS)]
        self._reached: list[float] | None = None  # until more is seen

    def seen(self, drafted: int, accepted: int) -> None:
        """Record a round that verified `drafted` tokens of this row and accepted `accepted`."""
        for i, at in enumerate(self._at[: min(accepted + 1, drafted)]):
            surprise = (i < accepted) - at.mean
            keep = self._keep if self._pool is None else self._keep - SURPRISE * surprise**4
            at.weight = at.weight * keep + 1
            at.mean += surprise / at.weight
            at.prior_weight *= self._keep
        if self._pool is not None:
            for at in self._at[drafted:]:  # an untried rate gives way soon
                at.weight = max(at.weight * self._keep, min(at.weight, DOUBTFUL))
            self._pool.seen(drafted, accepted)
        self._reached = None

    @property
    def verified(self) -> float:
        """How many first drafts of a round were verified, as far as they are not forgotten."""
        return self._at[0].weight

    @property
    def rates(self) -> list[float]:
        """The chance of each draft to be accepted if those before it are."""
        priors = None if self._pool is None else self._pool.rates
        rate, rates = FIRST_RATE, []
        for i, at in enumerate(self._at):
            prior = rate if priors is None else priors[i]
            rate = at.weight * at.mean + at.prior_weight * prior
            rate /= at.weight + at.prior_weight
            rates.append(rate)
        return rates

    @property
    def reached(self) -> list[float]:
        """The chances that the first 1, 2, … drafts are all accepted."""
        if self._reached is None:
            self._reached = list(accumulate(self.rates, mul))
        return self._reached

    @classmethod
    def from_json(cls, rates: Any) -> Acceptance:
        """Return a pool that believes the `rates` of an earlier one until rows show others.

        Raises ValueError or TypeError for anything else.
        """
        pool = cls()
        for at, rate in zip(pool._at, rates, strict=False):
            if not 0 <= rate <= 1:
                raise ValueError(f"{rate} is not a rate")
            at.mean, at.weight, at.prior_weight = float(rate), float(ROW_MEMORY), 0.0
        return pool
