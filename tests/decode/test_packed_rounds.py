"""A pass over packed tokens gives each of them what a whole pass gives; copies replace drafts."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from helpers import fake_target
from helpers.checkpoints import VOCAB
from helpers.divisions import packed, some_counts
from helpers.fake_target import FakeTarget, output
from helpers.plain import some_kind
from helpers.random_pair import EXPERTS, SHAPE
from helpers.rounds import FILTERED, GREEDY, MOST, SAMPLED, Models, speculate, start
from helpers.tying import TyingTarget
from mlx_gemma_mtp import SamplingParams
from mlx_gemma_mtp.decode.round import Copies, Layout, Newest, Round, verify
from mlx_gemma_mtp.decode.sampling import row_settings
from mlx_gemma_mtp.model.cache import Buffers, KVCache
from mlx_gemma_mtp.model.config import TargetConfig
from mlx_gemma_mtp.model.experts import Experts, Way
from mlx_gemma_mtp.model.packing import packing_of
from mlx_gemma_mtp.model.target import Target


def test_packed_tokens_come_back_to_their_positions(rng: np.random.Generator) -> None:
    for _ in range(200):
        size = int(rng.integers(1, 9))
        counts = some_counts(rng, size, 5)
        packing = packed(rng, counts, 5)
        if packing is None:
            continue
        x = rng.random((*packing.places.shape, 2), np.float32)
        listed = np.array(packing.pack(mx.array(x)))[0]
        assert listed[: packing.num_tokens].tolist() == [
            token for row, count in zip(x.tolist(), counts, strict=True) for token in row[:count]
        ]
        assert (listed[packing.num_tokens :] == listed[0]).all()
        back = np.array(packing.unpack(mx.array(listed)[None, : packing.num_tokens]))
        for row, count in enumerate(counts):
            assert (back[row, :count] == x[row, :count]).all()


def test_a_full_pass_needs_no_packing() -> None:
    assert packing_of([3, 3], 3, 6) is None
    assert packing_of([3, 3], 3, 7) is not None
    assert packing_of([3, 3], 4, 6) is not None


@pytest.mark.parametrize("sizes", [range(1, 4), range(4, 9)])
def test_a_packed_pass_gives_its_tokens_the_states_and_keys_of_a_whole_one(
    models: Models, rng: np.random.Generator, sizes: range
) -> None:
    most, size = MOST // 2, int(rng.choice(sizes))
    at = start(models.target, rng, rng.integers(1, 90, size).tolist())
    counts = some_counts(rng, size, most)
    packing = packed(rng, counts, most) or packing_of(counts, most, sum(counts) + 1)
    assert packing is not None
    num_positions = packing.places.shape[1]
    tokens = mx.array(rng.integers(0, VOCAB, (size, num_positions)))
    whole, part = at.copy().cache, at.copy().cache
    expected = np.array(models.target(tokens, whole))
    hidden = models.target(tokens, part, packing)
    assert hidden.shape == (1, packing.rows.size, expected.shape[2])
    found = np.array(packing.unpack(hidden))
    for row, count in enumerate(counts):
        np.testing.assert_allclose(found[row, :count], expected[row, :count], atol=1e-3)
    offsets = at.cache.offset.tolist()
    for kind in ("keys", "values"):
        arrays = zip(
            getattr(at.cache, kind), getattr(whole, kind), getattr(part, kind), strict=True
        )
        for before, after, other in arrays:
            for row, (first, count) in enumerate(zip(offsets, counts, strict=True)):
                slots = np.arange(first, first + num_positions) % before.shape[2]
                own, rest = slots[:count], np.setdiff1d(np.arange(before.shape[2]), slots)
                old, new, its = np.array(before[row]), np.array(after[row]), np.array(other[row])
                np.testing.assert_allclose(its[:, own], new[:, own], atol=1e-3)
                assert (its[:, rest] == old[:, rest]).all()
                assert np.isfinite(its).all()


def test_experts_compute_no_padding_and_in_the_way_for_their_number(
    rng: np.random.Generator,
) -> None:
    target = Target(TargetConfig.from_dict(SHAPE | EXPERTS))
    seen: list[tuple[int, str]] = []

    def watched(experts: Experts) -> Callable[..., mx.array]:
        def through(x: mx.array, chosen: mx.array, shares: mx.array, way: Way) -> mx.array:
            seen.append((len(x), way))
            assert len(x) == len(chosen) == len(shares)
            return experts(x, chosen, shares, way)

        return through

    for layer in target.layers:
        layer.experts = watched(layer.experts)
    target.set_ways({1: "pairs", 3: "padded", 5: "all", 6: "tiles"})
    cache = KVCache.empty(target.config, 2, capacity=32, most=4, dtype=mx.float32)
    tokens = mx.array(rng.integers(0, VOCAB, (2, 3)))
    for counts, width in (([1, 1], 8), ([3, 1], 4), ([3, 2], 16), ([3, 3], 6)):
        seen.clear()
        hidden = target(tokens, cache, packing_of(counts, 3, width))
        assert hidden.size == width * target.config.hidden_size
        way = target.ways[sum(counts)]
        assert seen == [(sum(counts), way)] * len(target.layers)
    seen.clear()
    target.read(tokens, cache, 0, [3, 2], least=9)
    assert seen == [(5, target.ways[5])] * len(target.layers)


@some_kind
def test_a_compiled_round_serves_every_division_of_a_shape_and_reads_nothing(
    models: Models, rng: np.random.Generator
) -> None:
    traces: list[int] = []

    def both(buffers: Buffers, *rest: Any) -> Any:
        traces.append(1)
        cache = KVCache(at.cache.config, buffers)
        return speculate(*models, cache, *rest), cache.buffers

    at = start(models.target, rng, [40, 0, 25])
    settings, compiled = row_settings([GREEDY, None, FILTERED], mx.arange(5)), mx.compile(both)

    def play(counts: list[int], width: int, copied: int) -> int:
        """How many traces there are after such a round, which isn't computed."""
        copies = Copies(mx.full((3, 8), copied), mx.array([39, -1, copied]))
        layout = Layout(mx.array(counts) - 1, packing_of(counts, 4, width), copies)
        compiled(at.cache.buffers, at.newest, settings, layout, 2)
        return len(traces)

    for copied, counts in enumerate([[4, 0, 2], [1, 2, 3], [2, 2, 2]]):
        assert play(counts, 8, copied) == 1
    assert play([4, 0, 3], 8, 0) == 2
    assert play([4, 0, 3], 9, 0) == 3
    assert play([3, 1, 3], 9, 0) == 3


