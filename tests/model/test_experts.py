"""Experts: every way to compute them gives what a loop over tokens gives."""

from typing import Any, get_args

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from helpers.random_pair import EXPERTS, SHAPE
from mlx_gemma_mtp.model.config import TargetConfig
from mlx_gemma_mtp.model.experts import Way
from mlx_gemma_mtp.model.layers import gelu_tanh, rms_norm
from mlx_gemma_mtp.model.target import TargetLayer


@pytest.mark.parametrize("bits", [None, 4], ids=["unquantized", "4 bits"])
@pytest.mark.parametrize("num_tokens", [1, 3, 40])  # up to 63 pairs are not sorted
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
