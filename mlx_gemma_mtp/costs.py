"""What a round takes, by batch size B and number of drafts K, learned from timings.

The cost of a round jumps where the device's kernels change, and nobody knows where: what was not
timed is only guessed. Knows nothing of clocks: seconds come in.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

WINDOW = 32  # timings kept for each B and K
ENOUGH = 16  # timings after which it is exact
KNOWN = 3  # timings after which a cost is trusted
STALE = 64  # rounds without a timing after which a cost is stale
KEPT = 16  # timings of a stale cost that survive its next one
FIRST_SLOPE = 0.1  # what a draft adds to a round of the smallest K, before two K were timed
OPTIMISM = 0.95  # share of the mean slope that is expected beyond the K that were timed
STALE_DOUBT = 0.08  # share by which a stale cost may have fallen
FEW_DOUBT = 0.08  # share by which a cost may be below the fastest of few timings


class Cost(NamedTuple):
    """Seconds of a round: what is expected, and what it might be at best."""

    expected: float
    least: float


@dataclass
class _Timings:
    """Those of one B and K."""

    window: list[float] = field(default_factory=list)
    scale: float = 1.0  # the window's seconds, times this, are today's
    last: int = -STALE - 1  # when the last one came
    seconds: float = 0.0  # the estimate

    def add(self, seconds: float, now: int) -> None:
        if now - self.last > STALE:
            self.window = self.window[-KEPT:]
        self.window = [*self.window, seconds / self.scale][-WINDOW:]
        self.last = now
        # The mean of the middle half: nearly as steady as the mean, and outliers do not reach it.
        # They are slow ones: of few timings one more of the slow is left out.
        ordered = sorted(self.window)
        cut = (len(ordered) + 1) // 4
        middle = ordered[cut : len(ordered) - cut - (3 < len(ordered) < ENOUGH)]
        self.seconds = sum(middle) / len(middle) * self.scale

    def rescale(self, factor: float) -> None:
        self.scale *= factor
        self.seconds *= factor


class Costs:
    """Seconds of a round for every B and K.

    Single outliers do not show. What slows the K in use (a longer context, heat, another app) is
    taken to slow those that were not timed for long as much.
    """

    def __init__(self) -> None:
        self._of: dict[int, dict[int, _Timings]] = {}
        self._now = 0

    def add(self, batch: int, num_draft_tokens: int, seconds: float) -> None:
        """A round took so long."""
        self._now += 1
        of = self._of.setdefault(batch, {})
        timings = of.setdefault(num_draft_tokens, _Timings())
        before, settled = timings.seconds, len(timings.window) >= ENOUGH
        timings.add(seconds, self._now)
        if settled:
            for other in of.values():
                if self._now - other.last > STALE:
                    other.rescale(timings.seconds / before)

    def known(self, batch: int) -> list[int]:
        """The K that were timed often enough to be trusted, in order."""
        of = self._of.get(batch, {})
        return sorted(k for k, timings in of.items() if len(timings.window) >= KNOWN)

    def estimates(self, batch: int, most: int) -> list[Cost]:
        """The costs of K = 0 .. most, of which at least one must be known.

        Where K is not known it is guessed from the line through those that are, somewhat too low:
        what might be best is then tried, and known.
        """
        known = [(k, self._of[batch][k].seconds) for k in self.known(batch)]
        (first, low), (last, high) = known[0], known[-1]
        slope = max(0.0, (high - low) / (last - first)) if last > first else FIRST_SLOPE * low
        below = [max(low - slope * (first - k), low / 2) for k in range(first)]
        costs = [Cost(seconds, seconds) for seconds in below]
        for (left, a), (right, b) in zip(known, [*known[1:], (most + 1, math.inf)], strict=True):
            costs.append(Cost(a, self._least(self._of[batch][left])))
            for k in range(left + 1, right):
                if right > most:
                    guess = high + OPTIMISM * slope * (k - last)
                else:
                    guess = a + (b - a) * (k - left) / (right - left) / 2
                    if left > first:
                        guess = min(guess, a + max(0, a - low) / (left - first) * (k - left))
                costs.append(Cost(guess, (guess + min(costs[left].least, b)) / 2))
        return costs[: most + 1]

    def _least(self, timings: _Timings) -> float:
        if len(timings.window) < ENOUGH:
            return min(timings.window) * timings.scale * (1 - FEW_DOUBT)
        stale = self._now - timings.last > STALE
        return timings.seconds * (1 - STALE_DOUBT if stale else 1)

    def to_json(self) -> dict[str, dict[str, float]]:
        """The known costs: B, K, seconds."""
        return {
            str(batch): {str(k): of[k].seconds for k in self.known(batch)}
            for batch, of in self._of.items()
        }

    @classmethod
    def from_json(cls, saved: Any) -> Costs:
        """Costs known from an earlier run: trusted, and soon overruled by timings of this one.

        Raises ValueError, TypeError or AttributeError for anything that `to_json` did not make.
        """
        costs = cls()
        for batch, of in saved.items():
            for k, seconds in of.items():
                if not (int(k) >= 0 and 0 < seconds < math.inf):
                    raise ValueError(f"a round of {k} drafts cannot take {seconds} s")
                timings = _Timings([float(seconds)] * WINDOW, seconds=float(seconds))
                costs._of.setdefault(int(batch), {})[int(k)] = timings
        return costs
