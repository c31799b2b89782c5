"""Which way to compute experts is taken: by their own times, and by those of whole passes."""

from collections.abc import Mapping
from typing import get_args

import pytest

from mlx_gemma_mtp.engine.expert_ways import RIVAL, TIE, Alone, quickest, rivals, settled
from mlx_gemma_mtp.model.experts import Way

# Milliseconds by tokens of 26B-A4B in 4 bits on an H200: experts of four layers, and whole passes.
PAIRS = {16: 2.21, 24: 2.69, 32: 3.41, 48: 4.64}
ALL = {16: 2.40, 24: 3.35, 32: 3.49, 48: 4.01}
PASSES_WITH_PAIRS = {16: 28.3, 24: 32.9, 32: 37.7, 48: 47.1}
PASSES_WITH_ALL = {16: 27.8, 24: 34.6, 32: 35.2, 48: 39.5}


def alone(**times: Mapping[int, float]) -> Alone:
    """Experts that take these times; ways without any take much longer."""
    counts = next(iter(times.values()))
    every = get_args(Way)
    return Alone(
        {(n, way): times.get(way, {}).get(n, 100.0) for n in counts for way in every}, 0, 1
    )


def after_passes(
    ways: Mapping[int, Way], tried: Mapping[int, Way], gains: Mapping[int, float]
) -> list[Way]:
    """The ways after passes of rivals were timed that are this many times as quick."""
    passes = dict.fromkeys(ways, 1.0)
    return [*settled(ways, tried, passes, {n: 1 / gain for n, gain in gains.items()}).values()]


def test_on_an_h200_whole_passes_leave_pairs_earlier_than_experts_alone() -> None:
    for extra in ({}, {"sorted": {n: 1.01 * one for n, one in PAIRS.items()}}):  # a closer rival
        found = alone(pairs=PAIRS, all=ALL, **extra)
        ways = quickest(found)
        assert ways == {16: "pairs", 24: "pairs", 32: "pairs", 48: "all"}
        tried = rivals(found, ways)
        assert (tried[16], tried[32]) == ("all", "all")
        assert tried.get(24) != "all"  # takes 25% longer
        assert 48 not in tried  # pairs take 16% longer
        timed = {n: PASSES_WITH_ALL[n] if way == "all" else 99.0 for n, way in tried.items()}
        passes = {n: PASSES_WITH_ALL[n] if n == 48 else PASSES_WITH_PAIRS[n] for n in ways}
        assert settled(ways, tried, passes, timed) == {**ways, 32: "all"}
        assert settled(ways, tried, passes, {}) == ways  # no time for rivals


def test_a_rival_takes_hardly_longer_and_the_likeliest_come_first() -> None:
    times = {1: 1.0, 2: 1.0, 4: 1.0, 8: 2.0}
    found = alone(
        pairs=times,
        all={1: RIVAL + 0.01, 2: 2.0, 4: RIVAL - 0.01, 8: 1.0},
        padded={1: 1.02, 2: 1.01, 4: 1.02, 8: 1.02},
        sorted={1: 1.01, 2: 1.02, 4: 1.01, 8: 1.01},
    )
    # `all` is the way for 8. For the others, the quickest.
    expected = {4: "all", 1: "sorted", 2: "padded", 8: "sorted"}
    assert list(rivals(found, quickest(found)).items()) == list(expected.items())


def test_without_a_way_nearly_as_quick_or_without_experts_there_is_no_rival() -> None:
    found = alone(pairs=PAIRS)
    assert {*quickest(found).values()} == {"pairs"}
    assert rivals(found, quickest(found)) == {}
    nothing = Alone({}, 0.0, 0.0)
    assert (quickest(nothing), rivals(nothing, {}), settled({}, {}, {1: 1.0}, {})) == ({}, {}, {})
    assert nothing.of_a_pass({}) == {}


@pytest.mark.parametrize(
    ("gains", "expected"),
    [
        ({}, "pairs pairs pairs pairs"),
        ({2: TIE + 0.01}, "pairs pairs pairs pairs"),  # a blip
        ({1: 1.2, 4: 1.2}, "pairs pairs pairs pairs"),  # two
        ({2: TIE + 0.01, 4: TIE + 0.01}, "pairs all all pairs"),
        ({2: TIE + 0.01, 4: TIE - 0.01}, "pairs pairs pairs pairs"),
        ({1: 1.2, 2: 1.2, 4: 1.2, 8: 1.2}, "all all all all"),
        ({8: 1.2}, "pairs pairs pairs all"),  # the last number has no next one
    ],
)
def test_a_rival_is_not_taken_for_a_blip(gains: dict[int, float], expected: str) -> None:
    ways: dict[int, Way] = dict.fromkeys((1, 2, 4, 8), "pairs")
    tried: dict[int, Way] = dict.fromkeys(ways, "all")
    assert after_passes(ways, tried, gains) == expected.split()


def test_the_way_of_fewer_or_more_tokens_is_taken_if_its_pass_is_quicker() -> None:
    ways: dict[int, Way] = {1: "pairs", 2: "all", 4: "all", 8: "all"}
    assert after_passes(ways, {2: "pairs", 4: "pairs"}, {2: 1.1, 4: 1.0}) == [
        "pairs", "pairs", "all", "all"
    ]  # fmt: skip
    assert after_passes(ways, {1: "all"}, {1: 1.1}) == ["all"] * 4
    assert after_passes(ways, {1: "sorted", 2: "tiles"}, {1: 1.1, 2: 1.1}) == [*ways.values()]


def test_seconds_of_experts_are_those_of_the_ways_without_what_any_timing_takes() -> None:
    found = Alone(
        {(1, "pairs"): 0.5, (1, "all"): 0.6, (8, "pairs"): 1.0, (8, "all"): 0.9}, 0.48, 10
    )
    seconds = found.of_a_pass({1: "pairs", 8: "all"})
    assert seconds == pytest.approx({1: 0.5, 8: 4.2})  # the first: at least a tenth
