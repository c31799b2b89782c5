"""The benchmark's peers: on our own arrays, saying what we say, timed as they should be."""

import gc
from collections.abc import Callable, Iterator
from importlib import metadata
from importlib.util import find_spec
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_map_with_path
from mlx_gemma_mtp.bench import mlx_vlm_pair, peer
from mlx_gemma_mtp.bench.drawn import Draws
from mlx_gemma_mtp.bench.lend import copied_bytes
from mlx_gemma_mtp.bench.mlx_lm_peer import MlxLmPeer
from mlx_gemma_mtp.bench.mlx_vlm_peer import MlxVlmPeer
from mlx_gemma_mtp.bench.peer import Peer

from mlx_gemma_mtp import Engine, SamplingParams
from mlx_gemma_mtp.engine.pair import OpenPair
from mlx_gemma_mtp.engine.worker import mlx_worker
from mlx_gemma_mtp.errors import UsageError
from mlx_gemma_mtp.files.weights import num_bytes, quantize
from mlx_gemma_mtp.model.config import DrafterConfig, TargetConfig
from mlx_gemma_mtp.model.drafter import Drafter
from mlx_gemma_mtp.model.layers import fuse_projections
from mlx_gemma_mtp.model.target import Target

VOCAB = 512
COMMON: dict[str, Any] = {
    "model_type": "gemma4_text",
    "vocab_size": VOCAB,
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "global_head_dim": 64,
    "sliding_window": 32,
    "final_logit_softcapping": 30.0,
    "hidden_size_per_layer_input": 0,
}
LAYERS = ["sliding_attention"] * 2 + ["full_attention"]
WITHOUT_VALUES = {"attention_k_eq_v": True, "num_global_key_value_heads": 1, "layer_types": LAYERS}
KINDS: dict[str, dict[str, Any]] = {
    "dense": WITHOUT_VALUES,
    "experts": {
        **WITHOUT_VALUES,
        "enable_moe_block": True,
        "num_experts": 8,
        "top_k_experts": 2,
        "moe_intermediate_size": 64,
    },
    "per-layer": {
        "layer_types": LAYERS * 2,
        "num_kv_shared_layers": 3,
        "use_double_wide_mlp": True,
        "hidden_size_per_layer_input": 64,
        "vocab_size_per_layer_input": VOCAB,
    },
}
CASES = [("dense", None), ("experts", None), ("per-layer", None), ("experts", 4), ("per-layer", 4)]
# The last one reaches past the window and decodes alone: mlx-vlm 0.7.10 with drafts says something
# else beside such a row where others do not reach so far.
LENGTHS = (9, 17, 3, 40)
TOKENS = 8  # in a window
WARM_UP = 2
SAID = WARM_UP + TOKENS + 1
PLAIN = SamplingParams(temperature=0, max_tokens=SAID, num_draft_tokens=0, ignore_eos=True)

needs_mlx_vlm = pytest.mark.skipif(
    find_spec("mlx_vlm") is None, reason="mlx-vlm, which is no dependency, is not installed"
)


class Pair(NamedTuple):
    """A random pair, prompts, and what our engine says to them."""

    target: Target
    drafter: Drafter
    engine: Engine
    prompts: list[list[int]]
    said: list[list[int]]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def pair(request: pytest.FixtureRequest, seed: int) -> Iterator[Pair]:
    kind, bits = request.param
    target, drafter = mlx_worker().run(lambda: _random_pair(kind, bits, seed))
    rng = np.random.default_rng(seed)
    prompts = [rng.integers(0, VOCAB, length).tolist() for length in LENGTHS]
    opened = OpenPair(target, drafter, None, {}, None)
    with Engine(opened, max_batch=4, max_queue=4) as engine:
        yield Pair(target, drafter, engine, prompts, _said(engine, prompts))


def _random_pair(kind: str, bits: int | None, seed: int) -> tuple[Target, Drafter]:
    raw = COMMON | KINDS[kind]
    raw["num_hidden_layers"] = len(raw["layer_types"])
    own = {"hidden_size": 64, "layer_types": LAYERS, "num_hidden_layers": 3}
    shape = COMMON | {k: v for k, v in raw.items() if k.startswith("num_global")} | own
    target = Target(TargetConfig.from_dict(raw))
    drafter = Drafter(
        DrafterConfig.from_dict(
            {
                "model_type": "gemma4_assistant",
                "text_config": shape,
                "backbone_hidden_size": 128,
                "use_ordered_embeddings": kind == "per-layer",
                "num_centroids": 16,
                "centroid_intermediate_top_k": 4,
            }
        )
    )
    mx.random.seed(seed)
    for model in (target, drafter):
        model.update(tree_map_with_path(_noise, model.parameters()))
        if bits is not None:
            quantize(model, bits)
        mx.eval(model.parameters())
        fuse_projections(model)
    return target, drafter


def _noise(name: str, parameter: mx.array) -> mx.array:
    if parameter.dtype == mx.int32:
        return mx.random.permutation(parameter.size).astype(mx.int32)
    if parameter.ndim == 1:  # norms and scales: each has an effect
        return 1 + 0.3 * mx.random.normal(parameter.shape)
    return mx.random.normal(parameter.shape) * parameter.shape[-1] ** -0.5


