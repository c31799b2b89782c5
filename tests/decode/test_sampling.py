"""Tokens follow the target's probabilities, and their noise depends on seed, position and token.

Draws are compared by chi-square with Transformers' warpers, with fixed random numbers: with fresh
ones such a test fails now and then by design. All other tests draw new numbers in every run.
"""

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from helpers.checkpoints import CENTROID_KINDS, VOCAB, PairPaths
from helpers.draws import (
    LEAST_P,
    SETTINGS,
    SMALL,
    SOFTCAP,
    numbers,
    p_value,
    params,
    probabilities,
    seeds,
)
from helpers.rounds import load_models, play, prefilled
from mlx_gemma_mtp import SamplingParams
from mlx_gemma_mtp.decode.params import MAX_DRAFT_TOKENS, NO_FILTER
from mlx_gemma_mtp.decode.round import Newest, draft
from mlx_gemma_mtp.decode.sampling import _threshold_of_all, choose, row_settings
from mlx_gemma_mtp.errors import UsageError
from mlx_gemma_mtp.model.cache import KVCache
from mlx_gemma_mtp.model.target import Target


def draw(
    logits: np.ndarray,
    rows: Sequence[SamplingParams],
    positions: range,
    suppress: mx.array | None = None,
    **options: Any,
) -> np.ndarray:
    """The tokens [N, T] that the rows choose from the same logits [V] at all these positions."""
    shape = (len(rows), len(positions))
    each = mx.broadcast_to(mx.array(logits), (*shape, len(logits)))
    position = mx.broadcast_to(mx.array(list(positions)), shape)
    return np.array(choose(each, position, row_settings(rows, suppress), **options).tokens)


# The draws are right


@pytest.mark.torch
def test_draws_follow_the_probabilities_under_every_setting() -> None:
    rng = np.random.default_rng(1)
    logits = numbers(rng, SMALL)
    # 20,000 draws each: 500 seeds at 40 positions
    rows = [params(*one, seed) for one in SETTINGS.values() for seed in seeds(rng, 500)]
    drawn = draw(logits, rows, range(100, 140), softcap=SOFTCAP).reshape(len(SETTINGS), -1)
    found = {}
    for (name, setting), tokens in zip(SETTINGS.items(), drawn, strict=True):
        expected = probabilities(logits[None], *setting, softcap=SOFTCAP)
        found[name] = p_value(np.bincount(tokens, minlength=SMALL), expected)
    assert min(found.values()) > LEAST_P, found
    expected = probabilities(logits[None], 1.0)  # without the softcap the test must fail
    assert p_value(np.bincount(drawn[0], minlength=SMALL), expected) < LEAST_P


@pytest.mark.torch
def test_draws_at_neighbouring_positions_and_seeds_are_independent() -> None:
    rng = np.random.default_rng(2)
    logits = numbers(rng, 8, spread=0.5)
    shares = probabilities(logits[None], 1.0)[0]
    first = int(rng.integers(2**31))
    rows = [params(1.0, NO_FILTER, 1.0, first + row) for row in range(256)]
    drawn = draw(logits, rows, range(128))
    neighbours = {
        "next position": (drawn[:, :-1], drawn[:, 1:]),
        "next seed": (drawn[:-1], drawn[1:]),
        "next seed, position before": (drawn[:-1, 1:], drawn[1:, :-1]),
    }
    found = {}
    for name, (one, other) in neighbours.items():
        counts = np.bincount((8 * one + other).ravel(), minlength=64)
        found[name] = p_value(counts, np.outer(shares, shares))
    assert min(found.values()) > LEAST_P, found


# The same end to end: three tokens from rounds of speculation against their joint probabilities


SOME_SETTING = (1.3, 3, 1.0)
PROMPT = [7, 31, 200, 5, 91]
NUM_SEEDS = 1024


def able_draft(
    target: Target, _drafter: object, cache: KVCache, newest: Newest, *rest: Any
) -> mx.array:
    """Drafts of the target itself, whose logits differ by a constant per token."""
    settings, num_draft_tokens = rest
    own = KVCache(cache.config, cache.buffers)
    difference = mx.array(numbers(np.random.default_rng(3), VOCAB, spread=0.5))
    softcap = target.config.final_logit_softcapping
    token, drafts = newest.token, []
    for _ in range(num_draft_tokens):
        logits = target.logits(target(token[:, None], own)) + difference
        own.offset = own.offset + 1
        token = choose(logits, own.offset[:, None], settings, softcap=softcap).tokens[:, 0]
        drafts.append(token)
    return mx.stack(drafts, axis=1)


