"""Which way to compute experts is the quickest, by tokens of a pass.

Decided from seconds that others timed: of experts alone, and of whole passes. Knows nothing of
models or clocks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, get_args

from mlx_gemma_mtp.model.experts import Way

TIE = 1.05  # a way is left for another if that is this much quicker
# Whole passes decide if another way takes at most this many times as long alone. With 32 tokens of
# 26B-A4B in 4 bits on an H200, all experts took 2% longer than pairs alone, but whole passes took
# 7% less, and rounds 5 to 6% less.
RIVAL = 1.15


class Alone(NamedTuple):
    """Seconds of the experts of some layers, by tokens and way, timed without the rest of a pass.

    empty: seconds of a timing of nothing. scale: how many layers there are for each of these.
    """

    times: Mapping[tuple[int, Way], float]
    empty: float
    scale: float

    def of_a_pass(self, ways: Mapping[int, Way]) -> dict[int, float]:
        """Return the seconds of all experts in a pass, by tokens, computed in these ways."""
        times = {count: self.times[count, way] for count, way in ways.items()}
        return {n: max(one - self.empty, one / 10) * self.scale for n, one in times.items()}


def quickest(alone: Alone) -> dict[int, Way]:
    """Return the quickest way by tokens, where every way was timed.

    A way is left where another is quicker there and at the next number of tokens, not for a blip.
    """
    every, times = get_args(Way), alone.times
    counts = sorted(count for count, way in times if way == every[-1])
    ways = dict[int, Way]()
    now = every[0]
    for count, following in _with_next(counts):
        best = min(every, key=lambda way: times[count, way])
        if all(times[n, now] > TIE * times[n, best] for n in (count, following)):
            now = best
        ways[count] = now
    return ways


def rivals(alone: Alone, ways: Mapping[int, Way]) -> dict[int, Way]:
    """Return ways that may be quicker than these in a whole pass, by tokens, the likeliest first.

    At most one for each number, which takes at most RIVAL times as long alone: the quickest that is
    the way for another number, or else the quickest. So one that hardly differs from the way in
    use, as sorted pairs may from pairs, does not take the place of others.
    """
    used, found = set(ways.values()), dict[int, Way]()
    for count in dict.fromkeys(count for count, _ in alone.times if count in ways):
        times = {way: alone.times[count, way] for way in get_args(Way) if way != ways[count]}
        most = RIVAL * alone.times[count, ways[count]]
        near = [way for way, seconds in times.items() if seconds <= most]
        if near:
            found[count] = min(near, key=lambda way: (way not in used, times[way]))
    return dict(sorted(found.items(), key=lambda one: one[1] not in used))


def settled(
    ways: Mapping[int, Way],
    rivals: Mapping[int, Way],
    passes: Mapping[int, float],
    rival_passes: Mapping[int, float],
) -> dict[int, Way]:
    """Return these ways, and rivals where their passes are quicker.

    passes, rival_passes: seconds of whole passes by tokens; those of rivals as far as they were
    timed. As in `quickest`, not for a blip: at the next number of tokens the rival is the way or
    quicker too, or it is the way for those before.
    """

    def wins(count: int, rival: Way) -> bool:
        timed = rivals.get(count) == rival and count in rival_passes
        return timed and passes[count] > TIE * rival_passes[count]

    found = dict[int, Way]()
    before: Way | None = None
    for count, following in _with_next(sorted(ways)):
        found[count], rival = ways[count], rivals.get(count)
        shared = rival in (before, ways[following])
        if rival is not None and wins(count, rival) and (shared or wins(following, rival)):
            found[count] = rival
        before = found[count]
    return found


def _with_next(counts: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield each with the next one; the last with itself."""
    return zip(counts, [*counts[1:], *counts[-1:]], strict=True)