def _said(engine: Engine, prompts: list[list[int]]) -> list[list[int]]:
    return [completion.tokens for completion in engine.generate(prompts, PLAIN)]


def _make_mlx_lm(pair: Pair, copy_experts: bool = False) -> Peer:
    return MlxLmPeer(pair.target, copy_experts=copy_experts)


def _make_mlx_vlm(pair: Pair, copy_experts: bool = False) -> Peer:
    return MlxVlmPeer(pair.target, pair.drafter, copy_experts=copy_experts)


MAKERS = [
    pytest.param(_make_mlx_lm, id="mlx-lm"),
    pytest.param(_make_mlx_vlm, id="mlx-vlm", marks=needs_mlx_vlm),
]


@pytest.mark.parametrize("make", MAKERS)
def test_a_peer_says_what_we_say_and_takes_nothing_from_us(
    pair: Pair, make: Callable[[Pair], Peer]
) -> None:
    other = mlx_worker().run(lambda: make(pair))
    for prompts, said in ((pair.prompts[-1:], pair.said[-1:]), (pair.prompts[:3], pair.said[:3])):
        for drafts in (0, 3) if other.can_draft else (0,):
            played = mlx_worker().run(
                lambda p=prompts, d=drafts: other.decode(
                    p, d, tokens=TOKENS, warm_up=WARM_UP, draw=None
                )
            )
            assert [text[:SAID] for text in played.texts] == said
            assert played.window.prefill_tokens == sum(map(len, prompts))
    assert _said(pair.engine, pair.prompts) == pair.said


@pytest.mark.parametrize("make", MAKERS)
def test_a_peer_holds_our_arrays_and_copies_of_no_more_than_experts(
    pair: Pair, make: Callable[[Pair, bool], Peer]
) -> None:
    def grown(copy_experts: bool) -> int:
        gc.collect()
        before = mx.get_active_memory()
        made = make(pair, copy_experts)
        after = mx.get_active_memory()
        del made
        gc.collect()
        assert mx.get_active_memory() == before
        return after - before

    expected = copied_bytes(pair.target)
    assert (expected > 0) == (pair.target.config.num_experts > 0)
    small = num_bytes(pair.target) // 100
    if make is _make_mlx_vlm:  # whose centroid head cannot read a quantized embedding
        small += VOCAB * 64 * 4
    shared, copied = mlx_worker().run(lambda: (grown(False), grown(True)))
    assert shared < small
    assert expected <= copied < expected + small


@needs_mlx_vlm
@pytest.mark.parametrize("pair", CASES[:1], indirect=True, ids=["dense"])
@pytest.mark.parametrize("num_rows", [1, 3])
def test_drafts_of_mlx_vlm_are_accepted_as_drawn(pair: Pair, num_rows: int) -> None:
    other = mlx_worker().run(lambda: _make_mlx_vlm(pair))
    prompts = pair.prompts[:num_rows]
    played = mlx_worker().run(
        lambda: other.decode(prompts, 3, tokens=60, warm_up=0, draw=Draws([0.5]))
    )
    drawn = Draws([0.5])
    rounds = [min(drawn(num_rows, 3)) + 1 for _ in range(played.window.rounds)]  # its worst row's
    assert played.window.tokens == sum(rounds) * num_rows


@pytest.mark.parametrize("pair", CASES[:1], indirect=True, ids=["dense"])
def test_a_peer_that_cannot_draft_says_so(pair: Pair) -> None:
    other = mlx_worker().run(lambda: _make_mlx_lm(pair))
    assert not other.can_draft
    with pytest.raises(UsageError, match="no drafter"):
        other.decode(pair.prompts, 1, tokens=1, warm_up=0, draw=None)


def test_the_window_opens_when_all_rows_decode_and_are_warm(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rounds = [[[1], []], [[2], [1]], [[3, 4], [2]], [[5], [3]], [[6, 7], [4, 5]], [[8], [6]]]
    num_played = 0

    def played() -> peer.Rounds:
        nonlocal num_played
        for new in rounds:
            num_played += 1
            yield new

    monkeypatch.setattr(peer, "perf_counter", lambda: 10.0 * num_played)
    found = peer.timed(played(), [[7, 7], [7]], tokens=2, warm_up=1)
    assert found == ((6, 2, 20.0, 3, 20.0), [[1, 2, 3, 4, 5, 6, 7], [1, 2, 3, 4, 5]])


@pytest.mark.parametrize("pair", CASES[:1], indirect=True, ids=["dense"])
@pytest.mark.parametrize(
    ("found", "said"), [(None, "not installed.*pip install"), ("0.1.0", "not 0.1.0: pip install")]
)
def test_without_this_mlx_vlm_one_line_says_what_to_install(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, found: str | None, said: str
) -> None:
    def version(name: str) -> str:
        if found is None:
            raise metadata.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(mlx_vlm_pair, "version", version)
    with pytest.raises(UsageError, match=said):
        _make_mlx_vlm(pair)