@pytest.mark.parametrize("least", [1, 2, 9, 40])
def test_the_state_after_a_prompt_is_the_same_from_wider_products(
    models: Models, rng: np.random.Generator, least: int
) -> None:
    target = models.target
    for size, length in ((1, 1), (3, 5)):
        tokens = mx.array(rng.integers(0, VOCAB, (size, length)))
        lengths = rng.integers(1, length + 1, size).tolist()
        plain, padded = (start(target, rng, [0] * size).cache for _ in range(2))
        expected = target.read(tokens, plain, 0, lengths)
        found = target.read(tokens, padded, 0, lengths, least)
        assert found.shape == (size, 1, target.config.hidden_size)
        np.testing.assert_allclose(found, expected, atol=1e-3)
        for one, other in zip(plain.keys + plain.values, padded.keys + padded.values, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-3)


# The fake target computes in whole numbers, so that results are equal to the last bit.


def fake_rows(prompts: list[list[int]]) -> tuple[KVCache, Newest]:
    """Rows after these prompts, and the token of each that is not in the cache yet."""
    target, config = FakeTarget(), fake_target.CONFIG
    cache = KVCache.empty(config, len(prompts), capacity=64, most=8, dtype=mx.float32)
    width = max(map(len, prompts))
    tokens = mx.array([[*prompt, *[0] * (width - len(prompt))] for prompt in prompts])
    lengths = [len(prompt) for prompt in prompts]
    target.read(tokens, cache, 0, lengths)
    cache.offset = mx.array(lengths, mx.int32)
    newest = mx.array([output(prompt, 1)[0] for prompt in prompts], mx.int32)
    return cache, Newest(newest, mx.zeros((len(prompts), 1, 1)))


def some_prompts(rng: np.random.Generator, size: int) -> list[list[int]]:
    return [rng.integers(0, fake_target.VOCAB, length).tolist() for length in range(3, 3 + size)]


