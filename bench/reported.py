"""Decoding speeds of Gemma 4 that others measured on Macs, and how far off the prediction is.

The figures are in reported.json, each with its source; none was measured here. A context that a
source doesn't state is estimated from its prompt: it hardly matters below 1,000 tokens.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from .chips import find_chip
from .estimate import SHARE, RoundTime, predicted_round
from .floor import Floor
from .synthetic import random_pair

SHARES = [number / 100 for number in range(40, 101)]  # that `fitted` chooses from


class Reported(NamedTuple):
    """One measurement. The drafter's bits differ from the target's if `drafter_bits` do.

    tokens_per_round: of a row, as measured with this number of draft tokens; 1 without drafts.
    tokens_per_second: of all rows.
    """

    chip: str
    size: str
    bits: int | None
    drafter_bits: int | None
    batch: int
    context: int
    num_draft_tokens: int
    tokens_per_round: float
    tokens_per_second: float
    engine: str
    source: str

    def ratio(self, share: float = SHARE) -> float:
        """The predicted speed over the measured one."""
        tokens = self.batch * self.tokens_per_round
        return tokens / _round(self).seconds(share) / self.tokens_per_second


class Error(NamedTuple):
    """Predicted over measured speeds: the median and the range over all points.

    unseen_low, unseen_high: the range if the share is fitted without the machine of each point.
    chips: the median of each chip.
    """

    points: int
    median: float
    low: float
    high: float
    unseen_low: float
    unseen_high: float
    chips: dict[str, float]


@cache
def reported() -> list[Reported]:
    """All measurements."""
    return [Reported(**one) for one in _read()["points"]]


@cache
def error() -> Error:
    """How far off the prediction is, as written in reported.json; computing it takes seconds."""
    return Error(**_read()["error"])


def computed_error() -> Error:
    """The same, computed again."""
    chips: dict[str, list[Reported]] = {}
    for one in reported():
        chips.setdefault(one.chip, []).append(one)
    ratios, unseen = [one.ratio() for one in reported()], []
    for chip, points in chips.items():
        share = fitted(one for one in reported() if one.chip != chip)
        unseen += [one.ratio(share) for one in points]
    return Error(
        len(ratios),
        statistics.median(ratios),
        min(ratios),
        max(ratios),
        min(unseen),
        max(unseen),
        {chip: statistics.median(one.ratio() for one in each) for chip, each in chips.items()},
    )


def fitted(points: Iterable[Reported]) -> float:
    """The share for which plain decoding of one row is right: the median machine's median."""
    machines: dict[str, list[Reported]] = {}
    for one in points:
        if one.batch == 1 and not one.num_draft_tokens:
            machines.setdefault(one.chip, []).append(one)

    def off(share: float) -> float:
        medians = [
            statistics.median(one.ratio(share) for one in each) for each in machines.values()
        ]
        return abs(statistics.median(medians) - 1)

    return min(SHARES, key=off)


@cache
def _round(one: Reported) -> RoundTime:
    floor = _floor(one.size, one.bits, one.drafter_bits)
    lengths = [one.context] * one.batch
    num_tokens = one.batch * (one.num_draft_tokens + 1)
    return predicted_round(floor, find_chip(one.chip), lengths, num_tokens, one.num_draft_tokens)


@cache
def _floor(size: str, bits: int | None, drafter_bits: int | None) -> Floor:
    return Floor(random_pair(size, bits=bits)[0], random_pair(size, bits=drafter_bits)[1])


@cache
def _read() -> dict[str, Any]:
    return json.loads(Path(__file__).with_name("reported.json").read_text(encoding="utf-8"))
