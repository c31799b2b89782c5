"""The probe: what it measures in how much time, which passes it finds to agree, and its manners."""

from __future__ import annotations

import dataclasses
import math
import threading
from collections.abc import Callable, Generator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from helpers.fake_target import CONFIG, PARAMS, SECONDS, Rounds, fake_engine, fake_pair, output
from helpers.random_pair import EXPERTS, random_pair
from mlx_gemma_mtp import load
from mlx_gemma_mtp.decode.table import PassClass, PassTable
from mlx_gemma_mtp.engine.agreement import BATCHES, CAPACITIES, WIDTHS, runs
from mlx_gemma_mtp.engine.load import with_table
from mlx_gemma_mtp.engine.pair import OpenPair, open_pair
from mlx_gemma_mtp.engine.passes import Passes, Shaped, digests
from mlx_gemma_mtp.engine.probe import (
    EXPERT_POINTS,
    LEAST_POINTS,
    POINTS,
    Probe,
    measure,
)
from mlx_gemma_mtp.engine.worker import mlx_worker
from mlx_gemma_mtp.errors import UsageError
from mlx_gemma_mtp.files.remembered import load_table, save_table
from mlx_gemma_mtp.memory import Limits
from mlx_gemma_mtp.model.cache import KVCache
from mlx_gemma_mtp.model.config import KINDS, LayerKind
from mlx_gemma_mtp.model.experts import default_ways
from mlx_gemma_mtp.model.packing import Packing
from mlx_gemma_mtp.model.prompt import prompt_reach

ALL = (1, 64, 1, 16)  # the class of a target all of whose passes agree
CHUNKS = Limits().chunks


class Clock:
    """Time passes when somebody says so, and with each look if `look` is set."""

    now = look = 0.0

    def __call__(self) -> float:
        self.now += self.look
        return self.now


@dataclasses.dataclass
class Pass:
    """What the bits of a pass may depend on."""

    batch: int
    positions: int
    width: int
    capacity: int


class Layer:
    """Experts that take their time. They have other bits with `all`, and from `odd_from` tokens."""

    def __init__(
        self,
        clock: Clock,
        seconds: Callable[[str, int], float],
        bits: int = 4,
        odd_from: float = math.inf,
    ) -> None:
        self._clock, self._seconds, self._bits, self._odd_from = clock, seconds, bits, odd_from
        self.experts = self

    def parameters(self) -> dict[str, mx.array]:
        return {"weight": mx.zeros((self._bits,))}

    def router(self, x: mx.array) -> tuple[mx.array, mx.array]:
        return mx.zeros((len(x), 2), mx.uint32), mx.ones((len(x), 2))

    def __call__(self, x: mx.array, chosen: mx.array, shares: mx.array, way: str) -> mx.array:
        assert len(x) == len(chosen) == len(shares)
        self._clock.now += self._seconds(way, len(x))
        return x + (1.0 if way == "all" or len(x) >= self._odd_from else 0.0)


