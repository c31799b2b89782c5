"""The benchmark's peers: on our own arrays, with our own output, timed as ours is."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map_with_path
from mlx_gemma_mtp.bench.peers import Peer
from mlx_gemma_mtp.bench.peers.mlx_lm import MlxLm
from mlx_gemma_mtp.bench.peers.mlx_vlm import MlxVlm, need_mlx_vlm
from mlx_gemma_mtp.bench.synthetic import Draws
from mlx_gemma_mtp.bench.turn import timed

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
# The last one reaches past the window and decodes alone: next to such a row, mlx-vlm 0.7.10 with
# drafts gives another output to shorter ones.
LENGTHS = (9, 17, 3, 40)
TOKENS = 11
PLAIN = SamplingParams(temperature=0, max_tokens=TOKENS, num_draft_tokens=0, ignore_eos=True)

MLX_VLM = find_spec("mlx_vlm")  # without an origin it is a folder of this name
needs_mlx_vlm = pytest.mark.skipif(
    MLX_VLM is None or MLX_VLM.origin is None,
    reason="mlx-vlm, which is no dependency, is not installed",
)


class Pair(NamedTuple):
    """A random pair, prompts, and the output of our engine."""

    target: Target
    drafter: Drafter
    engine: Engine
    prompts: list[list[int]]
    output: list[list[int]]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def pair(request: pytest.FixtureRequest, seed: int) -> Iterator[Pair]:
    kind, bits = request.param
    target, drafter = mlx_worker().run(lambda: random_pair(kind, bits, seed))
    rng = np.random.default_rng(seed)
    prompts = [rng.integers(0, VOCAB, length).tolist() for length in LENGTHS]
    with Engine(OpenPair(target, drafter, None, {}, None), max_batch=4) as engine:
        yield Pair(target, drafter, engine, prompts, ours(engine, prompts))


def random_pair(kind: str, bits: int | None, seed: int) -> tuple[Target, Drafter]:
    raw = COMMON | KINDS[kind]
    raw["num_hidden_layers"] = len(raw["layer_types"])
    own = {"hidden_size": 64, "layer_types": LAYERS, "num_hidden_layers": 3}
    shape = COMMON | {k: v for k, v in raw.items() if k.startswith("num_global")} | own
    drafter = {
        "model_type": "gemma4_assistant",
        "text_config": shape,
        "backbone_hidden_size": 128,
        "use_ordered_embeddings": kind == "per-layer",
        "num_centroids": 16,
        "centroid_intermediate_top_k": 4,
    }
    models = Target(TargetConfig.from_dict(raw)), Drafter(DrafterConfig.from_dict(drafter))
    mx.random.seed(seed)
    for model in models:
        model.update(tree_map_with_path(noise, model.parameters()))
        if bits is not None:
            quantize(model, bits)
        mx.eval(model.parameters())
        fuse_projections(model)
    return models


def noise(name: str, parameter: mx.array) -> mx.array:
    if parameter.dtype == mx.int32:
        return mx.random.permutation(parameter.size).astype(mx.int32)
    if parameter.ndim == 1:  # norms and scales: each has an effect
        return 1 + 0.3 * mx.random.normal(parameter.shape)
    return mx.random.normal(parameter.shape) * parameter.shape[-1] ** -0.5


def ours(engine: Engine, prompts: list[list[int]]) -> list[list[int]]:
    return [completion.tokens for completion in engine.generate(prompts, PLAIN)]


def theirs(peer: Peer, prompts: list[list[int]], count: int) -> list[list[int]]:
    """The first tokens of every row."""
    found: list[list[int]] = [[] for _ in prompts]
    rounds = peer.rounds(prompts, count, None)
    while min(map(len, found)) < TOKENS:
        for row, new in zip(found, next(rounds), strict=True):
            row += new
    rounds.close()
    return [row[:TOKENS] for row in found]


def make_mlx_lm(pair: Pair) -> Peer:
    return MlxLm(pair.target)


def make_mlx_vlm(pair: Pair) -> Peer:
    return MlxVlm(pair.target, pair.drafter)


MAKERS = [
    pytest.param(make_mlx_lm, id="mlx-lm"),
    pytest.param(make_mlx_vlm, id="mlx-vlm", marks=needs_mlx_vlm),
]


@pytest.mark.parametrize("make", MAKERS)
def test_a_peer_has_our_output_and_leaves_our_arrays_as_they_are(
    pair: Pair, make: Callable[[Pair], Peer]
) -> None:
    peer = mlx_worker().run(lambda: make(pair))
    assert peer.can_draft == (make is make_mlx_vlm)
    for rows in (slice(3, 4), slice(0, 3)):
        for count in (0, 3) if peer.can_draft else (0,):
            found = mlx_worker().run(lambda r=rows, c=count: theirs(peer, pair.prompts[r], c))
            assert found == pair.output[rows]
    assert ours(pair.engine, pair.prompts) == pair.output


@pytest.mark.parametrize("make", MAKERS)
def test_a_peer_holds_our_arrays_and_copies_of_joined_experts_only(
    pair: Pair, make: Callable[[Pair], Peer]
) -> None:
    def grown() -> int:
        gc.collect()
        before = mx.get_active_memory()
        made = make(pair)
        after = mx.get_active_memory()
        del made
        gc.collect()
        assert mx.get_active_memory() == before
        return after - before

    arrays = dict(tree_flatten(pair.target.parameters()))
    copied = sum(a.nbytes for name, a in arrays.items() if ".experts.gate_up_proj." in name)
    assert (copied > 0) == (pair.target.config.num_experts > 0)
    small = num_bytes(pair.target) // 100
    if make is make_mlx_vlm:  # its centroid head can't read a quantized embedding
        small += VOCAB * 64 * 4
    assert copied <= mlx_worker().run(grown) < copied + small


@needs_mlx_vlm
@pytest.mark.parametrize("pair", CASES[:1], indirect=True, ids=["dense"])
@pytest.mark.parametrize("num_rows", [1, 3])
def test_drafts_of_mlx_vlm_are_accepted_as_drawn(pair: Pair, num_rows: int) -> None:
    prompts = pair.prompts[:num_rows]

    def play() -> tuple[int, int]:
        rounds = make_mlx_vlm(pair).rounds(prompts, 3, Draws([0.5]))
        window = timed(rounds, prompts, tokens=60 * num_rows, warm_up=0).window
        return window.rounds, window.tokens

    rounds, tokens = mlx_worker().run(play)
    drawn = Draws([0.5])
    accepted = [min(drawn(num_rows, 3)) + 1 for _ in range(rounds)]  # its worst row's
    assert tokens == sum(accepted) * num_rows


def test_without_this_version_of_mlx_vlm_one_line_says_what_to_install() -> None:
    with pytest.raises(UsageError, match=r"mlx-vlm.*pip install mlx-vlm==0\.0$"):
        need_mlx_vlm("0.0")
