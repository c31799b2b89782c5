"""The parts both models are built from: rotary embedding, attention, MLP, experts, layer.

Parameters keep the checkpoint's names. Nothing here knows of a cache: keys, values and masks
come in as arguments.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import mlx.core as mx
import mlx.nn as nn

from mlx_gemma_mtp.device import backend
from mlx_gemma_mtp.model.config import DecoderConfig, LayerConfig, RopeConfig

ON_METAL = backend() == "metal"


def rms_norm(x: mx.array, eps: float) -> mx.array:
    """Root-mean-square norm without a weight, computed in float32."""
    return mx.fast.rms_norm(x, None, eps)


def gelu_tanh(x: mx.array) -> mx.array:
    """GELU in its tanh form, `gelu_pytorch_tanh` in the configs."""
    return 0.5 * x * (1 + mx.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))


class Rope:
    """Half-split rotary embedding; beyond the rotated share of the head, frequencies are zero.

    "Proportional" RoPE (the full-attention layers) turns the pairs (i, i + head_dim / 2) for the
    first `rotated * head_dim / 2` values of i, at frequencies spaced for the whole head.
    """

    def __init__(self, head_dim: int, config: RopeConfig) -> None:
        half, turning = head_dim // 2, int(head_dim * config.rotated) // 2
        periods = [config.theta ** (pair / half) for pair in range(turning)]
        self._head_dim = head_dim
        # An infinite period never turns. Made of numbers: a compiled round would compute what is
        # still an expression anew each time.
        self._periods = mx.array(periods + [math.inf] * (half - turning), mx.float32)

    def __call__(self, x: mx.array, position: mx.array) -> mx.array:
        """Turn x [B, heads, T, head_dim], whose rows start at position [B]."""
        return mx.fast.rope(
            x,
            self._head_dim,
            traditional=False,
            base=None,
            scale=1.0,
            offset=position,
            freqs=self._periods,
        )


def attend(q: mx.array, keys: mx.array, values: mx.array, mask: mx.array) -> mx.array:
    """Softmax attention with a scale of 1: q [B, heads, T, head_dim] -> [B, heads, T, head_dim].

    keys, values [B, kv_heads, S, head_dim]; mask is boolean, [B, 1, T, S]. Where MLX has no fused
    kernel, the queries that share a key/value head become the rows of one product, so that keys
    and values are read once for all of them: on an H100, in 15 of 16 shapes of 31B and 26B-A4B,
    0.3 to 0.75 of the time of MLX's own fallback, in the other one 1.3.
    """
    batch, heads, length, head_dim = q.shape
    kv_heads = keys.shape[1]
    sharing = heads // kv_heads
    # Metal's vector kernel: at most 8 queries, 32 with those that share a key/value head.
    if ON_METAL and head_dim <= 256 and length <= 8 and length * sharing <= 32:
        return mx.fast.scaled_dot_product_attention(q, keys, values, scale=1.0, mask=mask)
    scores = q.reshape(batch, kv_heads, sharing * length, head_dim) @ keys.swapaxes(-1, -2)
    scores = scores.reshape(batch, kv_heads, sharing, length, -1)
    scores = mx.where(mask[:, :, None], scores, -mx.inf)
    weights = mx.softmax(scores, axis=-1, precise=True)
    out = weights.reshape(batch, kv_heads, sharing * length, -1) @ values
    return out.reshape(batch, heads, length, head_dim)


class Attention(nn.Module):
    """Grouped-query attention with normed queries and keys and a scale of 1.

    A layer that owns no keys and values (KV-shared in a target, every one in a drafter) has
    only the query and output projections.
    """

    def __init__(self, config: DecoderConfig, layer: LayerConfig) -> None:
        super().__init__()
        self._heads = config.num_attention_heads
        self._kv_heads = layer.num_key_value_heads if layer.owns_kv else 0
        self._head_dim = layer.head_dim
        self._eps = config.rms_norm_eps
        self._k_eq_v = layer.k_eq_v
        self._rope = Rope(layer.head_dim, config.rope[layer.kind])
        query_width = config.num_attention_heads * layer.head_dim
        kv_width = layer.num_key_value_heads * layer.head_dim
        self.q_proj = nn.Linear(config.hidden_size, query_width, bias=False)
        self.q_norm = nn.RMSNorm(layer.head_dim, eps=config.rms_norm_eps)
        if layer.owns_kv:
            self.k_proj = nn.Linear(config.hidden_size, kv_width, bias=False)
            self.k_norm = nn.RMSNorm(layer.head_dim, eps=config.rms_norm_eps)
            if not layer.k_eq_v:
                self.v_proj = nn.Linear(config.hidden_size, kv_width, bias=False)
        self.o_proj = nn.Linear(query_width, config.hidden_size, bias=False)

    def join(self) -> None:
        """Make one product of the projections of the same input, `qkv_proj`, where they allow."""
        join(self, ["q_proj", "k_proj", "v_proj"], "qkv_proj")

    def queries(self, x: mx.array, position: mx.array) -> mx.array:
        """Queries [B, heads, T, head_dim] of x [B, T, H], whose rows start at position [B].

        For a layer that owns no keys and values.
        """
        heads = self.q_proj(x).reshape(*x.shape[:2], self._heads, self._head_dim)
        return self._rope(self.q_norm(heads).swapaxes(1, 2), position)

    def queries_keys_values(
        self, x: mx.array, position: mx.array
    ) -> tuple[mx.array, mx.array, mx.array]:
        """As `queries`, with the keys and values [B, kv_heads, T, head_dim] of the layer."""
        heads = side_by_side(self, x, ["q_proj", "k_proj", "v_proj"], "qkv_proj")
        heads = heads.reshape(*x.shape[:2], -1, self._head_dim)  # queries', keys', values'
        normed = rms_norm(heads, self._eps).swapaxes(1, 2)  # at once; the norms' weights follow
        q, k, v = mx.split(normed, [self._heads, self._heads + self._kv_heads], axis=1)
        if self._k_eq_v:
            v = k
        q = self._rope(q * self.q_norm.weight, position)
        return q, self._rope(k * self.k_norm.weight, position), v

    def __call__(self, q: mx.array, keys: mx.array, values: mx.array, mask: mx.array) -> mx.array:
        """Attend with q to keys and values, as `attend`. Returns [B, T, H]."""
        out = attend(q, keys, values, mask).swapaxes(1, 2)  # [B, T, heads, head_dim]
        return self.o_proj(out.reshape(*out.shape[:2], -1))


class MLP(nn.Module):
    """The gated feed-forward block."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=False)

    def join(self) -> None:
        """Make one product of the two projections of the input, `gate_up_proj`."""
        join(self, ["gate_proj", "up_proj"], "gate_up_proj")

    def __call__(self, x: mx.array) -> mx.array:
        both = side_by_side(self, x, ["gate_proj", "up_proj"], "gate_up_proj")
        gate, up = mx.split(both, 2, axis=-1)
        return self.down_proj(gelu_tanh(gate) * up)


