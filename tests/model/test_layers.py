"""Attention by itself: against a plain one in float32, in pieces, and how often masks are made."""

import io
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from helpers.random_pair import SHAPE, random_pair
from helpers.rounds import GREEDY
from mlx_gemma_mtp.decode.round import Newest, draft
from mlx_gemma_mtp.decode.sampling import row_settings
from mlx_gemma_mtp.model.cache import KVCache
from mlx_gemma_mtp.model.config import TargetConfig
from mlx_gemma_mtp.model.layers import (
    MAX_FUSED_HEAD_DIM,
    attend,
    kv_dtype,
    laid_out,
    rms_norm,
)

VIEWS = {"Broadcast", "ExpandDims", "Reshape", "Slice", "Unflatten"}
CAPACITY = 96


def reference(q: mx.array, keys: mx.array, values: mx.array, mask: mx.array) -> np.ndarray:
    """Softmax attention in float32, one query head at a time."""
    whole = [np.array(x.astype(mx.float32)) for x in (q, keys, values)]
    out = np.empty_like(whole[0])
    for row, head in np.ndindex(q.shape[:2]):
        key_head = head * keys.shape[1] // q.shape[1]
        scores = whole[0][row, head] @ whole[1][row, key_head].T
        scores = np.where(np.array(mask[row, 0]), scores, -np.inf)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        out[row, head] = weights @ whole[2][row, key_head]
    return out


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


def mask_operations(function: Callable[..., mx.array], *arguments: mx.array) -> list[str]:
    """Names of the operations that make a boolean array over the slots, views included."""
    found: list[str] = []

    def read(entry: dict[str, Any]) -> None:
        if entry["type"] == "primitive":
            for _, shape, dtype in entry["outputs"]:
                if dtype == mx.bool_ and shape and shape[-1] == CAPACITY:
                    found.append(entry["name"])

    mx.export_function(read, function, *arguments)
    return found


def test_the_masks_of_a_forward_are_made_once_for_all_layers(rng: np.random.Generator) -> None:
    def made(num_layers: int) -> list[str]:
        kinds = ["sliding_attention", "full_attention"] * (num_layers // 2)
        shape = {"num_hidden_layers": num_layers, "layer_types": kinds, "sliding_window": 80}
        target = random_pair(rng, experts=shape).target

        def forward(tokens: mx.array) -> mx.array:
            cache = KVCache.empty(
                target.config, len(tokens), capacity=CAPACITY, most=3, dtype=mx.float32
            )
            assert {cache.capacity(kind) for kind in target.config.kinds} == {CAPACITY}
            return target(tokens, cache)

        names = mask_operations(forward, mx.zeros((2, 3), mx.int32))
        return [name for name in names if name not in VIEWS]

    assert made(2) == made(6)
    assert made(2)


def test_the_masks_of_drafts_are_made_once_for_all_steps(rng: np.random.Generator) -> None:
    pair = random_pair(rng)
    assert pair.drafter is not None
    settings = row_settings([GREEDY] * 2)

    def made(num_drafts: int) -> list[str]:
        def drafted(token: mx.array, hidden: mx.array) -> mx.array:
            cache = KVCache.empty(
                pair.target.config, 2, capacity=CAPACITY, most=8, dtype=mx.float32
            )
            newest = Newest(token, hidden)
            return draft(pair.target, pair.drafter, cache, newest, settings, num_drafts)

        hidden = mx.zeros((2, 1, pair.target.config.hidden_size))
        names = mask_operations(drafted, mx.zeros((2,), mx.int32), hidden)
        return [name for name in names if name not in VIEWS]

    assert made(1) == made(4)
    assert made(1)


def test_layers_with_the_fused_kernel_copy_the_mask_of_a_batch_once() -> None:
    config = TargetConfig.from_dict(SHAPE)
    layer, heads, batch, num_layers = config.layers[0], config.num_attention_heads, 3, 4
    q = mx.zeros((batch, heads, 2, layer.head_dim))
    keys = mx.zeros((batch, layer.num_key_value_heads, CAPACITY, layer.head_dim))

    def operations(mask: mx.array) -> Counter[str]:
        out = q
        for _ in range(num_layers):
            out = mx.fast.scaled_dot_product_attention(out, keys, keys, scale=1.0, mask=mask)
        graph = io.StringIO()
        mx.export_to_dot(graph, out)
        return Counter(re.findall(r'label ="(\w+)"', graph.getvalue()))

    mask = mx.zeros((batch, 1, 2, CAPACITY), mx.bool_)
    whole = mx.zeros((batch, heads, 2, CAPACITY), mx.bool_)
    mx.eval(mask, whole)
    found = laid_out(mask, heads, layer, on_metal=True)
    assert operations(found) - operations(whole) == {"Broadcast": 1, "Contiguous": 1}
    assert (operations(mask) - operations(whole))["Broadcast"] == num_layers  # a copy in each
    assert laid_out(mask[:1], heads, layer, on_metal=True).shape == (1, 1, 2, CAPACITY)


def test_scores_of_long_contexts_are_nearly_those_of_float32(rng: np.random.Generator) -> None:
    """Normed queries and keys with scores up to about 30, in the types of a head_dim of 512."""
    heads, length, slots, head_dim = 4, 4, 32_768, 64

    def normal(*shape: int) -> mx.array:
        return mx.array(rng.standard_normal(shape, np.float32))

    def normed(x: mx.array) -> mx.array:
        return rms_norm(x.astype(mx.bfloat16), 1e-6)

    # Groups of 32 keys that resemble each other, so that several share a query's attention.
    group = normal(slots // 32, 1, head_dim)
    k = (group + 0.35 * normal(slots // 32, 32, head_dim)).reshape(1, 1, slots, head_dim)
    aimed = mx.array(rng.integers(0, slots // 32, heads * length))
    q = normed(group[aimed] + 0.3 * normal(len(aimed), 1, head_dim))
    q = q.reshape(1, heads, length, head_dim)
    keys = (0.5 * normed(k)).astype(kv_dtype(512, mx.bfloat16))
    values = normed(normal(*keys.shape)).astype(keys.dtype)
    mask = mx.broadcast_to(mx.arange(slots) < slots - 5, (1, 1, length, slots))

    expected = reference(q, keys, values, mask)
    found = np.array(attend(q, keys, values, mask).astype(mx.float32))
    errors = np.linalg.norm(found - expected, axis=-1) / np.linalg.norm(expected, axis=-1)
    assert errors.mean() < 0.008  # with keys in bfloat16, 0.033


def test_keys_and_values_of_large_heads_stay_in_float16(rng: np.random.Generator) -> None:
    shape = {"global_head_dim": 2 * MAX_FUSED_HEAD_DIM}
    target = random_pair(rng, mx.bfloat16, experts=shape).target
    cache = KVCache.empty(target.config, 1, capacity=32, most=4, dtype=target.dtype)
    assert target(mx.zeros((1, 4), mx.int32), cache).dtype == mx.bfloat16
    for layer, keys, values in zip(target.config.layers, cache.keys, cache.values, strict=True):
        large = layer.kind == "full_attention"
        assert (layer.head_dim > MAX_FUSED_HEAD_DIM) == large
        assert keys.dtype == values.dtype == (mx.float16 if large else mx.bfloat16)
    assert kv_dtype(2 * MAX_FUSED_HEAD_DIM, mx.float32) == mx.float32
