"""What a round takes, by batch size B and number of drafts K, learned from timings.

The cost of a round jumps where the device's kernels change, so a shape that was not timed can only
be guessed. Knows nothing of clocks, tokens or choices: seconds come in, seconds go out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

KNOWN = 3  # timings that make a cost known: one of them may be an outlier
MEASURED = 16  # timings of this run that make it a figure to show: the first ones may be slow
FIRST_SLOPE = 0.1  # guess of what a draft adds, relative to the only cost known

# Standard deviations of logarithms of seconds, that is, relative ones.
PACE = 0.02  # change of the machine's speed in a round, for all K alike
OWN = 0.003  # change of one K's cost in a round, compared with the others
NOISE = 0.1  # of a timing
EARLIER = 0.5  # change of the machine's speed since an earlier run
SIGMAS = 2.5  # deviations: no timing counts as further off, no cost may be lower than this


class Cost(NamedTuple):
    """Seconds of a round: expected, and with luck."""

    expected: float
    least: float


@dataclass
class _Own:
    """One K's cost compared with the pace of its table, as a logarithm."""

    log: float
    timed: int  # when it was last timed, counted in timings of all shapes
    variance: float = NOISE**2
    timings: int = KNOWN  # up to KNOWN
    rounds: int = 0  # timings of this run


@dataclass
class _Table:
    """One batch size: a pace for all K, and each K's own cost.

    Most changes are the machine's (heat, another app, a longer context) and move all K alike. A
    surprising timing therefore moves the pace most, and the K's own cost as far as that may have
    changed since its last timing. So a K that is timed again after a long time is compared with
    those timed just before it: a slow phase of the machine does not count against it. This is a
    Kalman filter without covariances.
    """

    timed: int
    pace: float = 0.0
    variance: float = NOISE**2  # of the pace
    own: dict[int, _Own] = field(default_factory=dict)  # by K

    def add(self, k: int, log: float, now: int) -> None:
        own = self.own.setdefault(k, _Own(log - self.pace, now, timings=0))
        self.variance += (now - self.timed) * PACE**2
        own.variance += (now - own.timed) * OWN**2
        self.timed = own.timed = now
        own.rounds += 1
        if own.timings < KNOWN:  # outliers are slow, and a cost that is too low is soon corrected
            own.log = min(own.log, log - self.pace)
            own.timings += 1
            return
        variance = self.variance + own.variance + NOISE**2
        most = SIGMAS * math.sqrt(variance)
        surprise = min(max(log - self.pace - own.log, -most), most)
        self.pace += self.variance / variance * surprise
        own.log += own.variance / variance * surprise
        self.variance -= self.variance**2 / variance
        own.variance -= own.variance**2 / variance

    def cost(self, k: int, now: int) -> Cost:
        own = self.own[k]
        seconds = math.exp(self.pace + own.log)
        deviation = math.sqrt(own.variance + (now - own.timed) * OWN**2)
        return Cost(seconds, seconds * math.exp(-SIGMAS * deviation))


class Costs:
    """Seconds of a round for every B and K."""

    def __init__(self) -> None:
        self._tables: dict[int, _Table] = {}
        self._now = 0

    def add(self, batch: int, num_draft_tokens: int, seconds: float) -> None:
        """Record the duration of one round."""
        self._now += 1
        log = math.log(seconds)
        table = self._tables.setdefault(batch, _Table(self._now, pace=log))
        table.add(num_draft_tokens, log, self._now)

    def forget(self, batch: int, num_draft_tokens: int) -> None:
        """Drop what is known of one kind of round, to time it again."""
        self._tables[batch].own.pop(num_draft_tokens, None)

    def known(self, batch: int) -> dict[int, Cost]:
        """Return the costs that were timed often enough to be relied on, by K in order."""
        if (table := self._tables.get(batch)) is None:
            return {}
        ks = sorted(k for k, own in table.own.items() if own.timings == KNOWN)
        return {k: table.cost(k, self._now) for k in ks}

    def measured(self, batch: int, num_draft_tokens: int) -> float | None:
        """Return the seconds of such a round on this machine as it is now.

        None until this run timed it often.
        """
        own = self._tables[batch].own.get(num_draft_tokens) if batch in self._tables else None
        if own is None or own.rounds < MEASURED:
            return None
        return self._tables[batch].cost(num_draft_tokens, self._now).expected

    def estimates(self, batch: int, most: int) -> list[Cost]:
        """Return the costs of K = 0 .. most, of which at least one must be known.

        The others are guessed from the known, and rather too low: a K that might be the best is
        then tried, and known.
        """
        known = self.known(batch)
        first = next(iter(known))
        low = known[first].expected

        def guess(k: int) -> Cost:
            if k < first:
                seconds = low * max(1 - FIRST_SLOPE * (first - k), 0.5)
                return Cost(seconds, seconds)
            left = max(q for q in known if q < k)
            right = min((q for q in known if q > k), default=None)
            seconds = known[left].expected
            rises = []  # from left to K, by the slope up to there, and by half the slope after it
            if left > first:
                rises.append((seconds - low) / (left - first) * (k - left))
            if right is not None:
                rise = known[right].expected - seconds
                rises.append(rise / 2 * (k - left) / (right - left))
            rise = max(0.0, min(rises, default=FIRST_SLOPE * low * (k - left)))
            return Cost(seconds + rise, seconds + rise / 2)

        return [known[k] if k in known else guess(k) for k in range(most + 1)]

    def to_json(self) -> dict[str, dict[str, float]]:
        """Return the known costs in seconds, by B and K."""
        return {
            str(batch): {str(k): cost.expected for k, cost in self.known(batch).items()}
            for batch in self._tables
        }

    @classmethod
    def from_json(cls, saved: Any) -> Costs:
        """Return the costs of an earlier run; the first timings of this one scale them.

        Raises ValueError, TypeError, AttributeError or ArithmeticError for anything that `to_json`
        did not make.
        """
        costs = cls()
        for batch, seconds_by_k in saved.items():
            table = costs._tables.setdefault(int(batch), _Table(timed=0, variance=EARLIER**2))
            for k, seconds in seconds_by_k.items():
                if not (int(k) >= 0 and 0 < seconds < math.inf):
                    raise ValueError(f"a round of {k} drafts cannot take {seconds} s")
                table.own[int(k)] = _Own(math.log(float(seconds)), timed=0)
        return costs
