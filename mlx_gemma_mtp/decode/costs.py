"""What a round takes, by its shape, learned from timings.

Seconds = pace x (pass + steps x step). Pass and step come from a `PassTable`, or are guessed
without one. What is learned, for every batch size: the pace, the step, and for some widths of a
pass how far it is off the table. Knows nothing of clocks, tokens or choices: seconds come in,
seconds go out.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from functools import cache
from typing import Any

import numpy as np

from mlx_gemma_mtp.decode.division import Floats, Shape
from mlx_gemma_mtp.decode.table import PassTable

WIDTHS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64)
MEASURED = 16  # timings of this run that make it a figure to show: the first ones may be slow

# Guesses without a table, relative to a pass of one token for each row.
GUESSED_SLOPE = 0.07  # of a further token for each row
GUESSED_STEP = 0.03

# Standard deviations of logarithms of seconds, that is, relative ones.
PACE = 0.02  # change of the machine's speed in a round, for all shapes alike
FIRST_PACE = 0.3  # the same in the first round of a run, and 1/n of it in the n-th: it warms up
OWN = 0.003  # change of one width's cost in a round, compared with the others
NOISE = 0.1  # of a timing
SIGMAS = 2.5  # deviations: no timing counts as further off
EARLIER = 0.5  # change of the machine's speed since an earlier run, or the table
UNKNOWN = 3.0  # of the machine's speed before anything was timed
KEPT = 0.03  # of a width's cost since an earlier run
TABLE = 0.08  # of a width's cost in a table; different widths differ by chance
GUESS = 0.4  # of a guessed one: near widths are alike,
OCTAVES = 2.0  # and those that are this many doublings apart hardly
GUESSED = 1.0  # of a guessed step

RETRY = 32  # timings from a change of the machine until plain decoding is timed again

LARGEST = 50  # of a saved logarithm
FIRST = math.log(0.03)  # seconds of a round before anything was timed


class _Learned:
    """One batch size: logarithms of the pace, of the step and of each width, and how they vary.

    A Kalman filter. Most changes are the machine's (heat, another app, a longer context) and move
    all shapes alike; its covariances tell those from what one width does.
    """

    def __init__(self, has_table: bool, has_steps: bool) -> None:
        size = 2 + len(WIDTHS)
        self.mean = np.zeros(size)
        self.mean[0] = 0.0 if has_table else FIRST
        if has_table:
            step = TABLE if has_steps else GUESSED
            self.prior = np.diag([EARLIER**2, step**2, *[TABLE**2] * len(WIDTHS)])
        else:
            octaves = np.log2(np.array(WIDTHS))
            apart = np.abs(octaves[:, None] - octaves) / OCTAVES
            self.prior = np.diag([UNKNOWN**2, GUESSED**2, *[0.0] * len(WIDTHS)])
            self.prior[2:, 2:] = GUESS**2 * np.exp(-apart)
        self.covariance = self.prior.copy()
        self.timed = 0  # when the last timing came, counted in timings of all batch sizes
        self.timings = 0
        self.widths = set[int]()  # that were timed, also in earlier runs
        self.plain = 0  # timings of this run without drafts,
        self.last_plain = 0  # when the last one came, counted in timings of this batch size
        self.odd = False  # the last timing was off by more than SIGMAS
        self.changed: int | None = None  # when the machine did, by the same count

    @property
    def plain_due(self) -> bool:
        """True if plain decoding should be timed again because the machine changed.

        A busy machine delays short rounds the most, and drafts look cheap. The next times are
        further and further apart, until it changes again.
        """
        if self.changed is None:
            return False
        return self.timings - self.last_plain >= max(RETRY, 2 * (self.last_plain - self.changed))

    def timing(self, direction: Floats, surprise: float, now: int, plain: bool) -> None:
        """Learn from a round that took longer than expected by this; plain: without drafts."""
        rounds, self.timed = now - self.timed, now
        self.timings += 1
        grown = np.full(len(self.mean), rounds * OWN**2)
        grown[0] = rounds * max(PACE, FIRST_PACE / self.timings) ** 2
        held = np.diag(self.covariance)
        room = np.maximum(np.diag(self.prior) - held, 0)
        room[0] = np.inf
        self.covariance += np.diag(np.minimum(grown, room))
        most = SIGMAS * math.sqrt(float(direction @ self.covariance @ direction) + NOISE**2)
        odd = abs(surprise) > most
        # One odd timing is an outlier. Two in a row are a change of the machine, and so is one of
        # plain decoding after many other rounds: its own cost is then believed to have changed.
        age = min(1.0, (self.timings - self.last_plain) / RETRY) if plain else 0.0
        if odd and (self.odd or age == 1):
            self.changed = self.timings
        self.odd = odd
        if odd and plain:
            self.covariance[2:, 2:] += np.diag(direction[2:] * (age * surprise / 2) ** 2)
            most = max(most, age * abs(surprise))
        if plain:
            self.last_plain = self.timings
            self.plain += 1
        # A width that little is known of may cost this much, or this timing was held up: others
        # will tell.
        width = direction[2:]
        doubt = math.sqrt(max(0.0, float(width @ self.covariance[2:, 2:] @ width)))
        noise = max(NOISE, min(surprise / 2, doubt))
        self.learn(direction, min(max(surprise, -most), most), noise)

    def learn(self, direction: Floats, surprise: float, noise: float) -> None:
        """Learn that the mean is off by this in a direction."""
        towards = self.covariance @ direction
        variance = float(direction @ towards) + noise**2
        self.mean += towards * (surprise / variance)
        self.covariance -= np.outer(towards, towards) / variance


class Costs:
    """Seconds of a round of every shape.

    table: what a probe measured; without it costs are guesses until they are timed.
    """

    def __init__(self, table: PassTable | None = None) -> None:
        self.table = table
        self._learned: dict[int, _Learned] = {}
        self._now = 0
        self._tabled: dict[tuple[int, tuple[tuple[int, int], ...]], Floats] = {}  # seconds

    def add(self, shape: Shape, seconds: float) -> None:
        """Record the duration of one round."""
        self._now += 1
        learned = self._of(shape.batch)
        passed, step = self._expected(shape.batch, ((shape.num_tokens, shape.width),))
        steps = shape.num_steps * step
        total = float(passed[0]) + steps
        near = _near((shape.width,))[0]
        direction = np.concatenate([[1, steps / total], passed / total * near])
        plain = shape.num_tokens <= shape.batch and not shape.num_steps
        learned.timing(direction, math.log(seconds / total), self._now, plain)
        learned.widths.add(shape.width)

    def seconds(self, batch: int, passes: tuple[tuple[int, int], ...], num_steps: int) -> Floats:
        """Return the expected seconds of rounds with 0 .. num_steps steps: [steps + 1, passes].

        passes: tokens and width of each.
        """
        passed, step = self._expected(batch, passes)
        return passed + step * np.arange(num_steps + 1)[:, None]

    def doubt(self, batch: int, widths: tuple[int, ...], known: int) -> Floats:
        """Return how uncertain the costs of passes are, relative to that of one width: [widths]."""
        away = _near(widths) - _near((known,))
        held = self._of(batch).covariance[2:, 2:]
        return np.sqrt(np.maximum(((away @ held) * away).sum(1), 0))

    def timed(self, batch: int) -> set[int]:
        """Return the widths of passes that were timed, also in earlier runs."""
        return self._of(batch).widths

    @property
    def num_timed(self) -> int:
        """How many widths were timed, counted for each batch size; also in earlier runs."""
        return sum(len(learned.widths) for learned in self._learned.values())

    def measured_plain(self, batch: int) -> bool:
        """True if this run timed rounds without drafts often. From any thread."""
        learned = self._learned.get(batch)
        return learned is not None and learned.plain >= MEASURED

    def plain_due(self, batch: int) -> bool:
        """True if rounds without drafts should be timed again."""
        return self._of(batch).plain_due

    def to_json(self) -> dict[str, Any]:
        """Return what was learned, by batch size."""
        return {
            str(batch): {
                "pace": float(one.mean[0]),
                "step": float(one.mean[1]),
                "widths": {
                    str(width): float(_near((width,))[0] @ one.mean[2:])
                    for width in sorted(one.widths)
                },
            }
            for batch, one in self._learned.items()
            if one.widths
        }

    @classmethod
    def from_json(cls, saved: Any, table: PassTable | None = None) -> Costs:
        """Return the costs of an earlier run, with the same table; this one's timings scale them.

        Raises KeyError, ValueError, TypeError or AttributeError for anything that `to_json` did
        not make.
        """
        costs = cls(table)
        for batch, one in saved.items():
            learned = costs._of(int(batch))
            learned.changed = 0  # that run may have been on a busy machine
            found = {0: one["pace"], 1: one["step"]}
            numbers = [*found.values(), *one["widths"].values()]
            if not all(abs(number) < LARGEST for number in numbers):  # nan isn't either
                raise ValueError(f"costs are logarithms below {LARGEST}, not {numbers}")
            for at, number in found.items():
                direction = np.eye(len(learned.mean))[at]
                learned.learn(direction, number - learned.mean[at], EARLIER if at == 0 else KEPT)
            for width, number in one["widths"].items():
                direction = np.concatenate([[0, 0], _near((int(width),))[0]])
                learned.learn(direction, number - learned.mean @ direction, KEPT)
                learned.widths.add(int(width))
        return costs

    def _of(self, batch: int) -> _Learned:
        if batch not in self._learned:
            table = self.table
            self._learned[batch] = _Learned(table is not None, bool(table and table.steps))
        return self._learned[batch]

    def _expected(self, batch: int, passes: tuple[tuple[int, int], ...]) -> tuple[Floats, float]:
        """Return the seconds of passes, and of a step."""
        mean = self._of(batch).mean
        pace = math.exp(mean[0])
        own = np.exp(_near(tuple(width for _, width in passes)) @ mean[2:])
        if (batch, passes) not in self._tabled:
            self._tabled[batch, passes] = np.array([self._table_of(batch, *one) for one in passes])
        step = 0.0 if self.table is None else self.table.step_seconds(batch)
        step = step or GUESSED_STEP * self._table_of(batch, batch, batch)
        return pace * self._tabled[batch, passes] * own, pace * step * math.exp(mean[1])

    def _table_of(self, batch: int, num_tokens: int, width: int) -> float:
        if self.table is not None:
            return self.table.seconds(num_tokens, width)
        return 1 + GUESSED_SLOPE * (width / batch - 1)


@cache
def _near(widths: tuple[int, ...]) -> Floats:
    """Return how much each of WIDTHS counts for one between them: [widths, WIDTHS]."""
    weights = np.zeros((len(widths), len(WIDTHS)))
    for row, width in zip(weights, widths, strict=True):
        at = bisect_left(WIDTHS, width)
        if at == len(WIDTHS) or WIDTHS[at] == width:
            row[min(at, len(WIDTHS) - 1)] = 1
        else:
            share = math.log(width / WIDTHS[at - 1]) / math.log(WIDTHS[at] / WIDTHS[at - 1])
            row[at - 1 : at + 1] = 1 - share, share
    return weights