def joint_probabilities(target: Target, length: int) -> dict[tuple[int, ...], float]:
    """All continuations of PROMPT by this many tokens, with their probabilities."""
    texts: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(length):
        ids = mx.array([[*PROMPT, *text] for text in texts])
        cache = KVCache.empty(target.config, len(texts), capacity=32, most=16, dtype=mx.float32)
        logits = np.array(target.logits(target(ids, cache)))[:, -1]
        softcap = target.config.final_logit_softcapping
        shares = probabilities(logits, *SOME_SETTING, softcap=softcap)
        texts = {
            (*text, int(token)): weight * share[token]
            for (text, weight), share in zip(texts.items(), shares, strict=True)
            for token in np.flatnonzero(share)
        }
    return texts


@pytest.mark.parametrize("drafting", ["plain", "drafter", "able drafter"])
def test_outputs_of_rounds_follow_the_targets_joint_probabilities(
    pairs: dict[str, PairPaths], drafting: str
) -> None:
    models = load_models(pairs["12B"])
    able, num_drafts = drafting == "able drafter", 0 if drafting == "plain" else 2
    functions = {"draft": able_draft} if able else {}
    each = [params(*SOME_SETTING, s) for s in seeds(np.random.default_rng(4), NUM_SEEDS)]
    settings = row_settings(each)
    prompts = mx.broadcast_to(mx.array(PROMPT), (NUM_SEEDS, len(PROMPT)))
    at = prefilled(models.target, prompts, settings)
    texts = [[token] for token in at.newest.token.tolist()]
    accepted = 0
    for _ in range(2):
        done = play(models, at, settings, [num_drafts] * NUM_SEEDS, num_drafts, **functions)
        for text, new, hits in zip(
            texts, done.tokens.tolist(), done.accepted.tolist(), strict=True
        ):
            text += new[: hits + 1]
            accepted += hits
    if able:
        assert 0.05 < accepted / (2 * num_drafts * NUM_SEEDS) < 0.95
    expected = joint_probabilities(models.target, 3)
    assert len(expected) == 27
    places = {text: i for i, text in enumerate(expected)}
    drawn = [places[tuple(text[:3])] for text in texts]  # KeyError: its probability is 0
    counts = np.bincount(drawn, minlength=len(expected))
    assert p_value(counts, np.array(list(expected.values()))) > LEAST_P


# The noise


@pytest.fixture
def mixed(rng: np.random.Generator) -> list[SamplingParams]:
    """Eight rows, each with its own settings."""
    some = [*SETTINGS.values(), (0.0, NO_FILTER, 1.0), (0.0, 5, 0.5), (2.0, 3, 0.9)]
    order = rng.permutation(len(some))
    return [params(*some[i], seed) for i, seed in zip(order, seeds(rng, len(some)), strict=True)]


def test_a_choice_depends_on_its_own_row_and_position_alone(
    rng: np.random.Generator, mixed: list[SamplingParams]
) -> None:
    logits = mx.array(numbers(rng, len(mixed), 8, 64))
    position = mx.array(rng.integers(0, 2**18, (len(mixed), 1))) + mx.arange(8)
    together = np.array(choose(logits, position, row_settings(mixed), softcap=SOFTCAP).tokens)
    for row, own in enumerate(mixed):
        for at in range(8):
            alone = choose(
                logits[row : row + 1, at : at + 1],
                position[row : row + 1, at : at + 1],
                row_settings([own]),
                softcap=SOFTCAP,
            )
            assert alone.tokens.item() == together[row, at], f"row {row}, {own}, position {at}"


