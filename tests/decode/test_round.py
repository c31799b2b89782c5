"""What a round leaves alone: unwritten slots and free rows. It never waits for the device."""

import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from unittest.mock import Mock

import mlx.core as mx
import numpy as np
import pytest

from helpers.checkpoints import VOCAB, PairPaths
from helpers.plain import each_structure, some_kind
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
    play,
    speculate,
    start,
    watched_engine,
)
from mlx_gemma_mtp import Engine, SamplingParams, device
from mlx_gemma_mtp.decode.control import counts_of_prompts
from mlx_gemma_mtp.decode.player import RoundPlayer, round_player
from mlx_gemma_mtp.decode.round import Layout, Newest, Round, agreeing_prefix
from mlx_gemma_mtp.decode.sampling import RowSettings, row_settings
from mlx_gemma_mtp.engine.pair import open_pair
from mlx_gemma_mtp.model.cache import Buffers, KVCache

STALE = 1e3


# No copy of the cache


@each_structure
def test_a_round_copies_no_cache(models: Models, rng: np.random.Generator) -> None:
    at = start(models.target, rng, [40, 25], capacity=8192)
    settings = row_settings([FILTERED] * 2)

    def peak() -> int:
        """Peak bytes of one round with 3 drafts, minus what was there before."""
        mx.clear_cache()
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        play(models, at, settings, [3, 3], 3)
        return mx.get_peak_memory() - before

    before = addresses(at.cache)
    # What it does need: the scores of one layer's attention, over the same 8192 positions.
    assert peak() < at.cache.nbytes / 2
    assert addresses(at.cache) == before

    view = at.cache.values[0][:1, :, :2]
    mx.eval(view)
    play(models, at, settings, [3, 3], 3)
    after = addresses(at.cache)
    moved = [i for i, (old, new) in enumerate(zip(before, after, strict=True)) if old != new]
    assert moved == [len(at.cache.keys)]  # a view costs a copy of its buffer alone
    del view

    held = buffers(at.cache)
    assert peak() > at.cache.nbytes
    assert not set(addresses(at.cache)) & set(after)
    del held


@each_structure
def test_the_buffers_of_an_engine_at_work_never_move(
    pair: PairPaths, rng: np.random.Generator
) -> None:
    """To look waits for the device, so only every third round is looked at."""
    seen: list[tuple[tuple[int, ...], list[int]]] = []
    calls = itertools.count()

    def watch(verify: Callable[..., Round], cache: KVCache, *rest: Any) -> Round:
        if next(calls) % 3 == 0:
            seen.append((cache.keys[0].shape, addresses(cache)))
        return verify(cache, *rest)

    prompts = [rng.integers(0, VOCAB, size).tolist() for size in (3, 40, 150)]
    settings = [
        SamplingParams(max_tokens=30, num_draft_tokens=size, ignore_eos=True) for size in (3, 0, 3)
    ]
    with watched_engine(pair, watch) as engine:
        engine.generate(prompts, settings)
    same_rows = [(one, other) for one, other in itertools.pairwise(seen) if one[0] == other[0]]
    assert len(same_rows) >= 3
    assert all(one == other for one, other in same_rows)


