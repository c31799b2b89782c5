"""The probe: what it measures in how much time, which passes it finds to agree, and its manners."""

import dataclasses
import threading
from collections.abc import Callable, Generator
from itertools import islice
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from helpers.fake_target import PARAMS, SECONDS, Rounds, fake_engine, output
from helpers.random_pair import EXPERTS, random_pair
from helpers.slow_target import Clock, Layer, Pass, SlowTarget
from mlx_gemma_mtp.decode.table import PassClass, PassTable
from mlx_gemma_mtp.engine.agreement import CAPACITIES, WIDTHS
from mlx_gemma_mtp.engine.passes import Passes, Shaped
from mlx_gemma_mtp.engine.probe import (
    EXPERT_POINTS,
    LEAST_POINTS,
    POINTS,
    Probe,
    measure,
)
from mlx_gemma_mtp.engine.worker import mlx_worker
from mlx_gemma_mtp.memory import Limits

ALL = (1, 64, 1, 16)  # the class of a target all of whose passes agree
CHUNKS = Limits().chunks


def measured(target: SlowTarget, **options: Any) -> PassTable | None:
    table = measure(target, None, clock=target.clock, **options)  # type: ignore[arg-type]
    assert target.ways is target.before
    return table


def found(target: SlowTarget) -> PassTable:
    table = measured(target)
    assert table is not None
    return table


def alike(one: PassTable, other: PassTable) -> bool:
    """True if the tables differ in the last digits of times at most."""
    times = [(one.passes, other.passes), (one.experts, other.experts)]
    rest = [dataclasses.replace(table, passes={1: 1.0}, experts={}) for table in (one, other)]
    return rest[0] == rest[1] and all(mine == pytest.approx(theirs) for mine, theirs in times)


def test_the_table_is_what_passes_take_and_all_of_them_agree() -> None:
    table = found(SlowTarget(lambda tokens: 0.001 + tokens / 1e4))
    assert table.passes == pytest.approx({n: 0.001 + n / 1e4 for n in sorted(POINTS)})
    assert (table.classes, table.chunks) == ((PassClass(*ALL),), CHUNKS)
    assert (table.experts, table.ways, table.steps) == ({}, {}, {})
    assert PassTable.from_json(table.to_json()) == table


def test_a_pass_has_no_more_rows_than_an_engine() -> None:
    for count in POINTS:
        counts, positions, width = Shaped.of(count)
        assert sum(counts) == width == count
        assert len(counts) <= 8
        assert max(counts) == positions


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0.0001, len(POINTS)), (0.2, 13), (0.6, LEAST_POINTS), (0.7, None), (20.0, None)],
)
def test_with_little_time_the_most_useful_are_measured_or_nothing(
    seconds: float, expected: int | None
) -> None:
    target = SlowTarget(lambda _: seconds)
    table = measured(target)
    assert (table and len(table.passes)) == expected
    if table is not None:
        assert list(table.passes) == sorted(POINTS[: len(table.passes)])
    # Ends in time, but for what is going on.
    assert target.clock.now <= max(10, 2 * seconds) + 2 * seconds


@pytest.mark.parametrize(
    ("quirk", "classes"),
    [
        (lambda one: one.width == 1, [(1, 1, 1, 16), (2, 64, 1, 16)]),
        (lambda one: one.width >= 8, [(1, 7, 1, 16), (8, 64, 1, 16)]),
        (lambda one: one.width, [(width, width, 1, 16) for width in sorted(WIDTHS)]),
        (lambda one: one.positions > 8, [(1, 64, 1, 8), (1, 64, 9, 16)]),
        (lambda one: one.batch == 1 and one.positions == 2, []),
        (lambda one: one.batch, []),
        (lambda one: one.capacity > CAPACITIES[0], []),
        (lambda one: one.capacity > 1000 and one.positions > 4, [(1, 64, 1, 4)]),
    ],
)
def test_classes_are_the_ranges_of_passes_that_agree(
    quirk: Callable[[Pass], float], classes: list[tuple[int, ...]]
) -> None:
    for where in ("quirk", "kept_quirk"):
        table = found(SlowTarget(**{where: lambda one: quirk(one) * 2**-10}))  # type: ignore[arg-type]
        assert list(map(tuple, table.classes)) == classes
        assert table.chunks == CHUNKS


def test_with_little_time_there_is_no_class_that_was_not_tested() -> None:
    numbers = list[int]()
    for seconds in (0.018, 0.03, 0.04, 0.05, 10):
        table = measured(SlowTarget(quirk=lambda one: one.width), seconds=seconds)
        assert table is not None
        assert all(one.least_width == one.most_width for one in table.classes)
        numbers.append(len(table.classes))
    assert numbers == sorted(numbers)
    assert 0 == numbers[0] < numbers[2] < numbers[-1] == len(WIDTHS)