@pytest.mark.parametrize("kind", CENTROID_KINDS)
def test_drafts_among_candidates_share_the_noise_of_the_whole_vocabulary(
    kind: str, pairs: dict[str, PairPaths], rng: np.random.Generator, mixed: list[SamplingParams]
) -> None:
    target, drafter = load_models(pairs[kind])
    suppress = mx.arange(0, VOCAB, 4)
    settings = row_settings(mixed, suppress)
    prompts = mx.array(rng.integers(0, VOCAB, (len(mixed), 11)))
    at = prefilled(target, prompts, settings)
    cache, newest = at.cache, at.newest
    drafts = draft(target, drafter, cache, newest, settings, 1)

    shared = cache.shared(drafter.config)
    position = cache.offset + drafter.config.query_position
    embedding = target.embed(newest.token[:, None])
    logits, ids = drafter.candidates(drafter(embedding, newest.hidden, shared, position)[0])
    assert ids is not None
    assert ids.shape[-1] < VOCAB
    whole = mx.put_along_axis(mx.full((len(mixed), 1, VOCAB), -mx.inf), ids, logits, axis=-1)
    assert choose(whole, cache.offset[:, None] + 1, settings).tokens.tolist() == drafts.tolist()


# Greedy rows


def test_a_greedy_row_in_a_mixed_batch_is_as_greedy_as_alone(
    rng: np.random.Generator, mixed: list[SamplingParams]
) -> None:
    logits = numbers(rng, len(mixed), 4, 64)
    # After the softcap all three are equal in float32; the greatest logit must still win.
    logits[:, 0, :3] = [1000.0, 1002.0, 1001.0]
    settings = row_settings(mixed)
    assert not settings.greedy
    chosen = np.array(choose(mx.array(logits), mx.zeros((8, 4)), settings, softcap=SOFTCAP).tokens)
    greedy = [row for row, own in enumerate(mixed) if own.temperature == 0]
    assert len(greedy) == 2
    alone = row_settings([mixed[row] for row in greedy])
    assert alone.greedy
    expected = logits[greedy].argmax(-1)
    assert (chosen[greedy] == expected).all()
    at_once = choose(mx.array(logits[greedy]), mx.zeros((2, 4)), alone)
    assert at_once.tokens.tolist() == expected.tolist()


# Filters and suppressed tokens


def kept(scores: np.ndarray, top_k: Sequence[int], top_p: Sequence[float]) -> np.ndarray:
    """Which scores [N, V] the filter keeps, with the settings of each row."""
    settings = row_settings([params(1, k, p) for k, p in zip(top_k, top_p, strict=True)])
    return scores >= np.array(_threshold_of_all(mx.array(scores)[:, None], settings))[:, 0]


@pytest.mark.torch
def test_filters_keep_what_transformers_keeps(rng: np.random.Generator) -> None:
    rows = 200
    scores = numbers(rng, rows, 64)
    top_k = rng.choice([NO_FILTER, 1, 2, 5, 63, 64, 1000], rows).tolist()
    top_p = rng.choice([1.0, 1e-6, 0.1, 0.5, 0.8, 0.95, 0.999], rows).tolist()
    got = kept(scores, top_k, top_p)
    compared = 0
    for row in range(rows):
        expected = probabilities(scores[row : row + 1], 1.0, int(top_k[row]), float(top_p[row]))[0]
        whole = np.sort(probabilities(scores[row : row + 1], 1.0, int(top_k[row]))[0])
        if np.abs(np.cumsum(whole[::-1]) - top_p[row]).min() < 1e-5 and top_p[row] < 1:
            continue  # in float32 this border may be on either side
        compared += 1
        assert (got[row] == (expected > 0)).all(), f"top_k {top_k[row]}, top_p {top_p[row]}"
    assert compared > 0.9 * rows


def test_equal_scores_stay_or_go_together(rng: np.random.Generator) -> None:
    rows = 200
    scores = rng.integers(-3, 4, (rows, 32)).astype(np.float32)
    top_k = rng.choice([NO_FILTER, 1, 3, 10], rows).tolist()
    top_p = rng.choice([1.0, 0.3, 0.7, 0.95], rows).tolist()
    got = kept(scores, top_k, top_p)
    for row in range(rows):
        values = np.sort(np.unique(scores[row]))[::-1]
        if top_k[row]:
            least = np.sort(scores[row])[-top_k[row]]
            values = values[values >= least]
        weights = np.array([np.exp(value) * (scores[row] == value).sum() for value in values])
        mass = np.cumsum(weights) / weights.sum()
        if np.abs(mass[:-1] - top_p[row]).min(initial=1) < 1e-5:
            continue
        num_values = 1 + int((mass < top_p[row]).sum()) if top_p[row] < 1 else len(values)
        assert (got[row] == (scores[row] >= values[:num_values].min())).all()