class SlowTarget:
    """A target whose passes take a time that is known, and may differ in the last bit.

    seconds: of a pass of this many tokens. quirk: added to the states of a pass. kept_quirk: to
    its keys. read_quirk, read_kept_quirk: the same of a pass over this many tokens of a prompt.
    """

    dtype = mx.float32

    def __init__(
        self,
        seconds: Callable[[int], float] = lambda _: 0.001,
        quirk: Callable[[Pass], float] = lambda _: 0,
        kept_quirk: Callable[[Pass], float] = lambda _: 0,
        read_quirk: Callable[[int], float] = lambda _: 0,
        read_kept_quirk: Callable[[int], float] = lambda _: 0,
        experts: Callable[[str, int], float] | None = None,
    ) -> None:
        self.clock = Clock()
        sizes = {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 1}
        self.config = dataclasses.replace(CONFIG, **sizes) if experts else CONFIG
        self.ways = self.before = default_ways(self.config)
        self.layers = [Layer(self.clock, experts)] * 6 if experts else []
        self.used: list[str] = []
        self._seconds, self._quirk = seconds, quirk
        self._kept_quirk = kept_quirk
        self._read_quirk, self._read_kept_quirk = read_quirk, read_kept_quirk

    def set_ways(self, ways: dict[int, str]) -> None:
        self.ways = default_ways(self.config).measured(ways)

    def parameters(self) -> dict[str, Any]:
        return {}

    def logits(self, hidden: mx.array) -> mx.array:
        return hidden * mx.arange(1.0, 5.0)

    def __call__(
        self, tokens: mx.array, cache: KVCache, packing: Packing | None = None
    ) -> mx.array:
        batch, positions = tokens.shape
        width = tokens.size if packing is None else packing.rows.size
        shape = Pass(batch, positions, width, cache.capacity("full_attention"))
        self.clock.now += self._seconds(width)
        self.used.append(self.ways[width])
        reaches = {kind: cache.reach(kind, positions) for kind in KINDS}
        self._write(tokens + self._kept_quirk(shape), cache, reaches)
        hidden = tokens[..., None] + mx.array(self._quirk(shape))
        return hidden if packing is None else packing.pack(hidden)

    def read(
        self, tokens: mx.array, cache: KVCache, start: int, lengths: Sequence[int], least: int = 1
    ) -> mx.array:
        size = tokens.shape[1]
        self.clock.now += self._seconds(size)
        reaches = {kind: prompt_reach(cache, kind, size, start) for kind in KINDS}
        self._write(tokens + self._read_kept_quirk(size), cache, reaches)
        hidden = tokens[..., None] + mx.array(self._read_quirk(size))
        return mx.take_along_axis(hidden, mx.array(lengths)[:, None, None] - 1, axis=1)

    def _write(self, tokens: mx.array, cache: KVCache, reaches: dict[LayerKind, Any]) -> None:
        for index, layer in enumerate(self.config.layers):
            k = mx.repeat(tokens[:, None, :, None].astype(mx.float32), 2, axis=3)
            cache.write(index, k, 2 * k, reaches[layer.kind])


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


def test_ways_change_for_good_reasons_only() -> None:
    equal = found(SlowTarget(experts=lambda way, n: (100 + (len(way) + n) % 3) * 1e-6))
    assert {*equal.ways.values()} == {"pairs"}

    def one_blip(way: str, tokens: int) -> float:
        return 0.001 if tokens == 8 and way != "tiles" else 1e-5 + len(way) * 1e-6

    assert {*found(SlowTarget(experts=one_blip)).ways.values()} == {"all"}


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


