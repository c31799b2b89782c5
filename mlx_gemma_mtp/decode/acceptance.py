"""How often drafts come true, by position, and how many tokens a round of K drafts then yields.

Plain counting: knows nothing of the device, of time, or of why a draft came true.
"""

from __future__ import annotations

from typing import Any

from mlx_gemma_mtp.decode.params import MAX_DRAFT_TOKENS

ROW_MEMORY = 40  # verified drafts, of a row and position, after which one counts 1/e
POOL_MEMORY = 256  # the same for all rows together
PRIOR_WEIGHT = 8.0  # verified drafts that the pool's rate is worth to a new row
IDLE_TRIES = 6.0  # what a rate is worth after it was not tried for long
FIRST_RATE = 0.6  # before anything was verified

RECENT = 8  # verified drafts after which one counts 1/e in the short mean
CHANGE = 3.0  # standard deviations between short and long mean: the text has changed
CHANGED_TRIES = 3.0  # what the rates before a change are worth after it
LEAST_VARIANCE = 0.05  # of one draft, so that one surprise where all was certain is no change


class Acceptance:
    """Chances of drafts to come true: of one row, or of all rows (without `pool`).

    A draft is tried only where those before it came true, so each position has its own
    conditional rate: a mean with exponential forgetting. A row begins with the pool's rates, the
    pool's deeper positions with the rate before them.
    pinned: the most drafts this row takes, whatever the others do; None: as many as there are.
    """

    def __init__(self, pool: Acceptance | None = None, pinned: int | None = None) -> None:
        self.pinned = pinned
        self._pool = pool
        self._keep = 1 - 1 / (POOL_MEMORY if pool is None else ROW_MEMORY)
        self._tries = [0.0] * MAX_DRAFT_TOKENS
        self._hits = [0.0] * MAX_DRAFT_TOKENS
        self._recent = [0.0] * MAX_DRAFT_TOKENS
        self._prior_weight = [PRIOR_WEIGHT] * MAX_DRAFT_TOKENS
        self._rates: list[float] | None = None  # until something is seen
        self._tokens: list[float] | None = None

    def seen(self, drafted: int, accepted: int) -> None:
        """A round verified `drafted` tokens of this row, of which `accepted` came true."""
        for i in range(min(accepted + 1, drafted)):
            self._count(i, i < accepted)
        self._rates = self._tokens = None
        if self._pool is not None:
            for i in range(drafted, MAX_DRAFT_TOKENS):
                if self._tries[i] > IDLE_TRIES:
                    self._reweigh(i, self._tries[i] * self._keep)
            self._pool.seen(drafted, accepted)

    def _count(self, i: int, came_true: bool) -> None:
        """Draft i was verified. If a row's last few differ clearly from the mean, begin anew."""
        if self._tries[i] == 0:
            self._recent[i] = float(came_true)
        self._recent[i] += (came_true - self._recent[i]) / RECENT
        self._tries[i] = self._tries[i] * self._keep + 1
        self._hits[i] = self._hits[i] * self._keep + came_true
        self._prior_weight[i] *= self._keep
        if self._pool is None:
            return
        mean = self._hits[i] / self._tries[i]
        variance = max(mean * (1 - mean), LEAST_VARIANCE) / (2 * RECENT - 1)
        if (self._recent[i] - mean) ** 2 > CHANGE**2 * variance:
            self._hits[i] = self._recent[i] * self._tries[i]
            for j in range(MAX_DRAFT_TOKENS):
                self._reweigh(j, min(self._tries[j], CHANGED_TRIES))

    def _reweigh(self, i: int, tries: float) -> None:
        """Keep the rate of draft i, but let it count as so many tries."""
        if self._tries[i] > 0:
            self._hits[i] *= tries / self._tries[i]
            self._tries[i] = tries

    @property
    def rates(self) -> list[float]:
        """The chance of each draft to come true where those before it did."""
        if self._rates is None:
            pooled = None if self._pool is None else self._pool.rates
            rate = FIRST_RATE
            self._rates = []
            for i, weight in enumerate(self._prior_weight):
                prior = rate if pooled is None else pooled[i]
                rate = (self._hits[i] + weight * prior) / (self._tries[i] + weight)
                self._rates.append(rate)
        return self._rates

    def expected_tokens(self, num_draft_tokens: int, certain_after: int | None = None) -> float:
        """Tokens that a round of K drafts yields on average, the extra one included.

        That is 1 + p1 + p1 p2 + … (Leviathan et al. 2023, with a rate for each position).
        certain_after: suppose that all drafts after so many come true where those do.
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
        """A pool that believes the `rates` of an earlier one until rows show others.

        Raises ValueError or TypeError for anything else.
        """
        pool = cls()
        for i, rate in enumerate(rates[:MAX_DRAFT_TOKENS]):
            if not 0 <= rate <= 1:
                raise ValueError(f"{rate} is no rate")
            pool._tries[i], pool._hits[i] = ROW_MEMORY, ROW_MEMORY * float(rate)
            pool._prior_weight[i] = 0.0
        return pool