@pytest.mark.parametrize(
    ("quirk", "chunks"),
    [
        (lambda size: size, CHUNKS[:1]),
        (lambda size: size > 256, CHUNKS[:3]),
        (lambda size: size == 64, CHUNKS[1:]),
        (lambda size: size == 512, (*CHUNKS[:3], *CHUNKS[4:])),
    ],
)
def test_chunks_are_most_of_the_sizes_that_agree(
    quirk: Callable[[int], float], chunks: tuple[int, ...]
) -> None:
    for where in ("read_quirk", "read_kept_quirk"):
        table = found(SlowTarget(**{where: lambda size: quirk(size) * 2**-10}))  # type: ignore[arg-type]
        assert table.chunks == chunks


def test_chunks_are_compared_as_far_as_time_allows() -> None:
    target = SlowTarget(lambda tokens: tokens / 500)
    table = found(target)
    assert 1 <= len(table.chunks) < len(CHUNKS)
    assert target.clock.now < 10


def cost(way: str, tokens: int) -> float:
    """Pairs take as long as there are tokens; all experts always the same; others are slow."""
    return {"pairs": tokens * 1e-5, "all": 0.00023}.get(way, 0.001)


def test_the_quickest_way_is_found_and_used_and_limits_the_classes() -> None:
    target = SlowTarget(lambda _: 0.001, experts=cost)
    # `all` has other bits, see Layer. 24 tokens are quicker with `all`, but hardly.
    table = found(target)
    assert table.ways == {
        count: "pairs" if count <= 24 else "all" for count in sorted(EXPERT_POINTS)
    }
    seconds = {n: 6 * cost(way, n) for n, way in table.ways.items()}
    assert table.experts == pytest.approx(seconds)
    assert [tuple(one) for one in table.classes] == [(1, 24, 1, 16)]
    assert {*target.used} == {"pairs", "all"}


def test_experts_of_every_format_limit_the_classes() -> None:
    target = SlowTarget(lambda _: 0.001, experts=cost)
    target.layers = [*target.layers, Layer(target.clock, cost, bits=8, odd_from=13)]
    assert [tuple(one) for one in found(target).classes] == [(1, 12, 1, 16)]


def test_without_rivals_no_pass_is_timed_with_another_way() -> None:
    target = SlowTarget(experts=lambda way, _: 0.0001 if way == "pairs" else 0.0002)
    table = found(target)
    assert {*target.used} == {*table.ways.values()} == {"pairs"}
    assert list(table.passes) == sorted(POINTS)


def test_ways_change_for_good_reasons_only() -> None:
    equal = found(SlowTarget(experts=lambda way, n: (100 + (len(way) + n) % 3) * 1e-6))
    assert {*equal.ways.values()} == {"pairs"}

    def one_blip(way: str, tokens: int) -> float:
        return 0.001 if tokens == 8 and way != "tiles" else 1e-5 + len(way) * 1e-6

    assert {*found(SlowTarget(experts=one_blip)).ways.values()} == {"all"}


def in_pass(way: str, tokens: int) -> float:
    """Pairs of more than 10 tokens slow a pass down."""
    return 0.01 if way == "pairs" and tokens > 10 else 0.0


def nearly(way: str, tokens: int) -> float:
    """Alone, all experts take a little longer than pairs, from 12 to 32 tokens; others longer."""
    longer = 1.1 if 12 <= tokens < 48 else 0.9 if tokens >= 48 else 1.5
    return {"pairs": 1.0, "all": longer}.get(way, 2.0) * 1e-4


def test_whole_passes_decide_between_ways_that_take_nearly_as_long_alone() -> None:
    target = SlowTarget(lambda tokens: tokens / 1e4, experts=nearly, in_pass=in_pass)
    table = found(target)
    assert table.ways == {n: "all" if n >= 12 else "pairs" for n in sorted(EXPERT_POINTS)}
    # Of passes in these ways, also of 13, 20 and 33 tokens.
    assert table.passes == pytest.approx({n: n / 1e4 for n in sorted(POINTS)})
    assert table.experts == pytest.approx({n: 6 * nearly(way, n) for n, way in table.ways.items()})
    assert [tuple(one) for one in table.classes] == [(1, 10, 1, 16)]


