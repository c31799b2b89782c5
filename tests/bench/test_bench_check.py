"""The benchmark's check: it says so where texts part, and tells rounding from a fault."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_map
from mlx_gemma_mtp.bench import check as checking
from mlx_gemma_mtp.bench import margin as margins
from mlx_gemma_mtp.bench.check import CheckReport, check
from mlx_gemma_mtp.bench.margin import NEAR_ULPS, Standing, margin, standing
from mlx_gemma_mtp.bench.record import Drafts

from mlx_gemma_mtp import Completion, Engine, SamplingParams
from mlx_gemma_mtp.decode import round as speculate
from mlx_gemma_mtp.decode.sampling import choose, row_settings
from mlx_gemma_mtp.engine.pair import OpenPair
from mlx_gemma_mtp.engine.worker import mlx_worker
from mlx_gemma_mtp.errors import ModelNotFoundError, UsageError
from mlx_gemma_mtp.files.weights import quantize
from mlx_gemma_mtp.model.cache import KVCache
from mlx_gemma_mtp.model.config import DrafterConfig, TargetConfig
from mlx_gemma_mtp.model.drafter import Drafter
from mlx_gemma_mtp.model.target import Target

VOCAB = 256
SUPPRESSED = [3, 200]
SHAPE: dict[str, Any] = {
    "model_type": "gemma4_text",
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "layer_types": ["sliding_attention"] * 3 + ["full_attention"],
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_global_key_value_heads": 1,
    "head_dim": 16,
    "global_head_dim": 32,
    "attention_k_eq_v": True,
    "sliding_window": 16,
    "hidden_size_per_layer_input": 0,
    "final_logit_softcapping": 30.0,
}
EXPERTS = {
    "enable_moe_block": True,
    "num_experts": 8,
    "top_k_experts": 2,
    "moe_intermediate_size": 64,
}
GREEDY = SamplingParams(temperature=0, top_k=0, top_p=1, seed=0)
UNFILTERED = SamplingParams(temperature=0.8, top_k=0, top_p=1, seed=7)
SETTINGS = [
    GREEDY,
    UNFILTERED,
    replace(UNFILTERED, top_k=20),
    replace(UNFILTERED, top_p=0.9),
    replace(UNFILTERED, top_k=20, top_p=0.9),
]
Run = Callable[..., CheckReport]


def random_pair(
    rng: np.random.Generator,
    dtype: mx.Dtype = mx.float32,
    bits: int | None = None,
    experts: dict[str, Any] | None = None,
) -> OpenPair:
    """A tiny pair of noise, its logits as far apart as those of a model that knows something."""

    def make() -> OpenPair:
        config = TargetConfig.from_dict(SHAPE | (experts or {}))
        drafter = DrafterConfig.from_dict(
            {
                "model_type": "gemma4_assistant",
                "text_config": SHAPE,
                "backbone_hidden_size": config.hidden_size,
                "use_ordered_embeddings": False,
            }
        )
        models = Target(config), Drafter(drafter)
        for model in models:
            model.update(tree_map(noise, model.parameters()))
            if bits:
                quantize(model, bits)
        models[0].norm.weight *= 4
        return OpenPair(*models, None, {"suppress_tokens": SUPPRESSED, "top_k": 64}, None)

    def noise(parameter: mx.array) -> mx.array:
        if parameter.ndim == 1:
            return mx.ones(parameter.shape, dtype)
        drawn = rng.standard_normal(parameter.shape) * parameter.shape[-1] ** -0.5
        return mx.array(drawn).astype(dtype)

    return mlx_worker().run(make)


@pytest.fixture
def run(rng: np.random.Generator) -> Run:
    """Check a pair, in few small batches."""
    prompts = [rng.integers(0, VOCAB, length).tolist() for length in (5, 21, 3)]

    def run(
        pair: OpenPair,
        drafts: Sequence[Drafts] = (0, 2, "auto"),
        batches: Sequence[int] = (1, 3),
    ) -> CheckReport:
        report = CheckReport.of(pair)
        with Engine(pair, max_batch=4, max_queue=8) as engine:
            check(
                engine,
                pair,
                lambda batch: prompts[:batch],
                report,
                batches=batches,
                drafts=drafts,
                max_tokens=8,
                seed=2**32 - 2,
                tell=lambda line: None,
            )
        return report

    return run


@pytest.mark.parametrize("experts", [None, EXPERTS], ids=["dense", "mixture"])
def test_in_float32_all_texts_are_the_same(
    experts: dict[str, Any] | None, rng: np.random.Generator, run: Run
) -> None:
    report = run(random_pair(rng, experts=experts))
    settings = [(1, 2), (1, "auto"), (3, 0), (3, 2), (3, "auto")]
    assert [(one.temperature, one.batch, one.drafts, one.row) for one in report.compared] == [
        (temperature, batch, drafts, row)
        for temperature in (0, 1)
        for batch, drafts in settings
        for row in range(batch)
    ]
    assert not any(one.parted for one in report.compared)
    assert all(one.tokens == 8 for one in report.compared)
    assert all(one.drafted for one in report.compared if one.drafts == 2)
    assert not any(one.drafted for one in report.compared if one.drafts == 0)
    bound, first = report.lines()[:2]
    assert bound == "float32 throughout: nothing may part"
    assert first == (
        "temperature 0, batch 1, drafts 2: 1 of 1 the same, 8 tokens, "
        f"{report.compared[0].drafted} drafted"
    )
    assert report.summary() == "22 of 22 texts are the same"
    assert all(one["identical"] for one in report.to_json()["compared"])


def test_one_draft_accepted_too_many_is_a_fault(
    rng: np.random.Generator, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    agreeing = speculate.agreeing_prefix

    def lenient(drafts: mx.array, chosen: mx.array) -> mx.array:
        return mx.minimum(agreeing(drafts, chosen) + 1, drafts.shape[1])

    monkeypatch.setattr(speculate, "agreeing_prefix", lenient)
    report = run(random_pair(rng, mx.bfloat16, bits=4), [2])
    assert report.faults
    first = report.faults[0]
    assert first.drafts != 0
    assert first.parted is not None
    assert first.parted.margin is not None
    assert first.parted.margin.size > first.parted.margin.bound > 0
    assert f"the first: {first.group}, row {first.row}, after" in report.summary()
    assert sum("fault" in line for line in report.lines()[:-1]) == len(report.faults)
    found = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert found["schema"] == 1
    assert found["faults"] == len(report.faults)


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_a_perfect_tie_is_a_near_tie_except_in_float32(
    dtype: mx.Dtype, rng: np.random.Generator, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair, position = random_pair(rng, dtype), 4
    write = checking._write

    def twinned(engine: Engine, requests: Sequence[Any], drafts: Drafts) -> list[Completion]:
        """With drafts the text goes on, at one place, with a token of the same embedding."""
        done = write(engine, requests, drafts)
        if drafts == 2 and requests[0].params.temperature == 0:
            tokens = done[0].tokens
            used = {*SUPPRESSED, *requests[0].prompt, *tokens}
            twin = next(token for token in range(VOCAB) if token not in used)
            mlx_worker().run(partial(make_equal, pair.target, twin, tokens[position]))
            tokens[position] = twin
        return done

    monkeypatch.setattr(checking, "_write", twinned)
    report = run(pair, [2], [1])
    parted = [one.parted for one in report.compared if one.parted]
    assert len(parted) == 1
    assert parted[0].position == position
    assert parted[0].margin is not None
    assert parted[0].margin.size == 0
    exact = dtype == mx.float32
    assert parted[0].verdict == ("fault" if exact else "near tie")
    assert len(report.faults) == exact
    assert ("1 part at a near tie" in report.summary()) != exact


def make_equal(target: Target, one: int, other: int) -> None:
    target.embed_tokens.weight[one] = target.embed_tokens.weight[other]


def test_a_text_that_ends_where_the_other_goes_on_is_a_fault(
    rng: np.random.Generator, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = checking._write

    def shortened(engine: Engine, requests: Sequence[Any], drafts: Drafts) -> list[Completion]:
        done = write(engine, requests, drafts)
        for one in done[: 1 if drafts == 2 else 0]:
            del one.tokens[-1]
        return done

    monkeypatch.setattr(checking, "_write", shortened)
    report = run(random_pair(rng, mx.bfloat16), [2], [1])
    assert len(report.faults) == len(report.compared) == 2
    assert "after 7 tokens the end in place of token " in report.summary()
    assert report.to_json()["compared"][0]["parted"]["margin"] is None


def test_a_text_that_another_batch_changes_is_told_apart_from_drafts(
    rng: np.random.Generator, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = checking._write

    def changed(engine: Engine, requests: Sequence[Any], drafts: Drafts) -> list[Completion]:
        done = write(engine, requests, drafts)
        if len(requests) > 1:
            done[1].tokens[-1] ^= 1
        return done

    monkeypatch.setattr(checking, "_write", changed)
    report = run(random_pair(rng), [2], [3])
    assert [(one.batch, one.drafts, one.row) for one in report.faults] == [(3, 0, 1)] * 2
    assert "temperature 1, batch 3, no drafts, beside each alone: 2 of 3 the same, 23 tokens" in (
        report.lines()
    )


def test_a_margin_is_the_difference_of_two_scores(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(margins, "CHUNKS", (8,))
    pair = random_pair(rng, mx.bfloat16)
    ids = rng.integers(0, VOCAB, 29).tolist()

    def raw() -> np.ndarray:
        cache = KVCache.empty(pair.target.config, 1, capacity=64, most=len(ids), dtype=mx.bfloat16)
        logits = pair.target.logits(pair.target(mx.array([ids]), cache))
        return np.array(logits[0, -1].astype(mx.float32), np.float64)

    logits = mlx_worker().run(raw)
    gumbel = np.array(mx.random.gumbel((VOCAB,), key=mx.array([7, len(ids)], mx.uint32)))
    for params, scores in [
        (GREEDY, logits),
        (UNFILTERED, 30 * np.tanh(logits / 30) / 0.8 + gumbel),
    ]:
        best = int(scores.argmax())
        other = (best + 1) % VOCAB
        found = mlx_worker().run(partial(margin, pair.target, ids, (other, best), params))
        larger = max(abs(logits[best]), abs(logits[other]))
        ulp = 2.0 ** (math.floor(math.log2(larger)) - 7)
        assert found.size == pytest.approx(scores[best] - scores[other], abs=1e-4)
        assert found.bound == pytest.approx(NEAR_ULPS * ulp / (params.temperature or 1))


@pytest.mark.parametrize("params", SETTINGS)
def test_what_rounding_can_choose_is_never_beyond_its_margin(
    params: SamplingParams, rng: np.random.Generator
) -> None:
    num, off = 100, 0.1
    logits = rng.standard_normal((num, VOCAB)).astype(np.float32) * 3
    suppress = mx.zeros((VOCAB,))
    suppress[mx.array(SUPPRESSED)] = -mx.inf

    def chosen(logits: np.ndarray) -> list[int]:
        settings = row_settings([params], suppress)
        tokens = choose(mx.array(logits)[None], mx.arange(num)[None], settings, softcap=30.0)
        return tokens[0].tolist()

    where = [standing(mx.array(logits[at]), at, params, 30.0, SUPPRESSED) for at in range(num)]
    best = chosen(logits)
    for at in range(num):
        short = [where[at].shortfall(token) for token in range(VOCAB)]
        assert [token for token in range(VOCAB) if short[token] == 0] == [best[at]]
        assert all(math.isinf(short[token]) for token in SUPPRESSED)
    others = False
    for _ in range(10):
        rounded = chosen(logits + rng.uniform(-off, off, logits.shape).astype(np.float32))
        for at, token in enumerate(rounded):
            # Each logit moves by up to `off`: two of them by twice that against each other.
            assert where[at].shortfall(token) <= 2 * off / (params.temperature or 1)
        others |= rounded != best
    assert others


def test_the_filters_edge_is_a_logit_or_a_probability_away() -> None:
    logits = np.full(VOCAB, -20.0, np.float32)
    logits[:4] = np.log([0.5, 0.3, 0.15, 0.05])

    def depth(params: SamplingParams) -> list[float]:
        found = standing(mx.array(logits), 0, params, None, [4])
        assert math.isinf(found.depth[4])
        return found.depth[:4].tolist()

    by_rank = depth(replace(UNFILTERED, temperature=1, top_k=2))
    wanted = [math.log(0.5 / 0.15), math.log(2), -math.log(2), -math.log(6)]
    assert by_rank == pytest.approx(wanted, abs=1e-5)
    # The odds of what comes before a token decide: below 3 to 1 it is inside. They are 1 to 1
    # before the second, which is out when the third has passed it, and 4 to 1 before the third.
    # The first is out when the second has passed it and its odds have become 3 to 1.
    by_mass = depth(replace(UNFILTERED, temperature=1, top_p=0.75))
    wanted = [math.log(3), math.log(2), -math.log(4 / 3), -math.log(3)]
    assert by_mass == pytest.approx(wanted, abs=1e-5)


def test_what_keeps_a_token_from_being_chosen() -> None:
    where = Standing(np.array([5.0, 3.0, 1.0]), np.array([0.2, 1.0, -0.4]))
    assert where.shortfall(0) == 0
    assert where.shortfall(1) == 0.2  # sooner does the first fall out than lose its lead of 2
    assert where.shortfall(2) == 1.0  # the second has to fall out, too
    outside = where._replace(depth=np.array([0.2, 0.3, -0.4]))
    assert outside.shortfall(2) == 0.4  # it must itself come inside


def test_without_a_drafter_or_drafts_there_is_nothing_to_compare(
    rng: np.random.Generator, run: Run
) -> None:
    pair = random_pair(rng)
    with pytest.raises(UsageError, match="nothing to compare without drafts"):
        run(pair, [0])
    with pytest.raises(ModelNotFoundError, match="nothing to compare without a drafter"):
        run(pair._replace(drafter=None))
