"""What a round takes, by batch size B and number of drafts K, learned from timings.

The cost of a round jumps where the device's kernels change, and nobody knows where: what was not
timed is only guessed. Knows nothing of clocks: seconds come in.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field
from typing import Any, NamedTuple

WINDOW = 32  # timings kept for each B and K
KNOWN = 3  # timings after which a cost is known,
ENOUGH = 16  # and after which it is certain
STALE = 64  # rounds without a timing after which the next one leaves ENOUGH of the old ones
STEP = 1.25  # factor between a timing and the estimate that makes it odd
STEP_TIMINGS = 5  # odd ones in a row that are the new estimate
FEW_DOUBT = 0.08  # share by which a cost may be below the fastest of few timings
STALE_DOUBT = 0.0003  # share by which it may have fallen, in each round since its last timing,
MOST_DOUBT = 0.4  # and at most
FIRST_SLOPE = 0.1  # what a draft adds to the cost of the only K known
SLOPE_SHARE = 0.95  # what is expected beyond the largest K known, of the mean slope before it


class Cost(NamedTuple):
    """Seconds of a round: what is expected, and what it may be with luck."""

    expected: float
    least: float


@dataclass
class _Timings:
    """Those of one B and K."""

    window: list[float] = field(default_factory=list)
    scale: float = 1.0  # the window's seconds times this are today's
    last: int = 0  # when the last one came, in rounds; below 0 in an earlier run
    seconds: float = 0.0  # the estimate

    @property
    def certain(self) -> bool:
        return len(self.window) >= ENOUGH

    def add(self, seconds: float, now: int) -> None:
        kept = ENOUGH if now - self.last > STALE else WINDOW - 1
        self.window = [*self.window[-kept:], seconds / self.scale]
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

    def least(self, now: int) -> float:
        if not self.certain:
            return min(self.window) * self.scale * (1 - FEW_DOUBT)
        doubt = min((now - self.last) * STALE_DOUBT, MOST_DOUBT)
        return self.seconds * (1 - doubt)


class Costs:
    """Seconds of a round for every B and K.

    Single outliers do not show. When the times of what is known jump (another app, heat), all
    costs do. Those of an earlier run follow the first that is timed in this one. A cost that is
    not timed for long may have fallen: it is doubted.
    """

    def __init__(self) -> None:
        self._of: dict[int, dict[int, _Timings]] = {}
        self._now = 0
        self._odd: list[tuple[_Timings, float]] = []  # the last, and by which factor they were off

    def add(self, batch: int, num_draft_tokens: int, seconds: float) -> None:
        """A round took so long."""
        self._now += 1
        of = self._of.setdefault(batch, {})
        timings = of.setdefault(num_draft_tokens, _Timings())
        before = timings.seconds
        if timings.certain:
            self._odd.append((timings, seconds / before))
            if 1 / STEP < seconds / before < STEP:
                self._odd = []
        timings.add(seconds, self._now)
        if len(self._odd) == STEP_TIMINGS:
            self._step()
        elif timings.certain and before:
            for other in of.values():
                if other.last < 0:
                    other.rescale(timings.seconds / before)

    def _step(self) -> None:
        """The machine is slower now, or faster, since as many timings as are odd."""
        factor = statistics.median(ratio for _, ratio in self._odd)
        for of in self._of.values():
            for timings in of.values():
                timings.rescale(factor)
        for timings, _ in self._odd:
            timings.window.pop()  # timed after the step, so not to be scaled; more are to come
        self._odd = []

    def known(self, batch: int) -> list[int]:
        """The K that were timed often enough to be relied on, in order."""
        of = self._of.get(batch, {})
        return sorted(k for k, timings in of.items() if len(timings.window) >= KNOWN)

    def estimates(self, batch: int, most: int) -> list[Cost]:
        """The costs of K = 0 .. most, of which at least one must be known.

        The others are guessed from the lines through those, and rather too low: what might be
        best is then tried, and known.
        """
        of = self._of[batch]
        known = [(k, of[k].seconds) for k in self.known(batch)]
        (first, low), (last, high) = known[0], known[-1]
        slope = max(0.0, (high - low) / (last - first)) if last > first else FIRST_SLOPE * low
        below = [max(low - slope * (first - k), low / 2) for k in range(first)]
        costs = [Cost(guess, guess) for guess in below]
        for (left, a), (right, b) in zip(known, [*known[1:], (most + 1, math.inf)], strict=True):
            costs.append(Cost(a, of[left].least(self._now)))
            floor = min(costs[left].least, b)
            for k in range(left + 1, right):
                if left == last:
                    guess = a + SLOPE_SHARE * slope * (k - left)
                else:  # a jump may come before K or after it: half way
                    guess = a + (b - a) * (k - left) / (right - left) / 2
                    if left > first:
                        guess = min(guess, a + max(0, a - low) / (left - first) * (k - left))
                costs.append(Cost(guess, (guess + floor) / 2))
        return costs[: most + 1]

    def to_json(self) -> dict[str, dict[str, list[float]]]:
        """The known costs: B, K, seconds and number of timings."""
        return {
            str(batch): {str(k): [of[k].seconds, len(of[k].window)] for k in self.known(batch)}
            for batch, of in self._of.items()
        }

    @classmethod
    def from_json(cls, saved: Any) -> Costs:
        """Costs of an earlier run: relied on, and soon overruled by timings of this one.

        Raises ValueError, TypeError or AttributeError for anything that `to_json` did not make.
        """
        costs = cls()
        for batch, of in saved.items():
            for k, (seconds, num_timings) in of.items():
                if not (int(k) >= 0 and 0 < seconds < math.inf):
                    raise ValueError(f"a round of {k} drafts cannot take {seconds} s")
                count = ENOUGH if num_timings >= ENOUGH else KNOWN
                timings = _Timings([float(seconds)] * count, 1.0, -STALE, float(seconds))
                costs._of.setdefault(int(batch), {})[int(k)] = timings
        return costs