@pytest.mark.parametrize(
    ("seconds", "all_from", "left_out"),
    [(0.04, 12, set()), (0.055, 12, {13, 20, 33}), (0.06, 32, {33}), (0.07, 48, set())],
)
def test_rivals_are_tried_in_the_time_that_all_passes_leave(
    seconds: float, all_from: int, left_out: set[int]
) -> None:
    assert {*EXPERT_POINTS} <= {*POINTS}
    table = found(SlowTarget(lambda _: seconds, experts=nearly, in_pass=in_pass))
    assert table.ways == {n: "all" if n >= all_from else "pairs" for n in sorted(EXPERT_POINTS)}
    # No pass has the seconds of another way.
    expected = {n: seconds + in_pass("all" if n >= all_from else "pairs", n) for n in POINTS}
    assert table.passes == pytest.approx({n: expected[n] for n in {*POINTS} - left_out})


def test_a_real_pair_is_measured_whole(rng: np.random.Generator) -> None:
    target, drafter = random_pair(rng, experts=EXPERTS)[:2]
    before, clock = target.ways, Clock()
    clock.look = 0.001
    table = measure(target, drafter, limits=Limits(chunks=(8, 16)), seconds=1e9, clock=clock)
    assert table is not None
    assert target.ways is before
    assert list(table.passes) == sorted(POINTS)
    assert list(table.steps) == [1, 2, 4, 8]
    assert list(table.ways) == list(table.experts) == sorted(EXPERT_POINTS)
    print("classes on this CPU:", [tuple(one) for one in table.classes], table.chunks)
    target.set_ways(table.ways)
    for one in table.classes:  # other passes of the class agree as well
        hold(Passes(target, Limits()), one)


def hold(passes: Passes, one: PassClass) -> None:
    """Check a class with passes that the probe did not compare."""
    width = (one.least_width + one.most_width) // 2
    positions = min((one.least_positions + one.most_positions) // 2, width)
    cache = passes.near(3)
    narrow = passes.bits(cache, Shaped([1, 0, 0], max(one.least_positions, 1), width))
    wide = passes.bits(cache, Shaped([positions, 0, 0], positions, one.most_width))
    assert narrow[0, 0] == wide[0, 0]


def steps_of(target: SlowTarget) -> Generator[Probe]:
    """A probe, again after each of its steps."""
    probe = mlx_worker().run(lambda: Probe(target, None, clock=target.clock))  # type: ignore[arg-type]
    while mlx_worker().run(probe.step):
        yield probe


def test_stopped_at_any_step_it_leaves_no_trace() -> None:
    whole = found(SlowTarget(experts=cost))
    num_steps = len(list(steps_of(SlowTarget(experts=cost))))
    before = mlx_worker().run(mx.get_active_memory)
    for last in range(0, num_steps, num_steps // 6):
        target = SlowTarget(experts=cost)
        probe = next(islice(steps_of(target), last, None))
        mlx_worker().run(probe.stop)
        assert not mlx_worker().run(probe.step)
        assert probe.table is None
        assert target.ways is target.before
        del probe
        assert mlx_worker().run(mx.get_active_memory) <= before
    assert alike(found(target), whole)


def test_an_error_in_it_is_raised_and_leaves_no_trace() -> None:
    target = SlowTarget(quirk=lambda one: 1 // (one.width - 6), experts=cost)
    with pytest.raises(ZeroDivisionError):
        measured(target)
    assert target.ways is target.before


def test_a_request_of_another_engine_goes_first(prompts: list[list[int]]) -> None:
    target, rounds, shares = SlowTarget(), Rounds(), list[float]()
    with fake_engine(player=rounds.player) as engine:
        probe = next(steps_of(target))
        rounds.then = lambda: shares.append(probe.share)
        generation = engine.submit(prompts[1], PARAMS)
        while mlx_worker().run(probe.step):
            pass
        assert generation.result().tokens == output(prompts[1], 16)
    assert len({*shares}) == 1  # nothing was measured between its rounds
    assert probe.table is not None
    assert alike(probe.table, found(SlowTarget()))


def test_it_gives_up_if_others_take_all_the_time() -> None:
    target = SlowTarget()
    probe = next(steps_of(target))

    def busy_step() -> bool:
        mlx_worker().submit(lambda: None)
        return probe.step()

    spent = target.clock.now
    assert mlx_worker().run(busy_step)
    assert target.clock.now == spent
    target.clock.now += 100
    assert not mlx_worker().run(busy_step)
    assert probe.table is None


def test_two_probes_at_once_take_turns() -> None:
    tables = list[PassTable]()
    target = [SlowTarget(), SlowTarget(lambda _: 0.002)]
    both = [threading.Thread(target=lambda one=one: tables.append(found(one))) for one in target]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join(SECONDS)
    assert sorted(table.passes[1] for table in tables) == pytest.approx([0.001, 0.002])
