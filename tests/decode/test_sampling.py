"""Tokens follow the target's probabilities, and the noise behind them knows seed, position, token.

Draws are counted and compared by chi-square with what Transformers' own warpers make of the same
logits. These counts come from fixed random numbers: with fresh ones such a test is wrong now and
then by design. Everything else is drawn anew in every run.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
import pytest
import torch
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from helpers.checkpoints import CENTROID_KINDS, VOCAB, PairPaths
from mlx_gemma_mtp import SamplingParams
from mlx_gemma_mtp.decode import round as speculate
from mlx_gemma_mtp.decode.params import MAX_DRAFT_TOKENS, NO_FILTER
from mlx_gemma_mtp.decode.round import Head, first_token, prefill
from mlx_gemma_mtp.decode.sampling import RowSettings, _filter, choose, row_settings
from mlx_gemma_mtp.errors import UsageError
from mlx_gemma_mtp.files.weights import load_drafter, load_target
from mlx_gemma_mtp.model.cache import KVCache
from mlx_gemma_mtp.model.drafter import Drafter
from mlx_gemma_mtp.model.target import Target

SMALL = 16  # tokens of a small vocabulary
LEAST_P = 1e-4
SOFTCAP = 3.0  # low enough that leaving it out shows

SETTINGS = {
    "plain": (1.0, NO_FILTER, 1.0),
    "cold": (0.6, NO_FILTER, 1.0),
    "hot, top_k": (1.5, 5, 1.0),
    "top_p": (1.0, NO_FILTER, 0.7),
    "both": (0.9, 8, 0.8),
}


def params(temperature: float, top_k: int, top_p: float, seed: int = 0) -> SamplingParams:
    return SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)


def numbers(rng: np.random.Generator, *shape: int, spread: float = 2.0) -> np.ndarray:
    return (rng.standard_normal(shape) * spread).astype(np.float32)


def seeds(rng: np.random.Generator, count: int) -> list[int]:
    return [int(seed) for seed in rng.choice(2**32, count, replace=False)]


def probabilities(
    logits: np.ndarray,
    temperature: float,
    top_k: int = NO_FILTER,
    top_p: float = 1.0,
    softcap: float | None = None,
) -> np.ndarray:
    """What Transformers would sample from, for raw logits [N, V]."""
    scores = torch.from_numpy(logits.astype(np.float64))
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    warpers: list[Any] = [TemperatureLogitsWarper(temperature)]
    warpers += [TopKLogitsWarper(top_k)] if top_k else []
    warpers += [TopPLogitsWarper(top_p)] if top_p < 1 else []
    for warp in warpers:
        scores = warp(None, scores)
    return torch.softmax(scores, dim=-1).numpy()


def p_value(counts: np.ndarray, expected_shares: np.ndarray) -> float:
    """How likely counts at least this far from the expected ones are, by Pearson's chi-square.

    Cells that expect fewer than 5 are put together.
    """
    counts, expected = counts.ravel(), expected_shares.ravel() * counts.sum()
    assert not counts[expected == 0].any(), "drawn, but its probability is 0"
    small = expected < 5
    counts = np.append(counts[~small], counts[small].sum())
    expected = np.append(expected[~small], expected[small].sum())
    counts, expected = counts[expected > 0], expected[expected > 0]
    statistic = ((counts - expected) ** 2 / expected).sum()
    freedom = torch.tensor((len(counts) - 1) / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(freedom, torch.tensor(statistic / 2)))


# The draws are right


def test_draws_follow_the_probabilities_under_every_setting() -> None:
    rng = np.random.default_rng(1)
    logits = numbers(rng, SMALL)
    rows, length = 500, 40  # 20,000 draws each: 500 seeds at 40 positions
    each = [params(*one, seed) for one in SETTINGS.values() for seed in seeds(rng, rows)]
    position = mx.arange(100, 100 + length)[None]
    drawn = choose(
        mx.broadcast_to(mx.array(logits), (len(each), length, SMALL)),
        mx.broadcast_to(position, (len(each), length)),
        row_settings(each),
        softcap=SOFTCAP,
    )
    per_setting = np.array(drawn).reshape(len(SETTINGS), -1)
    found = {}
    for (name, setting), tokens in zip(SETTINGS.items(), per_setting, strict=True):
        expected = probabilities(logits[None], *setting, softcap=SOFTCAP)
        found[name] = p_value(np.bincount(tokens, minlength=SMALL), expected)
    assert min(found.values()) > LEAST_P, found
    expected = probabilities(logits[None], 1.0)  # without the softcap: the test can tell
    assert p_value(np.bincount(per_setting[0], minlength=SMALL), expected) < LEAST_P


def test_draws_at_neighbouring_positions_and_seeds_are_independent() -> None:
    rng = np.random.default_rng(2)
    logits = numbers(rng, 8, spread=0.5)
    shares = probabilities(logits[None], 1.0)[0]
    rows, length = 256, 128
    first = int(rng.integers(2**31))
    each = [params(1.0, NO_FILTER, 1.0, first + row) for row in range(rows)]
    drawn = np.array(
        choose(
            mx.broadcast_to(mx.array(logits), (rows, length, 8)),
            mx.broadcast_to(mx.arange(length)[None], (rows, length)),
            row_settings(each),
        )
    )
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


# The same, end to end: three tokens from rounds of speculation against their joint probabilities


class Models(NamedTuple):
    target: Target
    drafter: Drafter


SOME_SETTING = (1.3, 3, 1.0)
PROMPT = [7, 31, 200, 5, 91]
NUM_SEEDS = 1024
Draft = Callable[..., mx.array]


@pytest.fixture(scope="module")
def models(pairs: dict[str, PairPaths]) -> Models:
    pair = pairs["12B"]
    target = load_target(pair.target, dtype=mx.float32)
    return Models(target, load_drafter(pair.drafter, target.config, dtype=mx.float32))


def able_draft(
    target: Target,
    drafter: object,
    cache: KVCache,
    head: Head,
    settings: RowSettings,
    num_draft_tokens: int,
) -> mx.array:
    """A drafter worth having: the target itself, with other logits by a constant per token."""
    own = KVCache(cache.config, cache.offset, cache.keys, cache.values)
    astray = mx.array(numbers(np.random.default_rng(3), VOCAB, spread=0.5))
    token, drafts = head.newest, []
    for _ in range(num_draft_tokens):
        logits = target.logits(target(token[:, None], own)) + astray
        own.offset = own.offset + 1
        softcap = target.config.final_logit_softcapping
        token = choose(logits, own.offset[:, None], settings, softcap=softcap)[:, 0]
        drafts.append(token)
    return mx.stack(drafts, axis=1)


def joint_probabilities(target: Target, length: int) -> dict[tuple[int, ...], float]:
    """All texts of this many tokens after PROMPT, with the probability that each is drawn."""
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


class Played(NamedTuple):
    texts: list[list[int]]  # one for each seed
    acceptance_rate: float | None


def play(models: Models, num_draft_tokens: int, rounds: int) -> Played:
    """Rounds of one prompt under many seeds."""
    target = models.target
    each = [params(*SOME_SETTING, s) for s in seeds(np.random.default_rng(4), NUM_SEEDS)]
    settings = row_settings(each)
    cache = KVCache.empty(target.config, NUM_SEEDS, capacity=32, most=16, dtype=mx.float32)
    hidden = prefill(target, mx.broadcast_to(mx.array(PROMPT), (NUM_SEEDS, len(PROMPT))), cache)
    head = first_token(target, hidden, cache, settings)
    mx.eval(head, cache.keys, cache.values)
    limit = mx.full((NUM_SEEDS,), num_draft_tokens, mx.int32)
    texts = [[token] for token in head.newest.tolist()]
    accepted = 0
    for _ in range(rounds):
        done = speculate.speculate(*models, cache, head, settings, limit, num_draft_tokens)
        head = done.head
        tokens, hits = done.tokens.tolist(), done.accepted.tolist()
        for text, new, hit in zip(texts, tokens, hits, strict=True):
            text += new[: hit + 1]
        accepted += sum(hits)
    drafted = rounds * num_draft_tokens * NUM_SEEDS
    return Played(texts, accepted / drafted if drafted else None)


@pytest.mark.parametrize("drafting", ["plain", "drafter", "able drafter"])
def test_texts_of_rounds_follow_the_targets_joint_probabilities(
    models: Models, drafting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if drafting == "able drafter":
        monkeypatch.setattr(speculate, "draft", able_draft)
    played = play(models, 0 if drafting == "plain" else 2, rounds=2)
    if drafting == "able drafter":
        assert played.acceptance_rate is not None
        assert 0.05 < played.acceptance_rate < 0.95
    expected = joint_probabilities(models.target, 3)
    assert len(expected) == 27
    places = {text: i for i, text in enumerate(expected)}
    drawn = [places[tuple(text[:3])] for text in played.texts]  # a KeyError: one of probability 0
    counts = np.bincount(drawn, minlength=len(expected))
    assert p_value(counts, np.array(list(expected.values()))) > LEAST_P


# The noise


@pytest.fixture
def mixed(rng: np.random.Generator) -> list[SamplingParams]:
    """Eight rows, each with settings of its own."""
    some = [*SETTINGS.values(), (0.0, NO_FILTER, 1.0), (0.0, 5, 0.5), (2.0, 3, 0.9)]
    order = rng.permutation(len(some))
    return [params(*some[i], seed) for i, seed in zip(order, seeds(rng, len(some)), strict=True)]


def test_a_choice_depends_on_its_own_row_and_position_alone(
    rng: np.random.Generator, mixed: list[SamplingParams]
) -> None:
    logits = mx.array(numbers(rng, len(mixed), 8, 64))
    position = mx.array(rng.integers(0, 2**18, (len(mixed), 1))) + mx.arange(8)
    together = np.array(choose(logits, position, row_settings(mixed), softcap=SOFTCAP))
    for row, own in enumerate(mixed):
        for at in range(8):
            alone = choose(
                logits[row : row + 1, at : at + 1],
                position[row : row + 1, at : at + 1],
                row_settings([own]),
                softcap=SOFTCAP,
            )
            assert alone.item() == together[row, at], f"row {row}, {own}, position {at}"


def test_noise_differs_by_seed_and_position(rng: np.random.Generator) -> None:
    # 64 tokens that are all as likely: two equal texts of 8 would be a chance of 64 ** -8.
    one, other = seeds(rng, 2)
    start = int(rng.integers(2**18))

    def text(seed: int, first: int) -> list[int]:
        settings = row_settings([params(1.0, NO_FILTER, 1.0, seed)])
        return choose(mx.zeros((1, 8, 64)), first + mx.arange(8)[None], settings).tolist()[0]

    assert text(one, start) == text(one, start)
    assert text(one, start) != text(other, start)
    assert text(one, start) != text(one, start + 8)
    assert text(one, start)[1:] == text(one, start + 1)[:-1]


@pytest.mark.parametrize("kind", CENTROID_KINDS)
def test_drafts_among_candidates_share_the_noise_of_the_whole_vocabulary(
    kind: str,
    pairs: dict[str, PairPaths],
    rng: np.random.Generator,
    mixed: list[SamplingParams],
) -> None:
    target = load_target(pairs[kind].target, dtype=mx.float32)
    drafter = load_drafter(pairs[kind].drafter, target.config, dtype=mx.float32)
    suppress = mx.where(mx.arange(VOCAB) % 4 == 0, -mx.inf, 0.0)
    settings = row_settings(mixed, suppress)
    cache = KVCache.empty(target.config, len(mixed), capacity=32, most=16, dtype=mx.float32)
    prompts = mx.array(rng.integers(0, VOCAB, (len(mixed), 11)))
    head = first_token(target, prefill(target, prompts, cache), cache, settings)
    drafts = speculate.draft(target, drafter, cache, head, settings, 1)

    memory = {layers: cache.memory(layers) for layers in drafter.config.kinds}
    where = cache.offset + drafter.config.query_position
    embedding = target.embed(head.newest[:, None])
    logits, ids = drafter.candidates(drafter(embedding, head.hidden, memory, where)[0])
    assert ids is not None
    assert ids.shape[-1] < VOCAB
    whole = mx.put_along_axis(mx.full((len(mixed), 1, VOCAB), -mx.inf), ids, logits, axis=-1)
    assert choose(whole, cache.offset[:, None] + 1, settings).tolist() == drafts.tolist()


# Greedy rows, filters, suppressed tokens


def test_a_greedy_row_in_a_mixed_batch_is_as_greedy_as_alone(
    rng: np.random.Generator, mixed: list[SamplingParams]
) -> None:
    logits = numbers(rng, len(mixed), 4, 64)
    # Beyond the softcap all are equal in float32; the greater logit must win all the same.
    logits[:, 0, :3] = [1000.0, 1002.0, 1001.0]
    settings = row_settings(mixed)
    assert not settings.greedy
    chosen = np.array(choose(mx.array(logits), mx.zeros((8, 4)), settings, softcap=SOFTCAP))
    greedy = [row for row, own in enumerate(mixed) if own.temperature == 0]
    assert len(greedy) == 2
    alone = row_settings([mixed[row] for row in greedy])
    assert alone.greedy
    expected = logits[greedy].argmax(-1)
    assert (chosen[greedy] == expected).all()
    assert choose(mx.array(logits[greedy]), mx.zeros((2, 4)), alone).tolist() == expected.tolist()


def kept(scores: np.ndarray, top_k: Sequence[int], top_p: Sequence[float]) -> np.ndarray:
    """Which scores [N, V] the filter lets through, for settings of each row."""
    columns = mx.array(top_k, mx.int32), mx.array(top_p, mx.float32)
    out = _filter(mx.array(scores)[:, None], *(column[:, None, None] for column in columns))
    assert ((out == mx.array(scores)[:, None]) | (out == -mx.inf)).all().item()
    return np.isfinite(np.array(out)[:, 0])


def test_filters_keep_what_transformers_keeps(rng: np.random.Generator) -> None:
    rows = 200
    scores = numbers(rng, rows, 64)
    top_k = rng.choice([NO_FILTER, 1, 2, 5, 63, 64, 1000], rows)
    top_p = rng.choice([1.0, 1e-6, 0.1, 0.5, 0.8, 0.95, 0.999], rows)
    got = kept(scores, top_k, top_p)
    compared = 0
    for row in range(rows):
        expected = probabilities(scores[row : row + 1], 1.0, int(top_k[row]), float(top_p[row]))[0]
        whole = np.sort(probabilities(scores[row : row + 1], 1.0, int(top_k[row]))[0])
        if np.abs(np.cumsum(whole[::-1]) - top_p[row]).min() < 1e-5 and top_p[row] < 1:
            continue  # float32 may put this border on either side
        compared += 1
        assert (got[row] == (expected > 0)).all(), f"top_k {top_k[row]}, top_p {top_p[row]}"
    assert compared > 0.9 * rows


def test_equal_scores_stay_or_go_together(rng: np.random.Generator) -> None:
    rows = 200
    scores = rng.integers(-3, 4, (rows, 32)).astype(np.float32)
    top_k = rng.choice([NO_FILTER, 1, 3, 10], rows)
    top_p = rng.choice([1.0, 0.3, 0.7, 0.95], rows)
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


def test_each_row_has_its_own_filter(rng: np.random.Generator) -> None:
    logits = mx.broadcast_to(mx.array(numbers(rng, SMALL)), (3, 400, SMALL))
    rows = [
        params(1.5, k, p, seed)
        for (k, p), seed in zip([(1, 1.0), (3, 1.0), (NO_FILTER, 1.0)], seeds(rng, 3), strict=True)
    ]
    drawn = np.array(
        choose(logits, mx.broadcast_to(mx.arange(400)[None], (3, 400)), row_settings(rows))
    )
    best = np.argsort(np.array(logits[0, 0]))[::-1]
    assert set(drawn[0]) == {best[0]}
    assert set(drawn[1]) == set(best[:3])
    assert len(set(drawn[2])) > 5


@pytest.mark.parametrize("among_candidates", [False, True])
def test_suppressed_tokens_are_never_chosen(
    rng: np.random.Generator, among_candidates: bool
) -> None:
    suppressed = rng.permutation(SMALL)[:4]
    suppress = np.zeros(SMALL, np.float32)
    suppress[suppressed] = -np.inf
    logits = numbers(rng, SMALL)
    logits[suppressed] += 5  # the best ones, were they allowed
    settings = [(0.0, 0, 1.0), (1.0, 0, 1.0), (1.0, 5, 0.9), (30.0, 0, 1.0), (1e4, 0, 0.99)]
    rows = [params(*one, seed) for one, seed in zip(settings, seeds(rng, 5), strict=True)]
    ids = mx.broadcast_to(mx.array(rng.permutation(SMALL).astype(np.int32)), (5, 500, SMALL))
    for batch in (rows, rows[:1]):
        size = len(batch)
        every = mx.broadcast_to(mx.array(logits), (size, 500, SMALL))
        chosen = choose(
            mx.take_along_axis(every, ids[:size], axis=-1) if among_candidates else every,
            mx.broadcast_to(mx.arange(500)[None], (size, 500)),
            row_settings(batch, mx.array(suppress)),
            softcap=30.0,
            ids=ids[:size] if among_candidates else None,
        )
        for own, tokens in zip(batch, np.array(chosen), strict=True):
            assert not np.isin(tokens, suppressed).any(), own
            if own.temperature == 30.0:
                assert len(set(tokens.tolist())) == SMALL - 4


# SamplingParams


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", 0),
        ("max_tokens", -1),
        ("max_tokens", 2.5),
        ("temperature", -0.1),
        ("temperature", float("inf")),
        ("temperature", float("nan")),
        ("temperature", "hot"),
        ("top_k", -1),
        ("top_k", 1.5),
        ("top_p", 0.0),
        ("top_p", -0.5),
        ("top_p", 1.01),
        ("top_p", float("nan")),
        ("seed", -1),
        ("seed", 2**32),
        ("seed", 0.5),
        ("num_draft_tokens", -1),
        ("num_draft_tokens", MAX_DRAFT_TOKENS + 1),
        ("num_draft_tokens", "many"),
        ("num_draft_tokens", None),
        ("stop", ""),
        ("stop", ["end", ""]),
        ("stop", [3]),
    ],
)
def test_a_setting_out_of_range_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(UsageError, match=field):
        SamplingParams(**{field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", 1),
        ("temperature", 0),
        ("temperature", 5),
        ("top_k", 0),
        ("top_p", 1),
        ("seed", 0),
        ("seed", 2**32 - 1),
        ("num_draft_tokens", 0),
        ("num_draft_tokens", MAX_DRAFT_TOKENS),
        ("num_draft_tokens", "auto"),
        ("stop", "end"),
        ("stop", ["end", "stop"]),
    ],
)
def test_a_setting_at_the_border_of_its_range_is_taken(field: str, value: Any) -> None:
    assert getattr(SamplingParams(**{field: value}), field) == value


def test_unset_values_come_from_generation_config() -> None:
    defaults = {"do_sample": True, "temperature": 0.7, "top_k": 64, "top_p": 0.95}
    taken = SamplingParams().resolved(defaults)
    assert (taken.temperature, taken.top_k, taken.top_p) == (0.7, 64, 0.95)
    own = SamplingParams(temperature=0, top_k=0, top_p=1, seed=5).resolved(defaults)
    assert (own.temperature, own.top_k, own.top_p, own.seed) == (0, 0, 1, 5)


@pytest.mark.parametrize("defaults", [{}, {"temperature": None, "top_k": None, "top_p": None}])
def test_without_a_generation_config_values_are_plain(defaults: dict[str, None]) -> None:
    taken = SamplingParams().resolved(defaults)
    assert (taken.temperature, taken.top_k, taken.top_p) == (1.0, NO_FILTER, 1.0)


def test_a_checkpoint_that_does_not_sample_is_greedy_until_told_otherwise() -> None:
    defaults = {"do_sample": False, "temperature": 0.7}
    assert SamplingParams().resolved(defaults).temperature == 0
    assert SamplingParams(temperature=1.0).resolved(defaults).temperature == 1.0


def test_an_unset_seed_is_drawn_once_and_for_each_request() -> None:
    taken = [SamplingParams().resolved({}) for _ in range(4)]
    assert len({one.seed for one in taken}) == 4
    assert taken[0].resolved({}) == taken[0]