@pytest.mark.parametrize("among_candidates", [False, True])
def test_suppressed_tokens_are_never_chosen(
    rng: np.random.Generator, among_candidates: bool
) -> None:
    suppressed = rng.permutation(SMALL)[:4]
    logits = numbers(rng, SMALL)
    logits[suppressed] += 5  # the best if they were allowed
    settings = [(0.0, 0, 1.0), (1.0, 0, 1.0), (1.0, 5, 0.9), (30.0, 0, 1.0), (1e4, 0, 0.99)]
    rows = [params(*one, seed) for one, seed in zip(settings, seeds(rng, 5), strict=True)]
    order = rng.permutation(SMALL).astype(np.int32) if among_candidates else np.arange(SMALL)
    for batch in (rows, rows[:1]):
        ids = mx.broadcast_to(mx.array(order), (len(batch), 500, SMALL))
        options = {"softcap": 30.0, "ids": ids if among_candidates else None}
        chosen = draw(logits[order], batch, range(500), mx.array(suppressed), **options)
        for own, tokens in zip(batch, chosen, strict=True):
            assert not np.isin(tokens, suppressed).any(), own
            if own.temperature == 30.0:
                assert len(set(tokens.tolist())) == SMALL - 4


# Values of each setting at the border of its range, and outside.
BORDERS: dict[str, tuple[list[Any], list[Any]]] = {
    "max_tokens": ([1], [0, -1, 2.5]),
    "temperature": ([0, 5], [-0.1, float("inf"), float("nan"), "hot"]),
    "top_k": ([0], [-1, 1.5]),
    "top_p": ([1], [0.0, -0.5, 1.01, float("nan")]),
    "seed": ([0, 2**32 - 1], [-1, 2**32, 0.5]),
    "num_draft_tokens": ([0, MAX_DRAFT_TOKENS, "auto"], [-1, MAX_DRAFT_TOKENS + 1, "many", None]),
    "stop": (["end", ["end", "stop"]], ["", ["end", ""], [3]]),
}


@pytest.mark.parametrize("field", BORDERS)
def test_a_setting_is_accepted_up_to_its_border_and_refused_by_name_beyond(field: str) -> None:
    accepted, refused = BORDERS[field]
    for value in accepted:
        assert getattr(SamplingParams(**{field: value}), field) == value
    for value in refused:
        with pytest.raises(UsageError, match=field):
            SamplingParams(**{field: value})


def test_unset_values_come_from_generation_config() -> None:
    defaults = {"do_sample": True, "temperature": 0.7, "top_k": 64, "top_p": 0.95}
    taken = SamplingParams().resolved(defaults)
    assert (taken.temperature, taken.top_k, taken.top_p) == (0.7, 64, 0.95)
    own = SamplingParams(temperature=0, top_k=0, top_p=1, seed=5).resolved(defaults)
    assert (own.temperature, own.top_k, own.top_p, own.seed) == (0, 0, 1, 5)


@pytest.mark.parametrize("defaults", [{}, {"temperature": None, "top_k": None, "top_p": None}])
def test_without_a_generation_config_unset_values_are_plain(defaults: dict[str, None]) -> None:
    taken = SamplingParams().resolved(defaults)
    assert (taken.temperature, taken.top_k, taken.top_p) == (1.0, NO_FILTER, 1.0)


def test_a_checkpoint_that_does_not_sample_is_greedy_unless_a_temperature_is_set() -> None:
    defaults = {"do_sample": False, "temperature": 0.7}
    assert SamplingParams().resolved(defaults).temperature == 0
    assert SamplingParams(temperature=1.0).resolved(defaults).temperature == 1.0


def test_an_unset_seed_is_drawn_once_for_each_request() -> None:
    taken = [SamplingParams().resolved({}) for _ in range(4)]
    assert len({one.seed for one in taken}) == 4
    assert taken[0].resolved({}) == taken[0]
