"""What a round takes, by batch size B and number of drafts K, learned from timings.

The cost of a round jumps where the device's kernels change, and nobody knows where: what was not
timed is only guessed. Knows nothing of clocks: seconds come in.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

KNOWN = 3  # timings after which a cost is known,
ENOUGH = 16  # and after which it is no longer counted how many there were

# Standard deviations of logarithms of seconds, that is, relative ones.
COMMON = 0.02  # by which the machine's speed may change in a round, for all K alike,
OWN = 0.002  # and the cost of one K beside the others'
FIRST = 0.1  # of the first timings of a K, by which they may be off together
EARLIER = 0.5  # between an earlier run and this one, for all K alike
NOISE, LEAST_NOISE, MOST_NOISE = 0.08, 0.02, 0.3  # of a timing: at first, and bounds
NOISE_TIMINGS = 50  # that the estimate of the noise goes back
OUTLIER = 3.0  # deviations beyond which a timing counts the less, the further it is off
DOUBT = 2.0  # deviations by which a cost may be lower than expected

FIRST_SLOPE = 0.1  # what a draft adds to the cost of the only K known
SLOPE_SHARE = 0.95  # what is expected beyond the largest K known, of the mean slope before it

Floats = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


class Cost(NamedTuple):
    """Seconds of a round: what is expected, and what it may be with luck."""

    expected: float
    least: float


@dataclass
class _Table:
    """What is known of one batch size: a Kalman filter over the logarithms of its costs.

    Most changes are the machine's (heat, another app, a longer context) and move all K alike. So a
    timing of one K tells of the others as well, and a K that is timed again after long is compared
    with those timed just before it: a slow phase of the machine does not count against it.
    """

    ks: list[int] = field(default_factory=list)  # the known ones, as they came
    logs: Floats = field(default_factory=lambda: np.zeros(0))
    spread: Floats = field(default_factory=lambda: np.zeros((0, 0)))  # their covariance
    counts: dict[int, int] = field(default_factory=dict)  # timings of each K, up to ENOUGH
    firsts: dict[int, list[float]] = field(default_factory=dict)  # of K that are not known yet
    last: int = 0  # the K timed last
    now: int = 0  # when that was, in timings of all batch sizes

    def age(self, now: int) -> None:
        """So much may have changed until now."""
        rounds, self.now = now - self.now, now
        own = np.eye(len(self.ks)) * (rounds * OWN**2)
        self.spread = self.spread + own + min(rounds * COMMON**2, EARLIER**2)

    def begin(self, k: int, log: float, deviation: float) -> None:
        """A K is known from now on, as far as this."""
        size = len(self.ks)
        spread = np.zeros((size + 1, size + 1))
        spread[:size, :size] = self.spread
        spread[size, size] = deviation**2
        self.spread, self.logs = spread, np.append(self.logs, log)
        self.ks.append(k)
        self.last = k

    @property
    def index(self) -> int:
        return self.ks.index(self.last)

    def update(self, k: int, log: float, noise: float) -> float:
        """Learn from a timing of a known K; its squared surprise, less what was to be expected."""
        self.last = k
        index = self.index
        surprise = log - float(self.logs[index])
        expected = float(self.spread[index, index]) + noise**2
        odd = max(1.0, surprise**2 / (OUTLIER**2 * expected))
        gain = self.spread[:, index] / (float(self.spread[index, index]) + odd * noise**2)
        self.logs = self.logs + gain * surprise
        self.spread = self.spread - np.outer(gain, self.spread[index])
        return surprise**2 / odd - expected

    def seconds(self, k: int) -> float:
        return math.exp(float(self.logs[self.ks.index(k)]))

    def least(self, k: int) -> float:
        """What K may cost with luck, beside the K timed last."""
        i, j = self.ks.index(k), self.index
        apart = self.spread[i, i] + self.spread[j, j] - 2 * self.spread[i, j]
        return self.seconds(k) * math.exp(-DOUBT * math.sqrt(max(0.0, float(apart))))


class Costs:
    """Seconds of a round for every B and K.

    What is learned above all is how they compare: times that change for one K change the costs of
    all, as far as the comparison is certain. Those of an earlier run follow the first that is
    timed in this one. A cost that is not timed for long may have fallen: it is doubted.
    """

    def __init__(self) -> None:
        self._of: dict[int, _Table] = {}
        self._now = 0
        self._noise = NOISE

    def add(self, batch: int, num_draft_tokens: int, seconds: float) -> None:
        """A round took so long."""
        self._now += 1
        table = self._of.setdefault(batch, _Table(now=self._now))
        table.age(self._now)
        k, log = num_draft_tokens, math.log(seconds)
        table.counts[k] = min(table.counts.get(k, 0) + 1, ENOUGH)
        if k in table.ks:
            excess = table.update(k, log, self._noise)
            noise = math.sqrt(max(0.0, self._noise**2 + excess / NOISE_TIMINGS))
            self._noise = min(max(noise, LEAST_NOISE), MOST_NOISE)
            return
        firsts = table.firsts.setdefault(k, [])
        firsts.append(log)
        if len(firsts) == KNOWN:
            # Outliers are slow ones: a K that looks too cheap is played, and soon known better.
            table.begin(k, min(table.firsts.pop(k)), FIRST)

    def known(self, batch: int) -> list[int]:
        """The K that were timed often enough to be relied on, in order."""
        return sorted(self._of[batch].ks) if batch in self._of else []

    def measured(self, batch: int, num_draft_tokens: int) -> float | None:
        """Seconds of such a round on this machine as it is now.

        None where it is not known, or only from an earlier run that nothing of this one adjusted.
        """
        table = self._of.get(batch)
        if table is None or table.now == 0 or num_draft_tokens not in table.ks:
            return None
        return table.seconds(num_draft_tokens)

    def estimates(self, batch: int, most: int) -> list[Cost]:
        """The costs of K = 0 .. most, of which at least one must be known.

        The others are guessed from the lines through those, and rather too low: what might be
        best is then tried, and known.
        """
        table = self._of[batch]
        known = [(k, table.seconds(k)) for k in self.known(batch)]
        (first, low), (last, high) = known[0], known[-1]
        slope = max(0.0, (high - low) / (last - first)) if last > first else FIRST_SLOPE * low
        below = [max(low - slope * (first - k), low / 2) for k in range(first)]
        costs = [Cost(guess, guess) for guess in below]
        for (left, a), (right, b) in zip(known, [*known[1:], (most + 1, math.inf)], strict=True):
            costs.append(Cost(a, table.least(left)))
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
            str(batch): {str(k): [table.seconds(k), table.counts[k]] for k in self.known(batch)}
            for batch, table in self._of.items()
        }

    @classmethod
    def from_json(cls, saved: Any) -> Costs:
        """Costs of an earlier run: relied on, and soon overruled by timings of this one.

        Raises ValueError, TypeError, AttributeError or ArithmeticError for anything that `to_json`
        did not make.
        """
        costs = cls()
        for batch, of in saved.items():
            table = costs._of.setdefault(int(batch), _Table())
            for k, (saved_seconds, num_timings) in of.items():
                seconds = float(saved_seconds)
                if not (int(k) >= 0 and 0 < seconds < math.inf):
                    raise ValueError(f"a round of {k} drafts cannot take {seconds} s")
                enough = num_timings >= ENOUGH
                table.counts[int(k)] = ENOUGH if enough else KNOWN
                table.begin(int(k), math.log(seconds), FIRST / 4 if enough else FIRST)
            table.spread = table.spread + EARLIER**2
        return costs
