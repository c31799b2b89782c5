"""What a round leaves alone: the host, every buffer it does not write, the rows that are free.

And the cache under it: which slots a query sees, moving a row in, growing.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
import pytest

from helpers.checkpoints import VOCAB, PairPaths
from mlx_gemma_mtp import SamplingParams, load
from mlx_gemma_mtp.decode import round as speculate
from mlx_gemma_mtp.decode.round import Head, PlayRound, Round
from mlx_gemma_mtp.decode.sampling import RowSettings, row_settings
from mlx_gemma_mtp.engine import engine
from mlx_gemma_mtp.files.checkpoint import read_config
from mlx_gemma_mtp.files.weights import load_drafter, load_target
from mlx_gemma_mtp.model import cache
from mlx_gemma_mtp.model.cache import KVCache, capacity_for
from mlx_gemma_mtp.model.config import TargetConfig
from mlx_gemma_mtp.model.drafter import Drafter
from mlx_gemma_mtp.model.target import Target

MOST = 16  # the most positions one forward writes in these tests
CAPACITY = 256
SOME_KIND = "E2B"  # for what does not depend on the kind
STALE = 1e3

GREEDY = SamplingParams(temperature=0, top_k=0, top_p=1, seed=1)
SAMPLED = SamplingParams(temperature=1, top_k=0, top_p=1, seed=2)
FILTERED = SamplingParams(temperature=1, top_k=64, top_p=0.95, seed=3)


class Models(NamedTuple):
    target: Target
    drafter: Drafter


class Stand(NamedTuple):
    """Where some rows stand before a round."""

    cache: KVCache
    head: Head

    def copy(self) -> "Stand":
        """The same in buffers of its own."""
        old = self.cache
        keys, values = ([mx.array(np.array(b)) for b in part] for part in (old.keys, old.values))
        return Stand(KVCache(old.config, old.offset, keys, values), self.head)


def load_models(pair: PairPaths) -> Models:
    target = load_target(pair.target, dtype=mx.float32)
    return Models(target, load_drafter(pair.drafter, target.config, dtype=mx.float32))


@pytest.fixture(scope="module")
def models(pair: PairPaths) -> Models:
    return load_models(pair)


@pytest.fixture(scope="module")
def some_models(pairs: dict[str, PairPaths]) -> Models:
    return load_models(pairs[SOME_KIND])


def stand(
    target: Target, rng: np.random.Generator, offsets: list[int], capacity: int = CAPACITY
) -> Stand:
    """Rows with this many committed positions of random text.

    Beyond the offset they hold stale keys and values, as after rejected drafts. Offset 0 is a row
    that was never used.
    """
    size, longest = len(offsets), max(offsets)
    rows = KVCache.empty(target.config, size, capacity=capacity, most=MOST, dtype=mx.float32)
    offset = mx.array(offsets, mx.int32)
    hidden = mx.zeros((size, 1, target.config.hidden_size))
    for start in range(0, longest, MOST):
        tokens = mx.array(rng.integers(0, VOCAB, (size, min(MOST, longest - start))))
        # A row never has more stale positions than one forward writes.
        rows.offset = mx.minimum(mx.array(start), offset)
        hidden = target(tokens, rows)[:, -1:]
    used = offset[:, None, None, None] > 0
    rows.keys = [mx.where(used, buffer, 0) for buffer in rows.keys]
    rows.values = [mx.where(used, buffer, 0) for buffer in rows.values]
    rows.offset = offset
    newest = mx.where(offset > 0, mx.array(rng.integers(0, VOCAB, size)), 0).astype(mx.int32)
    head = Head(newest, mx.where(used[..., 0], hidden, 0))
    mx.eval(rows.keys, rows.values, rows.offset, head)
    return Stand(rows, head)


def play(
    models: Models, at: Stand, settings: RowSettings, limit: list[int], num_draft_tokens: int
) -> Round:
    """One round, evaluated; moves at.cache on."""
    limits = mx.array(limit, mx.int32)
    played = speculate.speculate(*models, *at, settings, limits, num_draft_tokens)
    mx.eval(played, at.cache.keys, at.cache.values, at.cache.offset)
    return played


def buffers(rows: KVCache) -> list[mx.array]:
    return [*rows.keys, *rows.values]


def copies(rows: KVCache) -> list[np.ndarray]:
    return [np.array(buffer) for buffer in buffers(rows)]


def addresses(rows: KVCache) -> list[int]:
    """Where the buffers lie in memory. No view of them is left behind."""
    return [np.array(buffer, copy=False).ctypes.data for buffer in buffers(rows)]


# No host read


def trace(models: Models, at: Stand, settings: RowSettings, num_draft_tokens: int) -> None:
    """Run a round on arrays without values; whatever asks for one raises."""
    given = {name: part for name, part in settings._asdict().items() if isinstance(part, mx.array)}

    def play_round(
        given: dict[str, mx.array],
        offset: mx.array,
        keys: list[mx.array],
        values: list[mx.array],
        head: Head,
        limit: mx.array,
    ) -> Any:
        rows = KVCache(at.cache.config, offset, keys, values)
        own = settings._replace(**given)
        played = speculate.speculate(*models, rows, head, own, limit, num_draft_tokens)
        return played, rows.offset, rows.keys, rows.values

    limit = mx.full((len(at.head.newest),), num_draft_tokens, mx.int32)
    rows = at.cache
    mx.compile(play_round)(given, rows.offset, rows.keys, rows.values, at.head, limit)


@pytest.fixture
def nobody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """`mx.synchronize` needs no array, so tracing would not notice it."""

    def synchronize(*_: object) -> None:
        raise ValueError("waited for the device during graph transformations")

    monkeypatch.setattr(mx, "synchronize", synchronize)


@pytest.mark.usefixtures("nobody_waits")
@pytest.mark.parametrize("num_draft_tokens", [0, 3])
def test_a_round_makes_no_host_read(
    models: Models, rng: np.random.Generator, num_draft_tokens: int
) -> None:
    at = stand(models.target, rng, [40, 0, 25])
    suppress = mx.where(mx.arange(VOCAB) < 5, -mx.inf, 0.0)
    for rows in ([GREEDY] * 3, [SAMPLED, None, SAMPLED], [GREEDY, None, FILTERED]):
        trace(models, at, row_settings(rows), num_draft_tokens)
        trace(models, at, row_settings(rows, suppress), num_draft_tokens)


READS: dict[str, Callable[[mx.array], object]] = {
    "item": lambda x: x.sum().item(),
    "tolist": lambda x: x.tolist(),
    "int": lambda x: int(x.sum()),
    "bool": lambda x: bool(x.any()),
    "numpy": lambda x: np.array(x),
    "print": lambda x: str(x),
    "eval": lambda x: mx.eval(x),
    "async_eval": lambda x: mx.async_eval(x),
    "synchronize": lambda x: mx.synchronize(),
}


@pytest.mark.usefixtures("nobody_waits")
@pytest.mark.parametrize("read", READS)
def test_a_host_read_in_a_round_would_be_noticed(
    some_models: Models, rng: np.random.Generator, read: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    agreeing_prefix = speculate.agreeing_prefix

    def reading(drafts: mx.array, chosen: mx.array) -> mx.array:
        READS[read](chosen)
        return agreeing_prefix(drafts, chosen)

    monkeypatch.setattr(speculate, "agreeing_prefix", reading)
    at = stand(some_models.target, rng, [20])
    with pytest.raises((ValueError, RuntimeError), match="transformation"):
        trace(some_models, at, row_settings([GREEDY]), 3)


def test_the_next_round_is_dispatched_before_the_last_is_read(
    pairs: dict[str, PairPaths], monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[tuple[str, int]] = []
    rounds: list[Round] = []  # kept, so that no other array gets the identity of one of theirs

    def number(array: mx.array) -> int:
        found = [i for i, r in enumerate(rounds) if array is r.tokens or array is r.accepted]
        return found[0] if found else -1

    def recording_player(*pair: Any) -> PlayRound:
        play_round = speculate.round_player(*pair)

        def record(*arguments: Any) -> Round:
            rounds.append(play_round(*arguments))
            events.append(("play", len(rounds) - 1))
            return rounds[-1]

        return record

    def recorded(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def record(*arguments: Any) -> Any:
            if rounds:  # prefill is over
                which = arguments[0] if name != "dispatch" else arguments[0].tokens
                events.append((name, number(which) if isinstance(which, mx.array) else -1))
            return call(*arguments)

        return record

    monkeypatch.setattr(engine, "round_player", recording_player)
    monkeypatch.setattr(mx, "async_eval", recorded("dispatch", mx.async_eval))
    monkeypatch.setattr(mx, "eval", recorded("eval", mx.eval))
    for reader in ("tolist", "item", "__array__", "__int__", "__bool__"):
        monkeypatch.setattr(mx.array, reader, recorded("read", getattr(mx.array, reader)))
    with load(*pairs[SOME_KIND]) as running:
        settings = SamplingParams(max_tokens=12, temperature=0, num_draft_tokens=0, ignore_eos=True)
        running.generate([5, 6, 7], settings)
    monkeypatch.undo()

    last = len(rounds) - 1
    assert last == 10
    expected = [("play", 0), ("dispatch", 0)]
    for i in range(1, last + 1):
        expected += [("play", i), ("dispatch", i), ("read", i - 1), ("read", i - 1)]
    expected += [("read", last), ("read", last)]
    assert events == expected


# No copy of the cache


def peak_of_a_round(models: Models, at: Stand) -> int:
    """Bytes that one round with 3 drafts needs at its worst, beyond what was there before."""
    settings = row_settings([FILTERED] * len(at.head.newest))
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    play(models, at, settings, [3] * len(at.head.newest), 3)
    return mx.get_peak_memory() - before


def test_a_round_copies_no_cache(models: Models, rng: np.random.Generator) -> None:
    at = stand(models.target, rng, [40, 25], capacity=8192)
    before = addresses(at.cache)
    # What it does need: the scores of one layer's attention, over the same 8192 positions.
    assert peak_of_a_round(models, at) < at.cache.nbytes / 2
    assert addresses(at.cache) == before

    held = buffers(at.cache)
    assert peak_of_a_round(models, at) > at.cache.nbytes
    assert not set(addresses(at.cache)) & set(before)
    del held


def test_one_held_view_costs_one_buffer(models: Models, rng: np.random.Generator) -> None:
    at = stand(models.target, rng, [40, 25])
    before = addresses(at.cache)
    view = at.cache.values[0][:1, :, :2]
    mx.eval(view)
    play(models, at, row_settings([GREEDY] * 2), [3, 3], 3)
    moved = [i for i, new in enumerate(addresses(at.cache)) if new != before[i]]
    assert moved == [len(at.cache.keys)]
    del view


def test_an_engine_at_work_holds_no_second_reference_to_its_buffers(
    pair: PairPaths, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    stayed: list[bool] = []

    def watching_player(*models: Any) -> PlayRound:
        play_round = speculate.round_player(*models)

        def watch(rows: KVCache, *rest: Any) -> Round:
            mx.eval(rows.keys, rows.values)
            before = addresses(rows)
            played = play_round(rows, *rest)
            mx.eval(played, rows.keys, rows.values)
            stayed.append(addresses(rows) == before)
            return played

        return watch

    monkeypatch.setattr(engine, "round_player", watching_player)
    prompts = [rng.integers(0, VOCAB, size).tolist() for size in (3, 40, 250)]
    settings = [
        SamplingParams(max_tokens=size, num_draft_tokens=3, ignore_eos=True) for size in (9, 4, 7)
    ]
    with load(*pair) as running:
        running.generate(prompts, settings)
    assert len(stayed) >= 2
    assert all(stayed)


# Rolling back


def plain_rounds(models: Models, at: Stand, settings: RowSettings, count: int) -> list[Head]:
    """Where every row stands after each of the next rounds without drafts."""
    own, heads = at.copy(), []
    for _ in range(count):
        heads.append(play(models, own, settings, [0] * len(at.head.newest), 0).head)
        own = Stand(own.cache, heads[-1])
    return heads


def test_a_round_writes_its_own_slots_and_moves_on_by_what_it_accepted(
    models: Models, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_drafts = 5
    offsets = [40, 25, 33, 12, 60, 7]
    right = rng.permutation([0, 1, 2, 3, 5, 5])  # drafts that come true, by row
    limit = [5, 5, 1, 5, -1, 5]
    at = stand(models.target, rng, offsets)
    settings = row_settings([GREEDY, SAMPLED, FILTERED, SAMPLED, GREEDY, FILTERED])
    plain = plain_rounds(models, at, settings, num_drafts + 1)
    true = np.stack([np.array(head.newest) for head in plain], axis=1)  # [B, K + 1]
    drafts = true[:, :num_drafts].copy()
    for row, count in enumerate(right):
        if count < num_drafts:  # what follows the wrong one is right again, and must not count
            drafts[row, count] = (drafts[row, count] + 1) % VOCAB
    monkeypatch.setattr(speculate, "draft", lambda *_: mx.array(drafts))

    # Where it must write lies what would wreck a row that still saw it.
    before, offset = copies(at.cache), at.cache.offset
    for buffer in before:
        for row, start in enumerate(offsets):
            buffer[row][:, np.arange(start, start + num_drafts + 1) % buffer.shape[2]] = STALE
    stale = [mx.array(buffer) for buffer in before]
    at.cache.keys, at.cache.values = stale[: len(stale) // 2], stale[len(stale) // 2 :]
    del stale
    played = play(models, at, settings, limit, num_drafts)

    accepted = np.minimum(right, limit)
    assert played.accepted.tolist() == accepted.tolist()
    assert at.cache.offset.tolist() == (np.array(offsets) + accepted + 1).tolist()
    assert offset.tolist() == offsets  # replaced, not changed: RoPE may still hold it
    for row, count in enumerate(accepted):
        assert played.tokens.tolist()[row][: count + 1] == true[row, : count + 1].tolist()
        if limit[row] >= 0:
            assert played.head.newest.tolist()[row] == true[row, count]
            hidden = played.head.hidden[row], plain[count].hidden[row]
            np.testing.assert_allclose(*hidden, atol=1e-3)
    for old, new in zip(before, copies(at.cache), strict=True):
        for row, start in enumerate(offsets):
            written = np.arange(start, start + num_drafts + 1) % old.shape[2]
            untouched = np.setdiff1d(np.arange(old.shape[2]), written)
            assert (new[row][:, untouched] == old[row][:, untouched]).all()
            assert (new[row][:, written] != STALE).all()

    # What was rejected leaves no trace: the next token is the one of plain decoding.
    monkeypatch.undo()
    live = [row for row, most in enumerate(limit) if most >= 0]
    after = play(models, Stand(at.cache, played.head), settings, [0] * 6, 0)
    for row in live:
        if accepted[row] < num_drafts:
            assert after.tokens.tolist()[row] == [true[row, accepted[row] + 1]]


# Free rows


def test_free_rows_stay_where_they_are_and_stay_finite(
    models: Models, rng: np.random.Generator
) -> None:
    offsets = [0, 40, 25, CAPACITY - 1]  # never used; live; ended; ended at the end of its buffer
    limit = [-1, 3, -1, -1]
    at = stand(models.target, rng, offsets)
    settings = row_settings([None, FILTERED, None, None])
    for _ in range(5):
        played = play(models, at, settings, limit, 3)
        at = Stand(at.cache, played.head)
        assert [played.accepted.tolist()[row] for row in (0, 2, 3)] == [-1] * 3
        assert mx.isfinite(played.head.hidden).all().item()
        assert all(mx.isfinite(buffer).all().item() for buffer in buffers(at.cache))
    moved = at.cache.offset.tolist()
    assert [moved[row] for row in (0, 2, 3)] == [offsets[row] for row in (0, 2, 3)]
    assert moved[1] >= offsets[1] + 5


def test_free_rows_do_not_change_the_live_ones(models: Models, rng: np.random.Generator) -> None:
    at = stand(models.target, rng, [40, 0, 25, 33])
    live = [0, 3]
    index = mx.array(live)

    def only(parts: list[mx.array]) -> list[mx.array]:
        return [part[index] for part in parts]

    rows = at.cache
    alone = Stand(
        KVCache(rows.config, rows.offset[index], only(rows.keys), only(rows.values)),
        Head(at.head.newest[index], at.head.hidden[index]),
    )
    for _ in range(4):
        beside = play(models, at, row_settings([FILTERED, None, None, GREEDY]), [3, -1, -1, 3], 3)
        own = play(models, alone, row_settings([FILTERED, GREEDY]), [3, 3], 3)
        at, alone = Stand(at.cache, beside.head), Stand(alone.cache, own.head)
        assert [beside.tokens.tolist()[row] for row in live] == own.tokens.tolist()
        assert [beside.accepted.tolist()[row] for row in live] == own.accepted.tolist()
        np.testing.assert_allclose(beside.head.hidden[index], own.head.hidden, atol=1e-3)


# The cache


@pytest.fixture(scope="module")
def config(pairs: dict[str, PairPaths]) -> TargetConfig:
    return TargetConfig.from_dict(read_config(pairs[SOME_KIND].target))


def test_a_query_sees_the_committed_positions_of_its_window_and_itself(
    config: TargetConfig, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "SLOT_STEP", 1)  # the tightest ring
    window, most, size = config.sliding_window, 8, 4
    rows = KVCache.empty(config, size, capacity=1024, most=most, dtype=mx.float32)
    assert rows.capacity("sliding_attention") == window + most
    # What really lies in each slot, stale drafts included; -1: nothing yet.
    held = {kind: np.full((size, rows.capacity(kind)), -1) for kind in config.kinds}
    offset = np.zeros(size, int)
    while offset.min() <= 2 * (window + most):  # until all rows have passed the ring's end twice
        num_positions = int(rng.integers(1, most + 1))
        reach = {kind: rows.reach(kind, num_positions) for kind in config.kinds}
        for kind, positions in held.items():
            nearest = window if kind == "sliding_attention" else 10**6
            slots, mask = np.array(reach[kind].slots), np.array(reach[kind].mask)
            assert mask.shape == (size, 1, num_positions, rows.capacity(kind))
            for row in range(size):
                queries = offset[row] + np.arange(num_positions)
                positions[row, slots[row, 0, :, 0]] = queries
                for i, query in enumerate(queries):
                    seen = positions[row][mask[row, 0, i]]
                    assert sorted(seen) == list(range(max(0, query - nearest + 1), query + 1))
        offset = offset + rng.integers(0, num_positions + 1, size)  # the rest is rolled back
        rows.offset = mx.array(offset.astype(np.int32))
        for kind, positions in held.items():
            nearest = window if kind == "sliding_attention" else 10**6
            mask = np.array(rows.memory(kind).mask)
            for row in np.flatnonzero(offset):
                seen = positions[row][mask[row, 0, 0]]
                assert sorted(seen) == list(range(max(0, offset[row] - nearest), offset[row]))


@pytest.mark.parametrize("length", [1, 5, 8, 23, 50, 300])
def test_take_over_moves_the_committed_positions_and_nothing_else(
    config: TargetConfig, rng: np.random.Generator, length: int
) -> None:
    mine = KVCache.empty(config, 3, capacity=CAPACITY, most=MOST, dtype=mx.float32)
    mine.keys, mine.values = (
        [mx.array(rng.standard_normal(b.shape, dtype=np.float32)) for b in part]
        for part in (mine.keys, mine.values)
    )
    # Rings of different sizes, so that a position has another slot on either side.
    other = KVCache.empty(config, 1, capacity=capacity_for(length), most=45, dtype=mx.float32)
    assert other.capacity("sliding_attention") != mine.capacity("sliding_attention")
    for number, part in enumerate((other.keys, other.values)):
        for index, buffer in enumerate(part):
            slots = buffer.shape[2]
            content = np.full(buffer.shape, -1.0, np.float32)
            for position in range(length + 7):  # 7 stale drafts
                content[:, :, position % slots] = position + 1000 * index + 0.5 * number
            part[index] = mx.array(content)
    before = copies(mine)
    mine.take_over(1, other, length)

    layers = [*config.layers[: config.num_kv_layers]] * 2
    for number, (layer, old, new) in enumerate(zip(layers, before, copies(mine), strict=True)):
        assert new.shape[2] == (
            max(CAPACITY, capacity_for(length)) if layer.kind == "full_attention" else old.shape[2]
        )
        sliding = layer.kind == "sliding_attention"
        first = max(0, length - config.sliding_window) if sliding else 0
        moved = np.arange(first, length)
        index, value = number % config.num_kv_layers, number // config.num_kv_layers
        expected = moved + 1000 * index + 0.5 * value
        assert (new[1][:, moved % new.shape[2]] == expected[None, :, None]).all()
        kept = np.setdiff1d(np.arange(old.shape[2]), moved % new.shape[2])
        assert not new[1][:, kept].any()  # nothing of the row that was here before
        assert (new[[0, 2], :, : old.shape[2]] == old[[0, 2]]).all()
    assert other.nbytes == 0
    assert mine.offset.tolist() == [0, 0, 0]


def test_growing_keeps_everything_and_touches_full_attention_only(
    config: TargetConfig, rng: np.random.Generator
) -> None:
    rows = KVCache.empty(config, 2, capacity=CAPACITY, most=MOST, dtype=mx.float32)
    rows.keys, rows.values = (
        [mx.array(rng.standard_normal(b.shape, dtype=np.float32)) for b in part]
        for part in (rows.keys, rows.values)
    )
    before, places = copies(rows), addresses(rows)
    for capacity in (CAPACITY, CAPACITY - 1, 1):
        rows.grow(capacity)
        assert addresses(rows) == places  # never shrinks, and copies nothing in vain
    ring = rows.capacity("sliding_attention")
    rows.grow(2 * CAPACITY)
    assert rows.capacity("full_attention") == 2 * CAPACITY
    assert rows.capacity("sliding_attention") == ring
    for old, new in zip(before, copies(rows), strict=True):
        assert (new[:, :, : old.shape[2]] == old).all()
        assert not new[:, :, old.shape[2] :].any()


def fill(rows: KVCache, rng: np.random.Generator) -> None:
    rows.keys, rows.values = (
        [mx.array(rng.standard_normal(b.shape, dtype=np.float32)) for b in part]
        for part in (rows.keys, rows.values)
    )
    rows.offset = mx.array(rng.integers(1, CAPACITY, rows.offset.shape[0]), mx.int32)


@pytest.mark.parametrize("capacity", [CAPACITY, CAPACITY // 2, 2 * CAPACITY])
@pytest.mark.parametrize(
    "order", [[0, 1, 2], [2], [1, None], [2, 0, None, None], [None, None, None, 1, None, 0, 2]]
)
def test_resizing_takes_rows_as_they_are_and_fresh_ones(
    config: TargetConfig, rng: np.random.Generator, order: list[int | None], capacity: int
) -> None:
    rows = KVCache.empty(config, 3, capacity=CAPACITY, most=MOST, dtype=mx.float32)
    fill(rows, rng)
    before, offset = copies(rows), rows.offset.tolist()
    size = rows.nbytes
    rows.resize(order, capacity)
    layers = [*config.layers[: config.num_kv_layers]] * 2
    for layer, old, new in zip(layers, before, copies(rows), strict=True):
        slots = capacity if layer.kind == "full_attention" else old.shape[2]
        assert new.shape == (len(order), old.shape[1], slots, old.shape[3])
        for row, source in enumerate(order):
            kept = 0 if source is None else min(slots, old.shape[2])
            assert not new[row, :, kept:].any()
            assert source is None or (new[row, :, :kept] == old[source, :, :kept]).all()
    assert rows.offset.tolist() == [0 if row is None else offset[row] for row in order]
    assert rows.offset.dtype == mx.int32
    if len(order) < 3 and capacity <= CAPACITY:
        assert rows.nbytes < size


def test_resizing_needs_one_layer_more_than_the_larger_of_both(
    config: TargetConfig, rng: np.random.Generator
) -> None:
    for old, new in ((2, 4), (4, 2)):
        rows = KVCache.empty(config, old, capacity=4096, most=MOST, dtype=mx.float32)
        fill(rows, rng)
        mx.eval(rows.keys, rows.values)
        order = [*range(min(old, new)), *[None] * (new - old)]
        largest = max(buffer.nbytes for buffer in buffers(rows)) * max(old, new) // old
        most = rows.nbytes * max(old, new) // old
        mx.clear_cache()
        other = mx.get_active_memory() - rows.nbytes
        mx.reset_peak_memory()
        rows.resize(order, 4096)
        assert mx.get_peak_memory() - other <= most + 3 * largest


def test_resizing_happens_whole_or_not_at_all(
    config: TargetConfig, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = KVCache.empty(config, 3, capacity=CAPACITY, most=MOST, dtype=mx.float32)
    fill(rows, rng)
    before, offset = copies(rows), rows.offset.tolist()
    arranged = cache._arranged
    for fails_at in range(len(before)):
        calls: list[int] = []

        def arrange(*arguments: Any, fails_at: int = fails_at, calls: list[int] = calls) -> Any:
            calls.append(1)
            if len(calls) == fails_at + 1:
                raise RuntimeError("no memory")
            return arranged(*arguments)

        monkeypatch.setattr(cache, "_arranged", arrange)
        with pytest.raises(RuntimeError, match="no memory"):
            rows.resize([2, None, 0, 1], 2 * CAPACITY)
        assert len(calls) == 2 * fails_at + 1
        for old, new in zip(before, copies(rows), strict=True):
            assert old.shape == new.shape
            assert (old == new).all()
        assert rows.offset.tolist() == offset


def test_capacities_are_few_and_never_much_too_large() -> None:
    lengths = range(1, 262_144 + 1)
    capacities = [capacity_for(length) for length in lengths]
    assert all(a <= b for a, b in pairwise(capacities))
    assert all(length <= found for length, found in zip(lengths, capacities, strict=True))
    assert all(
        found - length < max(256, length / 8)
        for length, found in zip(lengths, capacities, strict=True)
    )
    assert all(found % cache.SLOT_STEP == 0 for found in capacities)
    assert len(set(capacities)) <= 64
    assert all(capacity_for(found) == found for found in set(capacities))
