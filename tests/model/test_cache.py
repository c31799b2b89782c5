"""The cache: which slots a query sees, moving a row in, growing and resizing."""

from dataclasses import replace
from itertools import chain, pairwise, repeat
from unittest.mock import Mock

import mlx.core as mx
import numpy as np
import pytest

from helpers import fake_target
from helpers.rounds import CAPACITY, MOST, addresses, buffers, copies
from mlx_gemma_mtp.model.cache import SLOT_STEP, KVCache, capacity_for
from mlx_gemma_mtp.model.layer_config import LayerKind

# Four sliding layers and two full ones, with two key/value heads each.
CONFIG = replace(
    fake_target.CONFIG,
    num_attention_heads=2,
    layers=tuple(
        replace(fake_target.CONFIG.layers[index % 3 == 2], num_key_value_heads=2, kv_source=index)
        for index in range(6)
    ),
)


def filled(rng: np.random.Generator, size: int, capacity: int = CAPACITY) -> KVCache:
    """A cache of random numbers, with random offsets."""
    cache = KVCache.empty(CONFIG, size, capacity=capacity, most=MOST, dtype=mx.float32)
    for part in (cache.keys, cache.values):
        part[:] = [mx.array(rng.standard_normal(b.shape, dtype=np.float32)) for b in part]
    cache.offset = mx.array(rng.integers(1, CAPACITY, size), mx.int32)
    mx.eval(cache.buffers)
    return cache


def test_a_query_sees_the_committed_positions_of_its_window_and_itself(
    rng: np.random.Generator,
) -> None:
    window, most, size = CONFIG.sliding_window, 8, 4
    shape = {"capacity": 1024, "most": most, "slot_step": 1}  # the smallest ring
    cache = KVCache.empty(CONFIG, size, dtype=mx.float32, **shape)
    assert cache.capacity("sliding_attention") == window + most
    # The position in each slot, stale drafts included; -1: nothing yet.
    held = {kind: np.full((size, cache.capacity(kind)), -1) for kind in CONFIG.kinds}

    def assert_sees(kind: LayerKind, row: int, mask: np.ndarray, end: int) -> None:
        first = max(0, end - window) if kind == "sliding_attention" else 0
        assert sorted(held[kind][row][mask]) == list(range(first, end))

    offset = np.zeros(size, int)
    while offset.min() <= 2 * (window + most):  # until all rows have passed the ring's end twice
        num_positions = int(rng.integers(1, most + 1))
        reach = {kind: cache.reach(kind, num_positions) for kind in CONFIG.kinds}
        for kind, positions in held.items():
            slots, mask = np.array(reach[kind].slots), np.array(reach[kind].mask)
            assert mask.shape == (size, 1, num_positions, cache.capacity(kind))
            for row in range(size):
                queries = offset[row] + np.arange(num_positions)
                positions[row, slots[row, 0, :, 0]] = queries
                for i, query in enumerate(queries):
                    assert_sees(kind, row, mask[row, 0, i], query + 1)
        offset = offset + rng.integers(0, num_positions + 1, size)  # the rest is rolled back
        cache.offset = mx.array(offset.astype(np.int32))
        for kind, shared in cache.shared(CONFIG).items():
            mask = np.array(shared.mask)
            for row in np.flatnonzero(offset):
                assert_sees(kind, row, mask[row, 0, 0], offset[row])


@pytest.mark.parametrize("length", [1, 5, 8, 23, 50, 300])
def test_take_over_moves_the_committed_positions_and_nothing_else(
    rng: np.random.Generator, length: int
) -> None:
    mine = filled(rng, 3)
    offset = mine.offset.tolist()
    # Rings of different sizes, so that a position has another slot on either side.
    other = KVCache.empty(CONFIG, 1, capacity=capacity_for(length), most=45, dtype=mx.float32)
    assert other.capacity("sliding_attention") != mine.capacity("sliding_attention")
    for number, part in enumerate((other.keys, other.values)):
        for index, buffer in enumerate(part):
            slots = buffer.shape[2]
            content = np.full(buffer.shape, -1.0, np.float32)
            for position in range(length + 7):  # 7 stale drafts
                content[:, :, position % slots] = position + 1000 * index + 0.5 * number
            part[index] = mx.array(content)
    mine.grow(capacity_for(length))
    before = copies(mine)
    mine.take_over(other, [(1, 0, length)])

    layers = [*CONFIG.layers[: CONFIG.num_kv_layers]] * 2
    for number, (layer, old, new) in enumerate(zip(layers, before, copies(mine), strict=True)):
        sliding = layer.kind == "sliding_attention"
        first = max(0, length - CONFIG.sliding_window) if sliding else 0
        moved = np.arange(first, length)
        index, value = number % CONFIG.num_kv_layers, number // CONFIG.num_kv_layers
        expected = moved + 1000 * index + 0.5 * value
        assert (new[1][:, moved % new.shape[2]] == expected[None, :, None]).all()
        kept = np.setdiff1d(np.arange(old.shape[2]), moved % new.shape[2])
        assert not new[1][:, kept].any()  # nothing of the row that was here before
        assert (new[[0, 2]] == old[[0, 2]]).all()
    assert other.nbytes == 0
    assert mine.offset.tolist() == offset


