"""The check finds every difference, and tells rounding from a fault by the margin."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from helpers.checkpoints import VOCAB
from helpers.random_pair import EXPERTS, SUPPRESSED, random_pair
from mlx_gemma_mtp import Completion, Engine, SamplingParams
from mlx_gemma_mtp.check import Report, compare
from mlx_gemma_mtp.decode.player import round_player
from mlx_gemma_mtp.decode.round import Agree, agreeing_prefix
from mlx_gemma_mtp.decode.sampling import choose, gumbel, row_settings
from mlx_gemma_mtp.engine.pair import OpenPair
from mlx_gemma_mtp.engine.worker import mlx_worker
from mlx_gemma_mtp.errors import ModelNotFoundError
from mlx_gemma_mtp.margin import FARTHEST, NEAR_ULPS, margin, scores, shortfall
from mlx_gemma_mtp.model.cache import KVCache

GREEDY = SamplingParams(temperature=0, top_k=0, top_p=1, seed=0)
UNFILTERED = SamplingParams(temperature=0.8, top_k=0, top_p=1, seed=7)
FILTERS: list[dict[str, Any]] = [{"top_k": 20}, {"top_p": 0.9}, {"top_k": 20, "top_p": 0.9}]
FILTERS += [{"min_p": 0.1}, {"top_k": 20, "min_p": 0.05}]
SETTINGS = [GREEDY, UNFILTERED, *(replace(UNFILTERED, **filters) for filters in FILTERS)]
Change = Callable[[list[list[int]], list[SamplingParams], list[Completion]], None]
Run = Callable[..., Report]


class Changed(Engine):
    """An engine whose completions are changed before anyone compares them."""

    change: Change | None = None

    def generate(self, prompts: Any, params: Any) -> list[Completion]:  # type: ignore[override]
        done = super().generate(prompts, params)
        if self.change:
            self.change(prompts, params if isinstance(params, list) else [params], done)
        return done


@pytest.fixture
def run(rng: np.random.Generator) -> Run:
    """Compare a few small batches of a pair, with another rule of agreement or with changes."""
    prompts = [rng.integers(0, VOCAB, length).tolist() for length in (5, 21, 3)]

    def run(
        pair: OpenPair,
        drafts: Sequence[Any] = (0, 2, "auto"),
        batches: Sequence[int] = (1, 3),
        agree: Agree = agreeing_prefix,
        change: Change | None = None,
    ) -> Report:
        report = Report.of(pair)
        with Changed(pair, max_batch=4, player=partial(round_player, agree=agree)) as engine:
            engine.change = change
            report.compared += compare(engine, pair, lambda n: prompts[:n], batches, drafts, 8)
        report.complete = True
        return report

    return run


@pytest.mark.parametrize("experts", [None, EXPERTS], ids=["dense", "mixture"])
def test_in_float32_all_completions_are_the_same(
    experts: dict[str, Any] | None, rng: np.random.Generator, run: Run
) -> None:
    report = run(random_pair(rng, experts=experts))
    settings = [(1, 2), (1, "auto"), (3, 0), (3, 2), (3, "auto")]
    found = [(one.temperature, one.batch, one.num_draft_tokens) for one in report.compared]
    assert found == [(temperature, *one) for temperature in (0, 1) for one in settings]
    for one in report.compared:
        assert len(one.rows) == one.batch
        assert all(row.tokens == 8 and row.difference is None for row in one.rows)
        if one.num_draft_tokens != "auto":
            assert all(bool(row.drafted) == bool(one.num_draft_tokens) for row in one.rows)
    bound, first = str(report).splitlines()[:2]
    assert bound == "float32 throughout: completions must not differ"
    assert first.startswith("temperature 0, batch 1, drafts 2: 1 of 1 the same, 8 tokens, ")
    assert first.endswith(f", {report.compared[0].rows[0].drafted} drafted")
    assert report.summary == "22 of 22 completions are the same"


def test_one_draft_accepted_too_many_is_a_fault(rng: np.random.Generator, run: Run) -> None:
    def lenient(drafts: mx.array, chosen: mx.array) -> mx.array:
        return mx.minimum(agreeing_prefix(drafts, chosen) + 1, drafts.shape[1])

    report = run(random_pair(rng, mx.bfloat16, bits=4), [2], agree=lenient)
    differing = ((one, *row) for one in report.compared for row in one.differences)
    compared, at, first = next(row for row in differing if row[-1].is_fault)
    assert compared.num_draft_tokens == 2
    assert first.margin.size > first.margin.bound > 0
    assert f"first: {compared.settings}, row {at}: after" in report.summary
    assert str(report).count(": fault, margin") == len(report.faults) + 1
    found = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert (found["schema"], found["faults"]) == (3, report.faults)


def swap_twin(
    pair: OpenPair,
    position: int,
    prompts: Any,
    params: list[SamplingParams],
    done: list[Completion],
) -> None:
    """In completions with drafts, put a token of the same embedding in one place."""
    if params[0].num_draft_tokens == 2 and params[0].temperature == 0:
        tokens = done[0].tokens
        used = {*SUPPRESSED, *prompts[0], *tokens}
        other = next(token for token in range(VOCAB) if token not in used)
        weight = pair.target.embed_tokens.weight
        mlx_worker().run(lambda: weight.__setitem__(other, weight[tokens[position]]))
        tokens[position] = other


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_a_perfect_tie_is_a_near_tie_except_in_float32(
    dtype: mx.Dtype, rng: np.random.Generator, run: Run
) -> None:
    pair, position = random_pair(rng, dtype), 4

    report = run(pair, [2], [1], change=partial(swap_twin, pair, position))
    [(_, found)] = [differing for one in report.compared for differing in one.differences]
    assert (found.position, found.margin.size) == (position, 0)
    exact = dtype == mx.float32
    assert found.is_fault == exact
    assert len(report.faults) == exact
    assert ("1 differ at a near tie" in report.summary) != exact


@pytest.mark.parametrize("exact", [True, False])
def test_a_near_tie_is_a_fault_if_both_completions_are_exact(
    exact: bool, rng: np.random.Generator, run: Run
) -> None:
    pair, position = random_pair(rng, mx.bfloat16), 4

    def twin(prompts: Any, params: list[SamplingParams], done: list[Completion]) -> None:
        swap_twin(pair, position, prompts, params, done)
        if exact or params[0].num_draft_tokens:  # one alone does not count
            done[:] = [replace(one, exact=True) for one in done]

    report = run(pair, [2], [1], change=twin)
    assert len(report.faults) == exact
    num_exact = 2 if exact else 0
    assert report.summary.endswith(f"; {num_exact} of 2 from exact passes")
    assert str(report).count(", exact") == num_exact
    assert "those from exact passes must not differ" in report.bound


def test_a_completion_that_ends_too_early_is_a_fault(rng: np.random.Generator, run: Run) -> None:
    def shorten(prompts: Any, params: list[SamplingParams], done: list[Completion]) -> None:
        if params[0].num_draft_tokens == 2:
            del done[0].tokens[-1]

    report = run(random_pair(rng, mx.bfloat16), [2], [1], change=shorten)
    assert len(report.faults) == 2
    assert "after 7 tokens the end, not token " in report.summary


def test_a_completion_that_the_batch_changes_is_not_blamed_on_drafts(
    rng: np.random.Generator, run: Run
) -> None:
    def change(prompts: Any, params: list[SamplingParams], done: list[Completion]) -> None:
        if len(done) > 1:
            done[1].tokens[-1] ^= 1

    report = run(random_pair(rng), [2], [3], change=change)
    faulty = [one for one in report.compared if one.differences]
    assert [(one.batch, one.num_draft_tokens) for one in faulty] == [(3, 0)] * 2
    assert "temperature 1, batch 3, no drafts, compared with each row alone: 2 of 3 the same" in (
        str(report)
    )


def test_without_a_drafter_there_is_nothing_to_compare(rng: np.random.Generator, run: Run) -> None:
    with pytest.raises(ModelNotFoundError, match="nothing to compare without a drafter"):
        run(random_pair(rng)._replace(drafter=None))


def test_a_margin_is_the_difference_of_two_scores(rng: np.random.Generator) -> None:
    pair = random_pair(rng, mx.bfloat16)._replace(defaults={"suppress_tokens": SUPPRESSED})
    ids = rng.integers(0, VOCAB, 29).tolist()

    def raw() -> np.ndarray:
        cache = KVCache.empty(pair.target.config, 1, capacity=64, most=len(ids), dtype=mx.bfloat16)
        logits = pair.target.logits(pair.target(mx.array([ids]), cache))
        return np.array(logits[0, -1].astype(mx.float32), np.float64)

    logits = mlx_worker().run(raw)
    noise = np.array(gumbel(mx.array([[7]]), mx.array([[len(ids)]]), VOCAB))[0, 0]
    capped = 30 * np.tanh(logits / 30)
    repeated = np.where(np.isin(np.arange(VOCAB), ids), np.minimum(capped * 2, capped / 2), capped)
    for params, values in [
        (GREEDY, logits),
        (UNFILTERED, capped / 0.8 + noise),
        (replace(UNFILTERED, repetition_penalty=2), repeated / 0.8 + noise),
        (replace(GREEDY, repetition_penalty=2), repeated),
    ]:
        values[SUPPRESSED] = -np.inf
        best = int(values.argmax())
        other = next(token for token in range(VOCAB) if token not in (best, *SUPPRESSED))
        ask = partial(margin, pair, ids, params=params, chunk=8)
        found = mlx_worker().run(partial(ask, tokens=(other, best)))
        larger = max(abs(logits[best]), abs(logits[other]))
        ulp = 2.0 ** (math.floor(math.log2(larger)) - 7)
        assert found.size == pytest.approx(values[best] - values[other], abs=1e-4)
        assert found.bound == pytest.approx(NEAR_ULPS * ulp / (params.temperature or 1))
        assert mlx_worker().run(partial(ask, tokens=(SUPPRESSED[0], best))).size == FARTHEST


@pytest.mark.parametrize("params", SETTINGS)
def test_a_token_that_rounding_can_choose_is_within_its_margin(
    params: SamplingParams, rng: np.random.Generator
) -> None:
    num, off = 100, 0.1
    logits = rng.standard_normal((num, VOCAB)).astype(np.float32) * 3
    suppress = mx.array(SUPPRESSED)

    def chosen(logits: np.ndarray) -> list[int]:
        settings = row_settings([params], suppress)
        tokens = choose(mx.array(logits)[None], mx.arange(num)[None], settings, softcap=30.0).tokens
        return tokens[0].tolist()

    found = [scores(mx.array(logits[at]), at, params, 30.0, SUPPRESSED) for at in range(num)]
    best = chosen(logits)
    for at in range(num):
        short = [shortfall(*found[at], token) for token in range(VOCAB)]
        assert [token for token in range(VOCAB) if short[token] == 0] == [best[at]]
        assert all(math.isinf(short[token]) for token in SUPPRESSED)
    others = False
    for _ in range(10):
        rounded = chosen(logits + rng.uniform(-off, off, logits.shape).astype(np.float32))
        for at, token in enumerate(rounded):
            # Each logit moves by up to `off`: two of them by twice that against each other.
            assert shortfall(*found[at], token) <= 2 * off / (params.temperature or 1)
        others |= rounded != best
    assert others


def test_the_edge_of_the_filters_is_a_logit_or_a_probability_away() -> None:
    logits = np.full(VOCAB, -20.0, np.float32)
    logits[:4] = np.log([0.5, 0.3, 0.15, 0.05])

    def slack(params: SamplingParams) -> list[float]:
        _, found = scores(mx.array(logits), 0, params, None, [4])
        assert math.isinf(found[4])
        return found[:4].tolist()

    by_rank = slack(replace(UNFILTERED, temperature=1, top_k=2))
    wanted = [math.log(0.5 / 0.15), math.log(2), -math.log(2), -math.log(6)]
    assert by_rank == pytest.approx(wanted, abs=1e-5)
    # A token is inside while the odds of the tokens before it are below 3 to 1. They are 1 to 1
    # before the second, which is out once the third has passed it, and 4 to 1 before the third.
    # The first is out once the second has passed it and its odds have become 3 to 1.
    by_mass = slack(replace(UNFILTERED, temperature=1, top_p=0.75))
    wanted = [math.log(3), math.log(2), -math.log(4 / 3), -math.log(3)]
    assert by_mass == pytest.approx(wanted, abs=1e-5)


def test_a_shortfall_is_the_nearest_way_to_be_chosen() -> None:
    value, slack = np.array([5.0, 3.0, 1.0]), np.array([0.2, 1.0, -0.4])
    assert shortfall(value, slack, 0) == 0
    assert shortfall(value, slack, 1) == 0.2  # the first falls out before it loses its lead of 2
    assert shortfall(value, slack, 2) == 1.0  # the second must fall out, too
    assert shortfall(value, np.array([0.2, 0.3, -0.4]), 2) == 0.4  # it must come inside itself
