"""What a pass allocates next to the weights and the cache, counted before there are any.

Compared with measurements on MLX's CPU backend. Knows nothing of what passes are for.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import get_args

from mlx_gemma_mtp.model.cache import KVCache
from mlx_gemma_mtp.model.config import TargetConfig
from mlx_gemma_mtp.model.experts import Way, default_ways, num_computed
from mlx_gemma_mtp.model.layer_config import LayerConfig
from mlx_gemma_mtp.model.layers import MAX_SCORES_BYTES
from mlx_gemma_mtp.model.linear import DEQUANTIZED_FROM
from mlx_gemma_mtp.model.prompt import CUT


def round_bytes(cache: KVCache, length: int) -> int:
    """Return what a round over the next `length` positions of every row allocates, without K/V."""
    config, num_tokens = cache.config, cache.offset.size * length
    slots = {kind: cache.capacity(kind) for kind in config.kinds}
    size, queries = cache.values[0].itemsize, num_tokens * config.num_attention_heads
    most = max(
        _layer(config, layer, num_tokens, queries * slots[layer.kind], size, get_args(Way))
        for layer in config.layers
    )
    return _forward(cache, num_tokens, most, masks=num_tokens * sum(slots.values()))


def prompt_bytes(cache: KVCache, context: int, length: int) -> int:
    """Return what a pass over the last `length` positions of prompts allocates, without K/V.

    Layers that own no keys and values see one position only. Queries attend in pieces, of which two
    are in memory. A sliding layer puts the keys and values that its queries see in a row, a window
    before them included.
    """
    config, batch, size = cache.config, cache.offset.size, cache.values[0].itemsize
    num_tokens, window = batch * length, min(config.sliding_window, context - length)
    pieces = min(length, CUT), min(max(0, length - CUT), CUT)
    most, masks, ways = 0, 0, [default_ways(config)[num_tokens]]
    for layer in config.layers[: config.num_kv_layers]:
        seen, kv = context, 0
        if layer.kind == "sliding_attention":
            seen = window + pieces[0]
            kv = 2 * layer.num_key_value_heads * layer.head_dim * batch * (window + length) * size
        scores = pieces[0] * seen + pieces[1] * (seen - pieces[0])
        scores *= batch * config.num_attention_heads
        if num_tokens >= DEQUANTIZED_FROM:  # this layer's weights and the next one's
            kv += 2 * size * _num_weights(config, layer)
        most = max(most, _layer(config, layer, num_tokens, scores, size, ways) + kv)
        masks = max(masks, length * seen)
    return _forward(cache, num_tokens, most, masks)


def _num_weights(config: TargetConfig, layer: LayerConfig) -> int:
    """Return how many weights the linear maps of a layer have, without its experts'."""
    kv = layer.num_key_value_heads * (1 if layer.k_eq_v else 2)
    attention = layer.head_dim * (2 * config.num_attention_heads + kv)
    return config.hidden_size * (attention + 3 * layer.intermediate_size)


def _forward(cache: KVCache, num_tokens: int, most: int, masks: int) -> int:
    """Return the bytes that a pass allocates. most: those alive in one layer.

    MLX allocates an operation's output when it schedules it, frees the inputs once it has run, and
    schedules some 50 operations ahead: while a layer's attention, by far its slowest part, is
    computed, the rest up to the end of the MLP is already allocated. Elementwise operations reuse
    the memory of an input that nothing else holds.
    """
    config, itemsize = cache.config, cache.values[0].itemsize
    per_layer = config.hidden_size_per_layer_input * len(config.layers)
    return most + itemsize * num_tokens * per_layer + masks


def _layer(
    config: TargetConfig,
    layer: LayerConfig,
    num_tokens: int,
    scores: int,
    itemsize: int,
    ways: Iterable[Way],
) -> int:
    """Return the most bytes alive in this layer: in its attention or its experts.

    scores: numbers of them, if they are in memory all at once. ways: in which experts may be
    computed; in a round any, because they are measured once the weights are loaded.
    """
    heads = config.num_attention_heads * layer.head_dim
    kv = layer.num_key_value_heads * layer.head_dim * (1 if layer.k_eq_v else 2)
    # Queries, keys and values; the weighted values, and the same with heads in a row.
    attention = num_tokens * (heads + layer.owns_kv * kv + 2 * heads)
    attention += min(scores, MAX_SCORES_BYTES // itemsize)
    width, size = config.moe_intermediate_size, config.hidden_size
    # Gate, up and GELU; outputs; with chosen experts also inputs, and outputs by token.
    experts = max(
        num_computed(config, way, num_tokens) * (4 * width + (1 if way == "all" else 3) * size)
        for way in ways
    )
    # Gate and up, and two products of the gate inside GELU.
    mlp = 4 * layer.intermediate_size
    # Input, attention's and MLP's output, two sums; three norms, with the squares of each.
    hidden = 11 * size
    return itemsize * (num_tokens * (mlp + hidden) + max(attention, experts))