def test_what_is_taken_from_a_row_is_given_to_all_rows_of_another_ring(
    rng: np.random.Generator,
) -> None:
    cache, row = filled(rng, 3), 1
    length = CAPACITY - 3
    other = KVCache.empty(
        CONFIG, 2, capacity=CAPACITY, most=MOST + 5, dtype=mx.float32, slot_step=1
    )
    for kind in CONFIG.kinds:
        start = max(0, length - CONFIG.sliding_window) if kind == "sliding_attention" else 0
        taken = cache.taken(kind, row, start, length)
        assert sum(one.nbytes for one in taken) == (length - start) * cache.bytes_of(kind)
        other.put(kind, taken, start)
        for each in range(2):
            pairs = zip(other.taken(kind, each, start, length), taken, strict=True)
            assert all(mx.array_equal(mine, theirs) for mine, theirs in pairs)


def test_growing_never_shrinks_and_copies_only_if_it_must(rng: np.random.Generator) -> None:
    cache = filled(rng, 2)
    places = addresses(cache)
    for capacity in (CAPACITY, CAPACITY - 1, 1):
        cache.grow(capacity)
        assert addresses(cache) == places
    cache.grow(2 * CAPACITY)
    assert cache.capacity("full_attention") == 2 * CAPACITY


@pytest.mark.parametrize("capacity", [CAPACITY, CAPACITY // 2, 2 * CAPACITY])
@pytest.mark.parametrize(
    "order", [[0, 1, 2], [2], [1, None], [2, 0, None, None], [None, None, None, 1, None, 0, 2]]
)
def test_resizing_keeps_rows_as_they_are_and_adds_fresh_ones(
    rng: np.random.Generator, order: list[int | None], capacity: int
) -> None:
    cache = filled(rng, 3)
    before, offset = copies(cache), cache.offset.tolist()
    size = cache.nbytes
    cache.resize(order, capacity)
    layers = [*CONFIG.layers[: CONFIG.num_kv_layers]] * 2
    for layer, old, new in zip(layers, before, copies(cache), strict=True):
        slots = capacity if layer.kind == "full_attention" else old.shape[2]
        assert new.shape == (len(order), old.shape[1], slots, old.shape[3])
        for row, source in enumerate(order):
            kept = 0 if source is None else min(slots, old.shape[2])
            assert not new[row, :, kept:].any()
            assert source is None or (new[row, :, :kept] == old[source, :, :kept]).all()
    assert cache.offset.tolist() == [0 if row is None else offset[row] for row in order]
    assert cache.offset.dtype == mx.int32
    if len(order) < 3 and capacity <= CAPACITY:
        assert cache.nbytes < size


def test_resizing_needs_one_layer_more_than_the_larger_of_both(rng: np.random.Generator) -> None:
    for old, new in ((2, 4), (4, 2)):
        cache = filled(rng, old, capacity=4096)
        order = [*range(min(old, new)), *[None] * (new - old)]
        largest = max(buffer.nbytes for buffer in buffers(cache)) * max(old, new) // old
        most = cache.nbytes * max(old, new) // old
        mx.clear_cache()
        other = mx.get_active_memory() - cache.nbytes
        mx.reset_peak_memory()
        cache.resize(order, 4096)
        assert mx.get_peak_memory() - other <= most + 3 * largest


def test_resizing_happens_completely_or_not_at_all(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = filled(rng, 3)
    before, offset = copies(cache), cache.offset.tolist()
    for fails_at in range(1 + len(before)):  # the offset, and every buffer
        outcomes = chain([None] * fails_at, [RuntimeError("no memory")], repeat(None))
        with monkeypatch.context() as patch:
            patch.setattr(mx, "eval", Mock(side_effect=outcomes))
            with pytest.raises(RuntimeError, match="no memory"):
                cache.resize([2, None, 0, 1], 2 * CAPACITY)
        for old, new in zip(before, copies(cache), strict=True):
            assert old.shape == new.shape
            assert (old == new).all()
        assert cache.offset.tolist() == offset


def test_capacities_are_few_and_never_much_too_large() -> None:
    found = {length: capacity_for(length) for length in range(1, 262_144 + 1)}
    assert all(a <= b for a, b in pairwise(found.values()))
    assert all(0 <= size - length < max(256, length / 8) for length, size in found.items())
    sizes = set(found.values())
    assert all(size % SLOT_STEP == 0 and capacity_for(size) == size for size in sizes)
    assert len(sizes) <= 64
