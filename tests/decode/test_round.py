"""What a round leaves alone: every slot that it does not write, and the rows that are free."""

from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from helpers.checkpoints import VOCAB, PairPaths
from helpers.rounds import (
    CAPACITY,
    FILTERED,
    GREEDY,
    SAMPLED,
    Models,
    Start,
    addresses,
    buffers,
    copies,
    load_models,
    play,
    start,
    watched_engine,
)
from mlx_gemma_mtp import SamplingParams
from mlx_gemma_mtp.decode.round import Newest, PlayRound, Round
from mlx_gemma_mtp.decode.sampling import RowSettings, row_settings
from mlx_gemma_mtp.model.cache import Buffers, KVCache

STALE = 1e3


@pytest.fixture(scope="module")
def models(pair: PairPaths) -> Models:
    return load_models(pair)


# No copy of the cache


def peak_of_a_round(models: Models, at: Start) -> int:
    """Peak bytes of one round with 3 drafts, minus what was there before."""
    settings = row_settings([FILTERED] * len(at.newest.token))
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    play(models, at, settings, [3] * len(at.newest.token), 3)
    return mx.get_peak_memory() - before


def test_a_round_copies_no_cache(models: Models, rng: np.random.Generator) -> None:
    at = start(models.target, rng, [40, 25], capacity=8192)
    before = addresses(at.cache)
    # What it does need: the scores of one layer's attention, over the same 8192 positions.
    assert peak_of_a_round(models, at) < at.cache.nbytes / 2
    assert addresses(at.cache) == before

    held = buffers(at.cache)
    assert peak_of_a_round(models, at) > at.cache.nbytes
    assert not set(addresses(at.cache)) & set(before)
    del held


def test_one_held_view_costs_one_buffer(models: Models, rng: np.random.Generator) -> None:
    at = start(models.target, rng, [40, 25])
    before = addresses(at.cache)
    view = at.cache.values[0][:1, :, :2]
    mx.eval(view)
    play(models, at, row_settings([GREEDY] * 2), [3, 3], 3)
    moved = [i for i, new in enumerate(addresses(at.cache)) if new != before[i]]
    assert moved == [len(at.cache.keys)]
    del view


def test_an_engine_at_work_holds_no_second_reference_to_its_buffers(
    pair: PairPaths, rng: np.random.Generator
) -> None:
    stayed: list[bool] = []

    def watch(play_round: PlayRound, cache: KVCache, *rest: Any) -> Round:
        mx.eval(cache.buffers)
        before = addresses(cache)
        played = play_round(cache, *rest)
        mx.eval(played, cache.buffers)
        stayed.append(addresses(cache) == before)
        return played

    prompts = [rng.integers(0, VOCAB, size).tolist() for size in (3, 40, 250)]
    settings = [
        SamplingParams(max_tokens=size, num_draft_tokens=3, ignore_eos=True) for size in (9, 4, 7)
    ]
    with watched_engine(pair, watch) as engine:
        engine.generate(prompts, settings)
    assert len(stayed) >= 2
    assert all(stayed)


# Rolling back


def plain_rounds(models: Models, at: Start, settings: RowSettings, count: int) -> list[Newest]:
    """The newest tokens after each of the next rounds without drafts."""
    own, found = at.copy(), []
    for _ in range(count):
        found.append(play(models, own, settings, [0] * len(at.newest.token), 0).newest)
        own = Start(own.cache, found[-1])
    return found