@pytest.mark.slow
@pytest.mark.skipif(device.backend() == "cpu", reason="a CPU has no command buffers")
def test_nor_do_they_with_very_large_command_buffers() -> None:
    """In another process: MLX reads the limits once."""
    limits = {"MLX_MAX_OPS_PER_BUFFER": "1000000", "MLX_MAX_MB_PER_BUFFER": "1000000"}
    test = f"{__file__}::test_the_buffers_of_an_engine_at_work_never_move"
    run = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", test]
    done = subprocess.run(run, env=os.environ | limits, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


# Rolling back


@each_structure
def test_a_round_writes_its_own_slots_and_advances_by_what_it_accepted(
    models: Models, rng: np.random.Generator
) -> None:
    num_drafts = 5
    offsets = [40, 25, 33, 12, 60, 7]
    right = rng.permutation([0, 1, 2, 3, 5, 5])  # drafts that agree, by row
    max_accepted = [5, 5, 1, 5, -1, 5]
    at = start(models.target, rng, offsets)
    settings = row_settings([GREEDY, SAMPLED, FILTERED, SAMPLED, GREEDY, FILTERED])
    ahead = at.copy()
    plain = [play(models, ahead, settings, [0] * 6, 0).newest for _ in range(num_drafts + 1)]
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
    at.cache.keys, at.cache.values = stale[:half], stale[half:]
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
    after = play(models, at, settings, [0] * 6, 0)
    for row in range(6):
        if 0 <= accepted[row] < num_drafts:
            assert after.tokens.tolist()[row] == [true[row, accepted[row] + 1]]


# Free rows


@each_structure
def test_free_rows_stay_where_they_are_and_stay_finite(
    models: Models, rng: np.random.Generator
) -> None:
    offsets = [0, 40, 25, CAPACITY - 1]  # never used; live; ended; ended at the end of its buffer
    max_accepted = [-1, 3, -1, -1]
    at = start(models.target, rng, offsets)
    settings = row_settings([None, FILTERED, None, None])
    for _ in range(5):
        played = play(models, at, settings, max_accepted, 3)
        assert [played.accepted.tolist()[row] for row in (0, 2, 3)] == [-1] * 3
        assert mx.isfinite(played.newest.hidden).all().item()
        assert all(mx.isfinite(buffer).all().item() for buffer in buffers(at.cache))
    moved = at.cache.offset.tolist()
    assert [moved[row] for row in (0, 2, 3)] == [offsets[row] for row in (0, 2, 3)]
    assert moved[1] >= offsets[1] + 5


@each_structure
def test_free_rows_do_not_change_the_live_ones(models: Models, rng: np.random.Generator) -> None:
    at = start(models.target, rng, [40, 0, 25, 33])
    live = [0, 3]
    index = mx.array(live)
    alone = at.copy()
    alone.cache.resize(live, CAPACITY)
    alone.newest = Newest(at.newest.token[index], at.newest.hidden[index])
    for _ in range(4):
        beside = play(models, at, row_settings([FILTERED, None, None, GREEDY]), [3, -1, -1, 3], 3)
        own = play(models, alone, row_settings([FILTERED, GREEDY]), [3, 3], 3)
        assert [beside.tokens.tolist()[row] for row in live] == own.tokens.tolist()
        assert [beside.accepted.tolist()[row] for row in live] == own.accepted.tolist()
        np.testing.assert_allclose(beside.newest.hidden[index], own.newest.hidden, atol=1e-3)


# No host reads


def trace(
    models: Models, at: Start, settings: RowSettings, num_draft_tokens: int, **functions: Any
) -> None:
    """Run a round on arrays without values; anything that asks for one raises."""

    def both(buffers: Buffers, *rest: Any) -> Any:
        cache = KVCache(at.cache.config, buffers)
        return speculate(*models, cache, *rest, **functions), cache.buffers

    layout = Layout(mx.full((len(at.newest.token),), num_draft_tokens, mx.int32), packing=None)
    mx.compile(both)(at.cache.buffers, at.newest, settings, layout, num_draft_tokens)


@pytest.fixture
def nobody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `mx.synchronize` raise: it needs no array, so tracing would not notice it."""
    refused = ValueError("waited for the device during graph transformations")
    monkeypatch.setattr(mx, "synchronize", Mock(side_effect=refused))


@each_structure
@pytest.mark.usefixtures("nobody_waits")
@pytest.mark.parametrize("num_draft_tokens", [0, 3])
def test_a_round_makes_no_host_read(
    models: Models, rng: np.random.Generator, num_draft_tokens: int
) -> None:
    at = start(models.target, rng, [40, 0, 25])
    suppress = mx.arange(5)
    for rows in ([GREEDY] * 3, [SAMPLED, None, SAMPLED], [GREEDY, None, FILTERED]):
        trace(models, at, row_settings(rows), num_draft_tokens)
        trace(models, at, row_settings(rows, suppress), num_draft_tokens)
    every = replace(FILTERED, repetition_penalty=1.1, logit_bias={3: 1.0}, min_p=0.1, logprobs=3)
    settings = row_settings([GREEDY, None, every], suppress, VOCAB)
    at.newest = at.newest._replace(counts=counts_of_prompts([[1, 2]] * 3, VOCAB))
    trace(models, at, settings, num_draft_tokens)


READS: list[Callable[[mx.array], object]] = [
    *(mx.eval, mx.async_eval, np.array, str, mx.array.tolist),
    lambda x: x.sum().item(),
    lambda x: int(x.sum()),
    lambda x: bool(x.any()),
    lambda _: mx.synchronize(),
]


@some_kind
@pytest.mark.usefixtures("nobody_waits")
@pytest.mark.parametrize("read", READS)
def test_a_host_read_in_a_round_would_be_noticed(
    models: Models, rng: np.random.Generator, read: Callable[[mx.array], object]
) -> None:
    def reading(drafts: mx.array, chosen: mx.array) -> mx.array:
        read(chosen)
        return agreeing_prefix(drafts, chosen)

    at = start(models.target, rng, [20])
    with pytest.raises((ValueError, RuntimeError), match="transformation"):
        trace(models, at, row_settings([GREEDY]), 3, agree=reading)


@some_kind
@pytest.mark.parametrize("num_draft_tokens", [0, 2])
def test_drafts_are_dispatched_before_a_round_is_read_and_verified_after_it(
    pair: PairPaths, monkeypatch: pytest.MonkeyPatch, num_draft_tokens: int
) -> None:
    events: list[tuple[str, int]] = []
    drafts: list[mx.array] = []  # kept, so that no other array gets the identity of one of theirs
    rounds: list[Round] = []

    def recorded_player(*models: Any) -> RoundPlayer:
        player = round_player(*models)

        def draft(*arguments: Any) -> mx.array:
            drafts.append(player.draft(*arguments))
            return drafts[-1]

        def verify(*arguments: Any) -> Round:
            rounds.append(player.verify(*arguments))
            return rounds[-1]

        return RoundPlayer(draft, verify)

    def named(argument: Any) -> tuple[str, int]:
        """Which half of which round this is, or belongs to."""
        for i, one in enumerate(drafts):
            if argument is one:
                return "draft", i
        for i, round_ in enumerate(rounds):
            if any(argument is one for one in (round_, round_.tokens, round_.accepted)):
                return "verify", i
        return "other", -1

    def recorded(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def record(*arguments: Any) -> Any:
            if drafts:  # prefill is over
                what, which = named(arguments[0])
                events.append((f"{name} {what}", which))
            return call(*arguments)

        return record

    settings = SamplingParams(
        max_tokens=12, temperature=0, num_draft_tokens=num_draft_tokens, ignore_eos=True
    )
    with Engine(open_pair(*pair), player=recorded_player) as engine:
        monkeypatch.setattr(mx, "async_eval", recorded("dispatch", mx.async_eval))
        monkeypatch.setattr(mx, "eval", recorded("eval", mx.eval))
        for reader in ("tolist", "item", "__array__", "__int__", "__bool__"):
            monkeypatch.setattr(mx.array, reader, recorded("read", getattr(mx.array, reader)))
        engine.generate([5, 6, 7], settings)
        monkeypatch.undo()

    last = len(rounds) - 1
    assert last == 10 or num_draft_tokens
    expected = [("dispatch draft", 0), ("dispatch verify", 0)]
    for i in range(1, last + 1):
        expected.append(("dispatch draft", i))
        reads, verify = 2 * [("read verify", i - 1)], [("dispatch verify", i)]
        expected += reads + verify if num_draft_tokens else verify + reads
    if expected.count(("dispatch verify", last)) > events.count(("dispatch verify", last)):
        expected.pop()  # the output ended in the round before: no pass of the target follows
    else:
        expected += 2 * [("read verify", last)]
    assert events == expected