def join(module: nn.Module, names: Sequence[str], joined: str) -> None:
    """Put linear maps of one input into one of that name, whose outputs lie side by side.

    A wider product reads its weights faster: on an H100 8 % for the gate and up maps of 31B.
    Left as they are if they are quantized differently. Every output keeps its bits or nearly.
    """
    names = [name for name in names if name in module]
    parts = [module[name] for name in names]
    if len(parts) < 2 or len({_format(part) for part in parts}) > 1:
        return
    whole = parts[0]
    for name in whole.parameters():
        whole[name] = mx.concatenate([part[name] for part in parts])
    mx.eval(whole.parameters())
    for name in names:
        del module[name]
    module[joined] = whole


def _format(part: nn.Module) -> tuple[object, ...]:
    """How a linear map, of ours or of MLX, is stored."""
    own = (part.group_size, part.bits, part.mode) if "scales" in part else ()
    return (type(part), *own)


def side_by_side(module: nn.Module, x: mx.array, names: Sequence[str], joined: str) -> mx.array:
    """The outputs of these linear maps of x, concatenated, whether or not they were joined."""
    if joined in module:
        return module[joined](x)
    return mx.concatenate([module[name](x) for name in names if name in module], axis=-1)


class DecoderLayer(nn.Module):
    """One layer. The caller runs `input_layernorm` and `self_attn`, then calls with the result."""

    def __init__(self, config: DecoderConfig, layer: LayerConfig) -> None:
        super().__init__()
        size, eps = config.hidden_size, config.rms_norm_eps
        self.self_attn = Attention(config, layer)
        self.mlp = MLP(size, layer.intermediate_size)
        self.input_layernorm = nn.RMSNorm(size, eps=eps)
        self.post_attention_layernorm = nn.RMSNorm(size, eps=eps)
        self.pre_feedforward_layernorm = nn.RMSNorm(size, eps=eps)
        self.post_feedforward_layernorm = nn.RMSNorm(size, eps=eps)
        self.layer_scalar = mx.ones((1,))

    def feed_forward(self, h: mx.array) -> mx.array:
        """The block between the two feed-forward norms: h [B, T, H] -> [B, T, H]."""
        return self.mlp(self.pre_feedforward_layernorm(h))

    def __call__(self, h: mx.array, attended: mx.array) -> mx.array:
        """h [B, T, H] and what its attention returned -> the next layer's h."""
        h = h + self.post_attention_layernorm(attended)
        h = h + self.post_feedforward_layernorm(self.feed_forward(h))
        return h * self.layer_scalar


Model = TypeVar("Model", bound=nn.Module)


def join_projections(model: Model) -> Model:
    """Join the maps of one input in every layer of a target or drafter, in place."""
    for layer in model.layers:
        layer.self_attn.join()
        layer.mlp.join()
    return model
