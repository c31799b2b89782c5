"""Linear maps with quantized weights give what the same weights give once they are dequantized."""

import mlx.core as mx
import pytest

from mlx_gemma_mtp.model.linear import Linear


@pytest.mark.parametrize(
    ("group_size", "bits", "mode"), [(64, 4, "affine"), (32, 8, "affine"), (32, 4, "mxfp4")]
)
def test_a_product_through_dequantized_weights_is_the_same(
    group_size: int, bits: int, mode: str
) -> None:
    linear = Linear(128, 96).to_quantized(group_size, bits, mode)
    x = mx.random.normal((2, 3, 128))
    whole = linear.dequantized(mx.float32)
    assert whole.shape == (96, 128)
    assert mx.allclose(linear(x), x @ whole.T, atol=1e-4)
    assert linear.dequantized(mx.bfloat16).dtype == mx.bfloat16
