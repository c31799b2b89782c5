"""With a small top_k a token is chosen among candidates: the same one as among the vocabulary."""

from collections.abc import Callable
from functools import partial
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from helpers.draws import params
from helpers.fake_target import VOCAB, FakeDrafter, FakeTarget
from helpers.graph import Graph, Launch
from helpers.rounds import Models, play, prefilled
from helpers.tying import TyingTarget, guess
from mlx_gemma_mtp import SamplingParams
from mlx_gemma_mtp.decode.candidates import NUM_BEST
from mlx_gemma_mtp.decode.sampling import (
    MOST_TOP_K,
    RowSettings,
    choose,
    gumbel,
    row_settings,
)

GEMMAS = 262_144  # tokens of every published Gemma 4
DEFAULTS = params(1, 64, 0.95)  # in their generation_config.json
SOFTCAP = 30.0
TEMPERATURES = [1e-6, 0.01, 0.5, 1.0, 5.0]
TOP_PS = [0.01, 0.3, 0.8, 0.95, 1.0]

Logits = Callable[..., mx.array]  # of a shape, with a key


def spread(shape: tuple[int, ...], key: mx.array) -> mx.array:
    return 6 * mx.random.normal(shape, key=key)


def few(logits: mx.array) -> mx.array:
    """Return logits of which few are finite, and at least one of each row."""
    largest = logits.max(axis=-1, keepdims=True)
    return mx.where((logits > 15) | (logits == largest), logits, -mx.inf)


# What the logits of a row may be. Hundreds tie among integers, most among five values.
LOGITS: dict[str, Logits] = {
    "float32": spread,
    "bfloat16": lambda *where: spread(*where).astype(mx.bfloat16),
    "beyond the softcap": lambda *where: 40 * spread(*where),
    "few finite": lambda *where: few(spread(*where)),
    "integers": lambda *where: mx.round(spread(*where)).astype(mx.bfloat16),
    "five values": lambda *where: mx.round(spread(*where) / 12),
    "all equal": lambda shape, _: mx.zeros(shape),
}
# How many of the choices among candidates are sure, at least.
SURE = {"float32": 0.9999, "bfloat16": 0.99, "few finite": 0.9999}


def some_rows(rng: np.random.Generator, count: int, top_ks: list[int]) -> list[SamplingParams]:
    """Rows of every setting, some of them greedy."""

    def one() -> SamplingParams:
        temperature = float(rng.choice([0.0, *TEMPERATURES], p=[0.04, *[0.192] * 5]))
        top_k, top_p = int(rng.choice(top_ks)), float(rng.choice(TOP_PS))
        return params(temperature, top_k, top_p, int(rng.integers(2**32)))

    return [one() for _ in range(count)]


def some_logits(rng: np.random.Generator, kind: str, shape: tuple[int, ...]) -> mx.array:
    return LOGITS[kind](shape, mx.random.key(int(rng.integers(2**32))))