@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize("rows", [[GREEDY], [SAMPLED, FILTERED], [FILTERED, GREEDY, FILTERED]])
def test_packed_rows_are_chosen_for_by_their_own_settings(
    rng: np.random.Generator, rows: list[SamplingParams], full: bool
) -> None:
    """With ties, some choices among candidates are not sure."""
    target, size, num_positions = TyingTarget(rng), 6, 4
    prompts = some_prompts(rng, size)
    params = [replace(rows[n % len(rows)], seed=int(rng.integers(2**32))) for n in range(size)]
    suppress = mx.array(rng.integers(0, 4096, 8).astype(np.int32))
    settings = row_settings(params, suppress)
    settings = settings._replace(full=settings.full or full)
    counts = [4, 1, 0, 3, 2, 4]
    # Right drafts, from plain rounds.
    cache, newest = fake_rows(prompts)
    tokens = []
    for _ in range(num_positions):
        alone = Layout(mx.zeros(size, mx.int32), None)
        no_drafts, sure = mx.zeros((size, 0), mx.int32), settings._replace(full=True)
        newest = verify(target, cache, newest, sure, alone, no_drafts).newest
        tokens.append(newest.token)
    drafts = mx.stack(tokens[:-1], axis=1)
    results = list[Round]()
    for packing in (None, packing_of(counts, num_positions, sum(counts) + 3)):
        cache, newest = fake_rows(prompts)
        layout = Layout(mx.array(counts) - 1, packing)
        results.append(verify(target, cache, newest, settings, layout, drafts))
    whole, part = results
    accepted = whole.accepted.tolist()
    assert part.accepted.tolist() == accepted
    assert accepted[2] == -1
    if settings.full or settings.greedy:
        assert accepted == [count - 1 for count in counts]
    for row, count in enumerate(accepted):
        assert part.tokens.tolist()[row][: count + 1] == whole.tokens.tolist()[row][: count + 1]
    assert part.newest.token.tolist() == whole.newest.token.tolist()
    assert part.newest.hidden.tolist() == whole.newest.hidden.tolist()


def test_copies_replace_drafts_while_the_newest_token_is_the_expected_one(
    rng: np.random.Generator,
) -> None:
    """Drafts are right in their first and third place, copies in all."""
    num_drafts, prompts = 4, some_prompts(rng, 9)
    right = [output(prompt, num_drafts + 1) for prompt in prompts]
    other = [[(token + 1) % fake_target.VOCAB for token in one] for one in right]
    drafts = [[one[1], no[2], one[3], no[4]] for one, no in zip(right, other, strict=True)]
    cases = [  # what is expected, from how many positions before the newest token; accepted
        ([7, 7, 7, 7, *right[0][:3]], None, 1),  # would fit if -1 were a position
        (right[1], 0, 4),
        ([7, 7, *right[2]], 2, 4),
        (other[3], 0, 1),  # another newest token
        ([other[4][0], *right[4][1:]], 0, 1),
        (right[5][:3], 0, 3),  # ends: the third draft is the drafter's
        (right[6][:1], 0, 1),  # ends with the newest token
        ([7, 7], 2, 1),  # ended before it
        (right[8], -1, 1),  # starts after it
    ]
    length = 7
    tokens = [[*expected, *[-1] * (length - len(expected))] for expected, _, _ in cases]
    starts = [
        -1 if back is None else len(prompt) - back
        for prompt, (_, back, _) in zip(prompts, cases, strict=True)
    ]
    cache, newest = fake_rows(prompts)
    copies = Copies(mx.array(tokens, mx.int32), mx.array(starts, mx.int32))
    layout = Layout(mx.full(len(cases), num_drafts, mx.int32), None, copies)
    settings = row_settings([GREEDY] * len(cases))
    played = verify(FakeTarget(), cache, newest, settings, layout, mx.array(drafts))
    assert played.accepted.tolist() == [accepted for _, _, accepted in cases]


def test_after_copies_of_the_full_length_come_the_drafts(rng: np.random.Generator) -> None:
    [prompt] = some_prompts(rng, 1)
    right = output(prompt, 4)
    for length in range(1, 5):
        cache, newest = fake_rows([prompt])
        copies = Copies(mx.array([right[:length]]), mx.array([len(prompt)]))
        wrong = [(token + 1) % fake_target.VOCAB for token in right[1:length]]
        layout = Layout(mx.array([3]), None, copies)
        drafts = mx.array([[*wrong, *right[length:]]])
        played = verify(FakeTarget(), cache, newest, row_settings([GREEDY]), layout, drafts)
        assert played.accepted.tolist() == [3]
