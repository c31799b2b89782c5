"""Experts: every way to compute them gives what a loop over tokens gives."""

from typing import Any, get_args

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from helpers.random_pair import EXPERTS, SHAPE
from mlx_gemma_mtp.model.config import TargetConfig
from mlx_gemma_mtp.model.experts import Way, Ways, in_tiles
from mlx_gemma_mtp.model.layers import gelu_tanh, rms_norm
from mlx_gemma_mtp.model.target import TargetLayer


@pytest.mark.parametrize("height", [1, 2, 16])
@pytest.mark.parametrize(("num_tokens", "num_experts", "num_chosen"), [(1, 8, 2), (50, 16, 4)])
@pytest.mark.parametrize("liked", [0, 1000])
def test_tiles_hold_each_pair_once_in_a_tile_of_its_expert(
    rng: np.random.Generator,
    height: int,
    num_tokens: int,
    num_experts: int,
    num_chosen: int,
    liked: int,
) -> None:
    """liked: 1000 makes all tokens choose the same experts."""
    scores = rng.random((num_tokens, num_experts)) + liked * rng.random(num_experts)
    experts = np.argsort(scores, axis=1)[:, :num_chosen]
    tiles = in_tiles(mx.array(experts.astype(np.uint32)), num_experts, height)
    places, tokens = np.array(tiles.places), np.array(tiles.tokens)
    assert len(set(places.flatten())) == places.size
    assert (tokens.flatten()[places] == np.arange(num_tokens)[:, None]).all()
    assert (np.array(tiles.experts)[places // height] == experts).all()


@pytest.mark.parametrize("bits", [None, 4], ids=["unquantized", "4 bits"])
@pytest.mark.parametrize("num_tokens", [1, 3, 40])
def test_all_ways_through_the_experts_lead_to_the_same_sums(
    rng: np.random.Generator, bits: int | None, num_tokens: int
) -> None:
    config = TargetConfig.from_dict(SHAPE | EXPERTS)
    layer = TargetLayer(config, config.layers[0])
    for part in (layer.experts.gate_up_proj, layer.experts.down_proj, layer.router.proj):
        shape = part.weight.shape
        part.weight = mx.array(rng.standard_normal(shape, np.float32)) * shape[-1] ** -0.5
    if bits:
        nn.quantize(layer.experts, 64, bits)
    x = mx.array(rng.standard_normal((num_tokens, layer.router.scale.size), np.float32))
    chosen, shares = layer.router(rms_norm(x, 1e-6))

    def weights(part: Any) -> mx.array:
        if bits is None:
            return part.weight
        return mx.dequantize(part.weight, part.scales, part.biases, 64, bits)

    gate_up, down = weights(layer.experts.gate_up_proj), weights(layer.experts.down_proj)
    expected = mx.zeros_like(x)
    for number, share in zip(chosen.T, shares.T, strict=True):  # of each token's k-th expert
        gate, up = mx.split((gate_up[number] @ x[..., None])[..., 0], 2, axis=-1)
        out = (down[number] @ (gelu_tanh(gate) * up)[..., None])[..., 0]
        expected = expected + share[:, None] * out
    for way in get_args(Way):
        found = layer.experts(x, chosen, shares, way)
        np.testing.assert_allclose(np.array(found), np.array(expected), rtol=1e-4, atol=1e-4)


def test_ways_are_those_measured_and_then_the_default() -> None:
    default = Ways(((1, "pairs"), (8, "sorted"), (100, "tiles")))
    measured = default.measured({2: "padded", 6: "all", 16: "pairs"})
    expected = {1: "padded", 5: "padded", 6: "all", 15: "all", 16: "pairs", 17: "sorted"}
    expected |= {99: "sorted", 100: "tiles", 2048: "tiles"}
    assert {count: measured[count] for count in expected} == expected
    assert default.measured({}) == default
    one = default.measured({4: "all"})
    assert [one[count] for count in (1, 4, 5, 8)] == ["all", "all", "pairs", "sorted"]
    with pytest.raises(ValueError, match="quickly"):
        default.measured({1: "quickly"})
