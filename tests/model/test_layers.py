"""Attention by itself: against a plain one in float64, and in pieces."""

import mlx.core as mx
import numpy as np
import pytest

from mlx_gemma_mtp.model.layers import attend


def reference(q: mx.array, keys: mx.array, values: mx.array, mask: mx.array) -> np.ndarray:
    """Softmax attention in float64."""
    sharing = q.shape[1] // keys.shape[1]
    wide = [np.array(x.astype(mx.float32), np.float64) for x in (q, keys, values)]
    q64, k64, v64 = wide[0], *(np.repeat(x, sharing, axis=1) for x in wide[1:])
    scores = np.where(np.array(mask), q64 @ k64.swapaxes(-1, -2), -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return (weights / weights.sum(axis=-1, keepdims=True)) @ v64


@pytest.mark.parametrize("length", [1, 2, 7, 16, 33])
@pytest.mark.parametrize("queries_at_once", [0.5, 1, 5, 100])
def test_queries_in_pieces_see_what_they_see_at_once(
    rng: np.random.Generator, length: int, queries_at_once: float
) -> None:
    batch, heads, kv_heads, slots, head_dim = 2, 4, 2, 48, 8
    shapes = [(heads, length), (kv_heads, slots), (kv_heads, slots)]
    q, keys, values = (mx.array(rng.normal(size=(batch, *s, head_dim))) for s in shapes)
    mask = mx.array(rng.random((batch, 1, length, slots)) < 0.5) | (mx.arange(slots) == 3)
    bound = int(queries_at_once * batch * heads * slots * q.itemsize)
    out = attend(q, keys, values, mask, bound)
    np.testing.assert_allclose(np.array(out), reference(q, keys, values, mask), atol=1e-5)