# 20,000 rows in all
@pytest.mark.parametrize(
    ("size", "num_rows"), [(2048, 2700), (4096, 100), (16_384, 46), (GEMMAS, 12)]
)
@pytest.mark.parametrize("kind", LOGITS)
def test_candidates_give_the_tokens_of_the_whole_vocabulary(
    kind: str, size: int, num_rows: int, rng: np.random.Generator
) -> None:
    num_tokens = 2
    rows = some_rows(rng, num_rows // num_tokens, [1, 2, 5, 20, 40, MOST_TOP_K])
    # Because of them, all are sorted. Two greedy ones would not do.
    wide = [params(1.0, int(rng.choice([0, 100, 1024])), 0.9, 1), *some_rows(rng, 1, [0, 100])]
    logits = some_logits(rng, kind, (len(rows), num_tokens, size))
    position = mx.array(rng.integers(0, 2**18, (len(rows), num_tokens)))
    # One of the suppressed tokens is the best of the first row.
    best = int(mx.argmax(logits[0, 0]).item())
    suppress = mx.array([best, *rng.integers(0, size, 4).tolist()])

    def chosen(rows: list[SamplingParams], extra: int) -> tuple[np.ndarray, np.ndarray | None]:
        more = (
            mx.concatenate([logits, logits[:extra]]),
            mx.concatenate([position, position[:extra]]),
        )
        tokens, sure = choose(*more, row_settings(rows, suppress), softcap=SOFTCAP)
        return np.array(tokens), None if sure is None else np.array(sure)

    among_all, nothing = chosen(rows + wide, len(wide))
    assert nothing is None
    tokens, sure = chosen(rows, 0)
    assert sure is not None
    assert (tokens[sure] == among_all[: len(rows)][sure]).all()
    assert sure.mean() >= SURE.get(kind, 0)
    if kind == "all equal" or (kind == "five values" and size > 2048):
        assert not sure.all()
    assert not np.isin(tokens[sure], np.array(suppress)).any()


def reference(scores: np.ndarray, noise: np.ndarray, row: SamplingParams) -> tuple[set[int], bool]:
    """The tokens that float64 may choose from scores [V], and whether rounding may change that."""
    ranked = np.sort(scores)[::-1]
    near = 1e-5 * max(1.0, abs(ranked[0]))
    kth = ranked[min(row.top_k or len(ranked), len(ranked)) - 1]
    inside = scores >= kth
    levels, counts = np.unique(scores[inside], return_counts=True)
    mass = (counts * np.exp(levels - ranked[0]))[::-1]
    before = (np.cumsum(mass) - mass) / mass.sum()
    num_levels = len(levels) if row.top_p == 1 else int((before < row.top_p).sum())
    edge = levels[::-1][num_levels - 1]
    unclear = row.top_p < 1 and bool((np.abs(before - row.top_p) < 1e-5).any())
    for border in (kth, edge):
        with np.errstate(invalid="ignore"):  # -inf - -inf
            away = np.abs(scores - border)
        unclear |= bool(((away > 0) & (away < near)).any())
    values = np.where(scores >= edge, scores + noise, -np.inf)
    return set(np.flatnonzero(values > values.max() - near).tolist()), unclear


@pytest.mark.parametrize("size", [1000, 2048, 3001])
@pytest.mark.parametrize("kind", [kind for kind in LOGITS if kind != "beyond the softcap"])
def test_the_whole_vocabulary_gives_the_tokens_of_a_plain_reference(
    kind: str, size: int, rng: np.random.Generator
) -> None:
    rows = some_rows(rng, 40, [0, 1, 3, 40, MOST_TOP_K, 200, 1024])
    logits = some_logits(rng, kind, (len(rows), 1, size))
    position = mx.array(rng.integers(0, 2**18, (len(rows), 1)))
    settings = row_settings(rows)
    assert settings.full
    tokens = choose(logits, position, settings, softcap=SOFTCAP).tokens[:, 0].tolist()
    noise = np.array(gumbel(settings.seed, position, size), np.float64)[:, 0]
    raw = np.array(logits.astype(mx.float32), np.float64)[:, 0]
    compared = 0
    for row, token, own, numbers in zip(rows, tokens, noise, raw, strict=True):
        if not row.temperature:
            assert token == numbers.argmax()
            continue
        capped = np.where(numbers == -np.inf, -np.inf, SOFTCAP * np.tanh(numbers / SOFTCAP))
        right, unclear = reference(capped / row.temperature, own, row)
        if not unclear:
            assert token in right, row
            compared += 1
    assert compared > 20


def test_candidates_of_a_drafter_with_an_order_of_its_own(rng: np.random.Generator) -> None:
    rows = some_rows(rng, 30, [1, 5, MOST_TOP_K])
    ids = np.stack([rng.permutation(GEMMAS)[:4096] for _ in rows])[:, None]
    logits = some_logits(rng, "integers", ids.shape)
    position = mx.array(rng.integers(0, 2**18, (len(rows), 1)))
    settings = row_settings(rows, mx.array(ids[0, 0, :5]))
    ask = partial(choose, logits, position, ids=mx.array(ids), vocab_size=GEMMAS)
    tokens, sure = ask(settings)
    assert sure is not None
    among_all = ask(settings._replace(full=True)).tokens
    assert ((tokens == among_all) | ~sure).all().item()
    assert sure.sum().item() > 10
    for own, token in zip(ids[:, 0], among_all[:, 0].tolist(), strict=True):
        assert token in own
    assert among_all[0, 0].item() not in ids[0, 0, :5]


# Tied tokens in few of the first blocks, then in a block each; in blocks of their own at the end.
@pytest.mark.parametrize("distance", [8, 1024])
def test_choices_are_sure_until_more_blocks_tie_than_are_kept(distance: int) -> None:
    for num_tied, expected in ((NUM_BEST, True), (NUM_BEST + 1, False)):
        logits = np.zeros((1, 1, GEMMAS), np.float32)
        logits[..., : num_tied * distance : distance] = 1
        chosen = choose(mx.array(logits), mx.zeros((1, 1), mx.int32), row_settings([DEFAULTS]))
        assert chosen.sure is not None
        assert chosen.sure.item() is expected


def test_a_greedy_row_asks_for_no_place_among_candidates(rng: np.random.Generator) -> None:
    """Whatever its top_k is: a place that does not exist would be read anyway."""
    settings = row_settings([params(0, top_k, 1) for top_k in (0, 64, 5000, 10**6)] + [DEFAULTS])
    assert not settings.full
    assert settings.kth.flatten().tolist() == [0, 0, 0, 0, -64]
    logits = some_logits(rng, "float32", (5, 1, GEMMAS))
    tokens = choose(logits, mx.zeros((5, 1), mx.int32), settings).tokens
    assert tokens[:4].tolist() == mx.argmax(logits[:4], axis=-1).tolist()


# Outputs of a target whose logits tie


def outputs(
    target: FakeTarget, settings: RowSettings, prompts: mx.array, num_drafts: int
) -> tuple[list[list[int]], int]:
    """16 tokens of each row, and how many rounds were played again with the whole vocabulary."""
    models = Models(target, FakeDrafter())  # type: ignore[arg-type]
    at = prefilled(target, prompts, settings)  # type: ignore[arg-type]
    found = [[token] for token in at.newest.token.tolist()]
    again, num_again = False, 0
    while any(open_rows := [len(tokens) < 16 for tokens in found]):
        most = [num_drafts if is_open else -1 for is_open in open_rows]
        with_all = settings._replace(full=True) if again else settings
        done = play(models, at, with_all, most, num_drafts, draft=guess)
        accepted = done.accepted.tolist()
        again = any(hits < 0 <= limit for hits, limit in zip(accepted, most, strict=True))
        num_again += again
        for tokens, new, hits in zip(found, done.tokens.tolist(), accepted, strict=True):
            tokens += new[: hits + 1]
    return [tokens[:16] for tokens in found], num_again


@pytest.mark.parametrize("num_drafts", [0, 3])
def test_outputs_with_ties_are_those_of_the_whole_vocabulary(
    num_drafts: int, rng: np.random.Generator
) -> None:
    target = TyingTarget(rng)
    narrow = [*some_rows(rng, 3, [1, 5, 40, MOST_TOP_K]), params(0, 0, 1), params(2, 64, 0.95, 5)]
    prompts = mx.array(rng.integers(0, VOCAB, (len(narrow) + 1, 5)))
    wide = params(1, 0, 0.9, 6)
    expected, none_again = outputs(target, row_settings([*narrow, wide]), prompts, 0)
    assert none_again == 0
    found, num_again = outputs(target, row_settings(narrow), prompts[:-1], num_drafts)
    assert found == expected[:-1]
    assert num_again > 0
    alone, num_again = outputs(target, row_settings(narrow[-1:]), prompts[-2:-1], num_drafts)
    assert alone == expected[-2:-1]
    assert num_again > 0


# What it costs


def launches(rows: list[SamplingParams | None], num_tokens: int) -> list[Launch]:
    """The launches of one choice for the target's bfloat16 logits, with suppressed tokens."""
    suppress = mx.array([1, 2, 3])
    columns = list(row_settings(rows)[:4])
    mx.eval(suppress, columns)

    def chosen(logits: mx.array, position: mx.array, *columns: mx.array) -> list[mx.array]:
        settings = RowSettings(*columns, *row_settings(rows, suppress)[4:])
        found = choose(logits, position, settings, softcap=SOFTCAP)
        return [array for array in found if array is not None]

    logits = mx.zeros((len(rows), num_tokens, GEMMAS), mx.bfloat16)
    position = mx.zeros((len(rows), num_tokens), mx.int32)
    return Graph(chosen, logits, position, *columns).launches()


@pytest.mark.parametrize(("batch", "num_tokens"), [(1, 1), (4, 4)])
def test_gemmas_defaults_take_few_launches_and_bytes(batch: int, num_tokens: int) -> None:
    found = launches([DEFAULTS] * batch, num_tokens)
    assert sum(one.launches for one in found) <= 25
    nbytes = sum(one.nbytes for one in found) / (batch * num_tokens)
    # Once over the bfloat16 logits is the least.
    assert 2 * GEMMAS < nbytes < 2e6


def test_the_whole_vocabulary_is_sorted_once_or_not_at_all() -> None:
    def names(*row: Any) -> list[str]:
        return [one.name for one in launches([params(*row)], 1)]

    for top_k, top_p in ((0, 0.9), (100, 1.0), (200, 0.9)):
        assert names(1.0, top_k, top_p).count("Sort") == 1
    assert "Sort" not in names(1.0, 0, 1.0)
    assert names(0.0, 0, 1.0) == ["AsType", "ArgReduce", "ScatterAxis"]


def test_a_free_row_asks_for_no_step_of_its_own() -> None:
    assert launches([DEFAULTS, None], 1) == launches([DEFAULTS] * 2, 1)


def test_the_count_knows_chains_copies_and_long_sorts() -> None:
    x = mx.zeros((4, 4096))
    chain = Graph(lambda x: mx.tanh(x / 2) * 3 + x, x).launches()
    assert [(one.launches, one.nbytes) for one in chain] == [(1, 2 * x.nbytes + 8)]
    assert [one.launches for one in Graph(lambda x: mx.sort(x, axis=-1), x).launches()] == [4]
    copied = Graph(lambda x: x.T.reshape(-1), x).launches()
    assert [(one.name, one.nbytes) for one in copied] == [("Copy", 2 * x.nbytes)]