@pytest.fixture
def key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Under which a table may be kept in a file of this test."""
    monkeypatch.setenv("MGM_CACHE_DIR", str(tmp_path))
    return "model 0"


def slow_pair(key: str | None, **options: Any) -> OpenPair:
    pair = fake_pair(SlowTarget(**options))  # type: ignore[arg-type]
    return pair._replace(drafter=None, fingerprint=key)


def test_a_pair_is_measured_once(key: str) -> None:
    shares = list[float]()
    pair = with_table(slow_pair(key), True, shares.append)
    assert shares == sorted(shares)
    assert pair.table is not None
    assert load_table(key) == pair.table
    again = with_table(slow_pair(key), True, pytest.fail)
    assert again.table == pair.table
    assert with_table(slow_pair(key), "auto").table == pair.table  # measured or not


def test_exact_measures_again_if_no_passes_were_found_to_agree(key: str) -> None:
    pair = with_table(slow_pair(key), True)
    assert pair.table is not None
    save_table(key, dataclasses.replace(pair.table, classes=()))
    assert with_table(slow_pair(key), "auto", pytest.fail).table != pair.table
    again = with_table(slow_pair(key), True).table
    assert again is not None
    assert again == load_table(key)
    assert again.classes == pair.table.classes


@pytest.mark.parametrize("exact", ["auto", False])
def test_on_a_cpu_only_exact_needs_it(key: str, exact: Any) -> None:
    assert with_table(slow_pair(key), exact, pytest.fail).table is None
    assert load_table(key) is None


def test_interrupted_it_keeps_nothing_and_starts_again_next_time(key: str) -> None:
    pair, calls = slow_pair(key), list[float]()

    def interrupt(share: float) -> None:
        calls.append(share)
        if len(calls) == 30:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        with_table(pair, True, interrupt)
    assert load_table(key) is None
    assert with_table(pair, True).table is not None


def test_if_memory_is_short_there_is_no_table_but_a_note(key: str) -> None:
    def fail(_: int) -> float:
        raise RuntimeError("[malloc] Unable to allocate 1024 bytes.")

    pair = with_table(slow_pair(key, seconds=fail), True)
    assert pair.table is None
    assert "could not be measured" in pair.notes[-1]
    assert load_table(key) is None


def test_a_pair_without_a_key_is_measured_but_not_kept(tmp_path: Path, key: str) -> None:
    assert with_table(slow_pair(None), True).table is not None
    assert not list(tmp_path.iterdir())


def test_load_measures_unless_told_not_to(key: str) -> None:
    own = open_pair("demo").fingerprint
    assert own is not None
    load("demo", probe=pytest.fail).close()  # on a CPU
    with pytest.raises(UsageError, match="probe must be"):
        load("demo", probe=10)  # type: ignore[arg-type]
    load("demo", exact=True, probe=False).close()
    assert load_table(own) is None
    save_table(own, PassTable(passes={1: 0.1}, classes=(PassClass(1, 64, 1, 16),)))
    load("demo", exact=True, probe=pytest.fail).close()  # one is kept


def test_bits_that_differ_have_other_digests(rng: np.random.Generator) -> None:
    for dtype in (mx.float32, mx.bfloat16):
        drawn = rng.standard_normal((4, 33))
        drawn[:, 1] = 1.3 * drawn[:, 0]  # never equal, as types of few bits may be
        x = mx.array(drawn).astype(dtype)
        assert digests(x).tolist() == digests(mx.array(x)).tolist()
        swapped = x[:, mx.array([1, 0, *range(2, 33)])]
        assert all((digests(x) != digests(swapped)).tolist())
        bits = x.view(mx.uint32 if dtype == mx.float32 else mx.uint16)
        flipped = mx.concatenate([bits[:, :7], bits[:, 7:8] ^ 1, bits[:, 8:]], axis=1).view(dtype)
        assert all((digests(x) != digests(flipped)).tolist())


def test_runs_are_the_largest_ranges_that_agree() -> None:
    one, other = {(0, 0): (1,)}, {(0, 0): (2,)}
    assert runs({}) == []
    assert runs({4: one, 1: one, 2: one}) == [(1, 4)]
    assert runs({1: one, 2: other, 3: other, 9: one}) == [(1, 1), (2, 3), (9, 9)]
    assert runs({1: one, 2: None, 3: one}) == [(1, 1), (3, 3)]
    # What only the wide ones have counts as well.
    assert runs({1: one, 2: {**one, (0, 1): (1,)}, 3: {**one, (0, 1): (2,)}}) == [(1, 2), (3, 3)]


def test_what_is_compared_has_both_ends() -> None:
    assert {1, 8} <= {*BATCHES}
    assert {*POINTS} <= {*WIDTHS}


def test_two_probes_at_once_take_turns() -> None:
    tables = list[PassTable]()
    target = [SlowTarget(), SlowTarget(lambda _: 0.002)]
    both = [threading.Thread(target=lambda one=one: tables.append(found(one))) for one in target]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join(SECONDS)
    assert sorted(table.passes[1] for table in tables) == pytest.approx([0.001, 0.002])