def test_a_round_writes_its_own_slots_and_advances_by_what_it_accepted(
    models: Models, rng: np.random.Generator
) -> None:
    num_drafts = 5
    offsets = [40, 25, 33, 12, 60, 7]
    right = rng.permutation([0, 1, 2, 3, 5, 5])  # drafts that agree, by row
    max_accepted = [5, 5, 1, 5, -1, 5]
    at = start(models.target, rng, offsets)
    settings = row_settings([GREEDY, SAMPLED, FILTERED, SAMPLED, GREEDY, FILTERED])
    plain = plain_rounds(models, at, settings, num_drafts + 1)
    true = np.stack([np.array(newest.token) for newest in plain], axis=1)  # [B, K + 1]
    drafts = true[:, :num_drafts].copy()
    for row, count in enumerate(right):
        if count < num_drafts:  # the drafts after the wrong one are right, and must not count
            drafts[row, count] = (drafts[row, count] + 1) % VOCAB

    # The slots that it must write hold what would wreck a row that still saw it.
    before, offset = copies(at.cache), at.cache.offset
    for buffer in before:
        for row, first in enumerate(offsets):
            buffer[row][:, np.arange(first, first + num_drafts + 1) % buffer.shape[2]] = STALE
    stale = [mx.array(buffer) for buffer in before]
    half = len(stale) // 2
    at.cache.buffers = Buffers(offset, stale[:half], stale[half:])
    del stale
    forced = {"draft": lambda *_: mx.array(drafts)}
    played = play(models, at, settings, max_accepted, num_drafts, **forced)

    accepted = np.minimum(right, max_accepted)
    assert played.accepted.tolist() == accepted.tolist()
    assert at.cache.offset.tolist() == (np.array(offsets) + accepted + 1).tolist()
    assert offset.tolist() == offsets  # replaced, not changed: RoPE may still hold it
    for row, count in enumerate(accepted):
        assert played.tokens.tolist()[row][: count + 1] == true[row, : count + 1].tolist()
        if max_accepted[row] >= 0:
            assert played.newest.token.tolist()[row] == true[row, count]
            hidden = played.newest.hidden[row], plain[count].hidden[row]
            np.testing.assert_allclose(*hidden, atol=1e-3)
    for old, new in zip(before, copies(at.cache), strict=True):
        for row, first in enumerate(offsets):
            written = np.arange(first, first + num_drafts + 1) % old.shape[2]
            untouched = np.setdiff1d(np.arange(old.shape[2]), written)
            assert (new[row][:, untouched] == old[row][:, untouched]).all()
            assert (new[row][:, written] != STALE).all()

    # Rejected drafts leave no trace: the next token is the one of plain decoding.
    live = [row for row, most in enumerate(max_accepted) if most >= 0]
    after = play(models, Start(at.cache, played.newest), settings, [0] * 6, 0)
    for row in live:
        if accepted[row] < num_drafts:
            assert after.tokens.tolist()[row] == [true[row, accepted[row] + 1]]


# Free rows


def test_free_rows_stay_where_they_are_and_stay_finite(
    models: Models, rng: np.random.Generator
) -> None:
    offsets = [0, 40, 25, CAPACITY - 1]  # never used; live; ended; ended at the end of its buffer
    max_accepted = [-1, 3, -1, -1]
    at = start(models.target, rng, offsets)
    settings = row_settings([None, FILTERED, None, None])
    for _ in range(5):
        played = play(models, at, settings, max_accepted, 3)
        at = Start(at.cache, played.newest)
        assert [played.accepted.tolist()[row] for row in (0, 2, 3)] == [-1] * 3
        assert mx.isfinite(played.newest.hidden).all().item()
        assert all(mx.isfinite(buffer).all().item() for buffer in buffers(at.cache))
    moved = at.cache.offset.tolist()
    assert [moved[row] for row in (0, 2, 3)] == [offsets[row] for row in (0, 2, 3)]
    assert moved[1] >= offsets[1] + 5


def test_free_rows_do_not_change_the_live_ones(models: Models, rng: np.random.Generator) -> None:
    at = start(models.target, rng, [40, 0, 25, 33])
    live = [0, 3]
    index = mx.array(live)
    old = at.cache.buffers
    keys, values = ([buffer[index] for buffer in part] for part in (old.keys, old.values))
    alone = Start(
        KVCache(at.cache.config, Buffers(old.offset[index], keys, values)),
        Newest(at.newest.token[index], at.newest.hidden[index]),
    )
    del old  # a second reference to the buffers
    for _ in range(4):
        beside = play(models, at, row_settings([FILTERED, None, None, GREEDY]), [3, -1, -1, 3], 3)
        own = play(models, alone, row_settings([FILTERED, GREEDY]), [3, 3], 3)
        at, alone = Start(at.cache, beside.newest), Start(alone.cache, own.newest)
        assert [beside.tokens.tolist()[row] for row in live] == own.tokens.tolist()
        assert [beside.accepted.tolist()[row] for row in live] == own.accepted.tolist()
        np.testing.assert_allclose(beside.newest.hidden[index], own.newest.hidden, atol=1e-3)
