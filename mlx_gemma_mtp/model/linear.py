"""Linear maps whose weights may be quantized. Knows nothing of layers."""

from __future__ import annotations

import math

import mlx.core as mx
import mlx.nn as nn

from mlx_gemma_mtp.device import backend

# Rows. On an H200, 43,008 x 5,376 weights in 4 bits take MLX's kernel 515 us for 128 rows, 881 for
# 256 and 6,462 for 2,048; dequantized first 648, 712 and 1,799.
DEQUANTIZED_FROM = 256 if backend() == "cuda" else math.inf


def dequantizes(x: mx.array) -> bool:
    """True if x [..., in] has so many rows that quantized weights are dequantized for it."""
    return x.size >= DEQUANTIZED_FROM * x.shape[-1]


class Linear(nn.Linear):
    """A linear map without a bias."""

    def __init__(self, in_dims: int, out_dims: int) -> None:
        super().__init__(in_dims, out_dims, bias=False)

    def to_quantized(
        self,
        group_size: int | None = None,
        bits: int | None = None,
        mode: str = "affine",
        quantize_input: bool = False,
    ) -> QuantizedLinear:
        """The same map with quantized weights; `mlx.nn.quantize` calls this."""
        return QuantizedLinear.from_linear(self, group_size, bits, mode)  # type: ignore[arg-type] # MLX's defaults are None


class QuantizedLinear(nn.QuantizedLinear):
    """Linear with MLX-quantized weights."""

    def __call__(self, x: mx.array) -> mx.array:
        """x [..., in] -> [..., out]."""
        return x @ self.dequantized(x.dtype).T if dequantizes(x) else super().__call__(x)

    def dequantized(self, dtype: mx.Dtype) -> mx.array:
        """The weights [out, in] in this type."""
        how = self.group_size, self.bits, self.mode
        return mx.dequantize(self.weight, self.scales, self.biases, *how, dtype=dtype)
