"""How often drafts are accepted, by position, and how many tokens a round of K drafts yields.

Counts only: knows nothing of the device, of time, or of why a draft was accepted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mlx_gemma_mtp.decode.params import MAX_DRAFT_TOKENS

ROW_MEMORY = 40  # verified drafts, of a row and position, after which one counts 1/e
POOL_MEMORY = 256  # the same for all rows together
DOUBTFUL = 6.0  # verified drafts that a rate is worth if it is the pool's, or old
FIRST_RATE = 0.6  # before anything was verified

RECENT = 8  # verified drafts after which one counts 1/e in the short mean
CHANGE = 3.0  # standard deviations between short and long mean: the text has changed
LEAST_VARIANCE = 0.05  # of one draft, so that one surprise among certain drafts is not a change


@dataclass
class _Rate:
    """How often the draft at one position is accepted: a mean with exponential forgetting."""

    mean: float = 0.0
    weight: float = 0.0  # verified drafts that the mean is worth,
    prior_weight: float = DOUBTFUL  # and those that the prior is still worth
    recent: float = 0.0

    def add(self, accepted: bool, keep: float) -> None:
        if self.weight == 0:
            self.recent = float(accepted)
        self.recent += (accepted - self.recent) / RECENT
        self.weight = self.weight * keep + 1
        self.mean += (accepted - self.mean) / self.weight
        self.prior_weight *= keep

    @property
    def changed(self) -> bool:
        """True if the last few drafts differ clearly from the mean."""
        variance = max(self.mean * (1 - self.mean), LEAST_VARIANCE) / (2 * RECENT - 1)
        return (self.recent - self.mean) ** 2 > CHANGE**2 * variance


class Acceptance:
    """The chances of drafts to be accepted: of one row, or of all rows together (without `pool`).

    A draft counts only if those before it were accepted, so each position has its own conditional
    rate. A row starts from the pool's rates; the pool's deeper positions start from the rate
    before them.
    pinned: the most drafts this row takes, whatever the others do; None: as many as there are.
    """

    def __init__(self, pool: Acceptance | None = None, pinned: int | None = None) -> None:
        self.pinned = pinned
        self._pool = pool
        self._keep = 1 - 1 / (POOL_MEMORY if pool is None else ROW_MEMORY)
        self._at = [_Rate() for _ in range(MAX_DRAFT_TOKENS)]
        self._rates: list[float] | None = None  # until something is seen
        self._tokens: list[float] | None = None

    def seen(self, drafted: int, accepted: int) -> None:
        """Record a round that verified `drafted` tokens of this row and accepted `accepted`."""
        for i, rate in enumerate(self._at[: min(accepted + 1, drafted)]):
            rate.add(i < accepted, self._keep)
            if self._pool is not None and rate.changed:
                rate.mean = rate.recent
                for other in self._at:
                    other.weight = min(other.weight, DOUBTFUL)
        self._rates = self._tokens = None
        if self._pool is not None:
            for rate in self._at[drafted:]:
                if rate.weight > DOUBTFUL:
                    rate.weight *= self._keep
            self._pool.seen(drafted, accepted)

    @property
    def rates(self) -> list[float]:
        """The chance of each draft to be accepted if those before it are."""
        if self._rates is None:
            pooled = None if self._pool is None else self._pool.rates
            rate = FIRST_RATE
            self._rates = []
            for i, at in enumerate(self._at):
                prior = rate if pooled is None else pooled[i]
                rate = (at.weight * at.mean + at.prior_weight * prior) / (
                    at.weight + at.prior_weight
                )
                self._rates.append(rate)
        return self._rates

    def expected_tokens(self, num_draft_tokens: int, certain_after: int | None = None) -> float:
        """Return the tokens that a round of K drafts yields on average, the extra one included.

        That is 1 + p1 + p1 p2 + … (Leviathan et al. 2023, with a rate for each position).
        certain_after: suppose that once this many drafts are accepted, all later ones are too.
        """
        if self._tokens is None:
            reached, self._tokens = 1.0, [1.0]
            for rate in self.rates:
                reached *= rate
                self._tokens.append(self._tokens[-1] + reached)
        most = num_draft_tokens if self.pinned is None else min(num_draft_tokens, self.pinned)
        if certain_after is None or certain_after >= most:
            return self._tokens[most]
        tokens = self._tokens[certain_after]
        reached = tokens - self._tokens[certain_after - 1] if certain_after else 1.0
        return tokens + reached * (most - certain_after)

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
