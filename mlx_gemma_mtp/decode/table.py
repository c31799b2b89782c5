"""What passes of a target cost on this machine, and which of them give the same bits.

Measured once by a probe; plain data, that a file can keep.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import asdict, dataclass, field
from itertools import groupby
from typing import Any, NamedTuple, get_args

from mlx_gemma_mtp.decode.acceptance import FIRST_RATE
from mlx_gemma_mtp.model.experts import Way

# Of a pass. 5% is within what two timings differ: on an H200, 26B-A4B was padded from 2 to 3 tokens
# for that, and rounds took 11.8 ms instead of 10.4. Padding that pays gives more: 31B in 4 bits had
# 18 to 60% more tokens per second.
WORTH_PADDING = 0.1


class PassClass(NamedTuple):
    """Passes that give a token the same bits, whatever else they compute; bounds are included.

    By width (tokens in a product, padding included) and by positions of each row.
    """

    least_width: int
    most_width: int
    least_positions: int
    most_positions: int


@dataclass(frozen=True)
class PassTable:
    """One target, and its drafter, on one machine. Seconds, with little context.

    passes: of a pass, by tokens. experts: the part of its experts; empty without any. ways: the
    quickest way to compute them, by tokens. steps: of one step of the drafter, by batch size;
    empty without one. classes: passes that agree, for every capacity of the cache; empty if none
    do. chunks: sizes of passes over prompts that agree with each other, however they are mixed.
    """

    passes: dict[int, float]
    experts: dict[int, float] = field(default_factory=dict)
    ways: dict[int, str] = field(default_factory=dict)
    steps: dict[int, float] = field(default_factory=dict)
    classes: tuple[PassClass, ...] = ()
    chunks: tuple[int, ...] = ()

    def seconds(self, num_tokens: int, width: int | None = None) -> float:
        """Return what a pass takes; width: with padding, which experts do not compute."""
        whole = _between(self.passes, width or num_tokens)
        if not self.experts or width is None:
            return whole
        return whole - _between(self.experts, width) + _between(self.experts, num_tokens)

    def step_seconds(self, batch: int) -> float:
        """Return what one step of the drafter takes; 0 if that was not measured."""
        return _between(self.steps, batch) if self.steps else 0.0

    def cheapest(self, num_tokens: int, least: int, most: int | None = None) -> int:
        """Return the width, of those allowed, at which this many tokens take least.

        It is more than needed only where that saves WORTH_PADDING.
        """
        needed = max(num_tokens, least)
        wider = (
            width for width in self.passes if width > needed and (most is None or width <= most)
        )
        best = min(wider, key=lambda width: self.seconds(num_tokens, width), default=needed)
        saved = 1 - self.seconds(num_tokens, best) / self.seconds(num_tokens, needed)
        return best if saved > WORTH_PADDING else needed

    def best_class(self, most_rows: int) -> PassClass | None:
        """Return the class in which most rows decode without drafts, and of those the fastest."""

        def worth(one: PassClass) -> tuple[int, float]:
            rows = min(one.most_width, most_rows)
            return rows, sum(self._speed(one, count) for count in range(1, rows + 1))

        return max(self.classes, key=worth, default=None)

    def _speed(self, one: PassClass, rows: int) -> float:
        """Return the most tokens per second of each of these rows in passes of a class.

        With as many drafts for each, accepted at FIRST_RATE.
        """
        most = min(one.most_width // rows, one.most_positions) if self.steps else 1
        speeds = []
        for positions in range(1, most + 1):
            count = rows * positions
            width = self.cheapest(count, one.least_width, one.most_width)
            steps = (positions - 1) * self.step_seconds(rows)
            tokens = sum(FIRST_RATE**drafts for drafts in range(positions))
            speeds.append(tokens / (self.seconds(count, width) + steps))
        return max(speeds)

    def in_words(self) -> dict[str, str]:
        """Return what was measured, for people: each part with its name."""
        found = {"ms by tokens of a pass": _milliseconds(self.passes)}
        if self.steps:
            found["ms by rows of a draft"] = _milliseconds(self.steps)
        if self.ways:
            alike = groupby(sorted(self.ways), self.ways.__getitem__)
            ways = ", ".join(f"{way} from {next(counts)}" for way, counts in alike)
            found["experts by tokens"] = ways
        classes = (
            f"{one.least_width} to {one.most_width} tokens of {one.least_positions} to "
            f"{one.most_positions} per row"
            for one in self.classes
        )
        found["same bits"] = "; ".join(classes) or "none of these passes"
        if len(self.chunks) > 1:
            found["same bits"] += f"; prompts by {', '.join(map(str, self.chunks))}"
        return found

    def to_json(self) -> dict[str, Any]:
        """Return what `from_json` takes."""
        return asdict(self)

    @classmethod
    def from_json(cls, saved: Any) -> PassTable:
        """Raises KeyError, ValueError, TypeError or AttributeError for anything else."""
        seconds = [_seconds(saved[name]) for name in ("passes", "experts", "steps")]
        if not seconds[0]:
            raise ValueError("no pass was timed")
        classes = tuple(PassClass(*map(int, one)) for one in saved["classes"])
        chunks = tuple(map(int, saved["chunks"]))
        bounds = [bound for one in classes for bound in (one[:2], one[2:])]
        if not all(1 <= least <= most for least, most in bounds) or min(chunks, default=1) < 1:
            raise ValueError(f"{classes} and {chunks} are not ranges and sizes")
        if unknown := set(saved["ways"].values()) - set(get_args(Way)):
            raise ValueError(f"unknown ways to compute experts: {unknown}")
        return cls(
            passes=seconds[0],
            experts=seconds[1],
            ways={int(count): way for count, way in saved["ways"].items()},
            steps=seconds[2],
            classes=classes,
            chunks=chunks,
        )


def _between(measured: dict[int, float], count: int) -> float:
    """Interpolate; beyond the last measured count, in proportion to it."""
    counts = sorted(measured)
    at = bisect_left(counts, count)
    if at == len(counts):
        return measured[counts[-1]] * count / counts[-1]
    right = counts[at]
    if at == 0 or right == count:
        return measured[right]
    left = counts[at - 1]
    share = (count - left) / (right - left)
    return measured[left] + share * (measured[right] - measured[left])


def _milliseconds(seconds: dict[int, float]) -> str:
    shown = {count: 1000 * one for count, one in seconds.items()}
    return ", ".join(
        f"{count}: {one:.0f}" if one >= 100 else f"{count}: {one:.3g}"
        for count, one in shown.items()
    )


def _seconds(saved: Any) -> dict[int, float]:
    found = {int(count): float(seconds) for count, seconds in saved.items()}
    if any(count < 1 or not 0 < seconds < math.inf for count, seconds in found.items()):
        raise ValueError("a pass takes a positive number of seconds")
    return found
