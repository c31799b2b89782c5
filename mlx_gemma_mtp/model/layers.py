"""What target and drafter layers share: attention, MLP, and a layer's weights.

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
from mlx_gemma_mtp.model.config import DecoderConfig
from mlx_gemma_mtp.model.layer_config import LayerConfig
from mlx_gemma_mtp.model.linear import Linear
from mlx_gemma_mtp.model.packing import Packing
from mlx_gemma_mtp.model.rope import Rope

ON_METAL = backend() == "metal"

# The most bytes of attention scores at a time. Longer queries come in pieces. 2,048 queries
# over 32,768 keys of a full layer of 31B take 22.6 ms on an H200 with 256 MB, 15.5 with 512 MB.
MAX_SCORES_BYTES = (512 if backend() == "cuda" else 256) << 20

MAX_FUSED_HEAD_DIM = 256  # of MLX's fused attention on Metal


def rms_norm(x: mx.array, eps: float) -> mx.array:
    """Root-mean-square norm without a weight, computed in float32."""
    return mx.fast.rms_norm(x, None, eps)


def gelu_tanh(x: mx.array) -> mx.array:
    """GELU in its tanh form, `gelu_pytorch_tanh` in the configs."""
    return 0.5 * x * (1 + mx.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))


def kv_dtype(head_dim: int, dtype: mx.Dtype) -> mx.Dtype:
    """Type of keys and values of a layer, in a model whose activations have this type.

    Without a fused kernel, scores are rounded to the type of queries and keys. Near 30 bfloat16 is
    wrong by up to 0.06, which is 6% of a weight, and float16 by 0.008. On an H200, with 32,768
    positions, it takes 1% more time (median of 16 shapes), and float32 1.5 to 5 times as long.
    Normed keys and values are far from float16's largest number, and weights below its smallest
    normal number are kept: neither Apple's GPUs nor CUDA flush them.
    """
    if dtype == mx.float32:
        return dtype
    return mx.float16 if head_dim > MAX_FUSED_HEAD_DIM else mx.bfloat16


def attend(
    q: mx.array,
    keys: mx.array,
    values: mx.array,
    mask: mx.array,
    max_scores_bytes: int = MAX_SCORES_BYTES,
) -> mx.array:
    """Softmax attention with a scale of 1: q [B, heads, T, head_dim] -> [B, heads, T, head_dim].

    keys, values [B, kv_heads, S, head_dim], of the type that the result gets. mask is boolean,
    [B, 1, T, S] or as `laid_out` returns it. max_scores_bytes: of the scores that are in memory at
    a time.

    If MLX has no fused kernel for the shape, the queries that share a key/value head become the
    rows of one product, so that keys and values are read once for all of them. On an H100, in 16
    shapes of 31B and 26B-A4B, that takes 0.3 to 0.75 of the time of MLX's own fallback, except for
    one that takes 1.3.
    """
    batch, heads, length, head_dim = q.shape
    if has_fused_kernel(head_dim, length, heads // keys.shape[1]):
        return mx.fast.scaled_dot_product_attention(q, keys, values, scale=1.0, mask=mask)
    q = q.astype(keys.dtype)
    most = max(1, max_scores_bytes // (batch * heads * keys.shape[2] * keys.itemsize))
    num_queries = -(-length // -(-length // most))  # pieces of one size
    pieces: list[mx.array] = []
    for first in range(0, length, num_queries):
        piece = q[:, :, first : first + num_queries]
        if pieces:  # one after the other, so that the scores of one piece are in memory
            piece = mx.depends(piece, pieces[-1])
        part = mask[:, :, first : first + num_queries]
        pieces.append(_attend_unfused(piece, keys, values, part))
    return mx.concatenate(pieces, axis=2)


def has_fused_kernel(
    head_dim: int, num_queries: int, sharing: int, on_metal: bool = ON_METAL
) -> bool:
    """True if one kernel of MLX computes this attention; sharing: heads per key/value head.

    Metal's takes at most 8 queries, and 32 with those that share a key/value head.
    """
    return (
        on_metal
        and head_dim <= MAX_FUSED_HEAD_DIM
        and num_queries <= 8
        and num_queries * sharing <= 32
    )


def laid_out(mask: mx.array, heads: int, layer: LayerConfig, on_metal: bool = ON_METAL) -> mx.array:
    """A mask [B, 1, T, S], as `heads` query heads can read it in all layers without a copy.

    layer: one that owns the keys and values. In each layer, MLX's fused kernel copies a mask that
    the heads share: it gets [B, heads, T, S] instead. That of a single row needs no copy.
    """
    batch, _, length, slots = mask.shape
    sharing = heads // layer.num_key_value_heads
    if batch == 1 or not has_fused_kernel(layer.head_dim, length, sharing, on_metal):
        return mask
    return mx.contiguous(mx.broadcast_to(mask, (batch, heads, length, slots)))


def _attend_unfused(q: mx.array, keys: mx.array, values: mx.array, mask: mx.array) -> mx.array:
    """`attend` as two products, with the scores of all queries in memory."""
    batch, heads, length, head_dim = q.shape
    kv_heads = keys.shape[1]
    sharing = heads // kv_heads
    scores = q.reshape(batch, kv_heads, sharing * length, head_dim) @ keys.swapaxes(-1, -2)
    scores = scores.reshape(batch, kv_heads, sharing, length, -1)
    scores = mx.where(mask[:, :, None], scores, -mx.inf)
    weights = mx.softmax(scores, axis=-1, precise=True)
    out = weights.reshape(batch, kv_heads, sharing * length, -1) @ values
    return out.reshape(batch, heads, length, head_dim)


class Attention(nn.Module):
    """Grouped-query attention with normed queries and keys and a scale of 1.

    A layer without keys and values of its own (KV-shared in a target, every one in a drafter) has
    only the query and output projections.
    """

    def __init__(self, config: DecoderConfig, layer: LayerConfig) -> None:
        super().__init__()
        self._heads = config.num_attention_heads
        self._kv_heads = layer.num_key_value_heads
        self._head_dim = layer.head_dim
        self._eps = config.rms_norm_eps
        self._k_eq_v = layer.k_eq_v
        self._rope = Rope(layer.head_dim, config.rope[layer.kind])
        query_width = config.num_attention_heads * layer.head_dim
        kv_width = layer.num_key_value_heads * layer.head_dim
        self.q_proj = Linear(config.hidden_size, query_width)
        self.q_norm = nn.RMSNorm(layer.head_dim, eps=config.rms_norm_eps)
        if layer.owns_kv:
            self.k_proj = Linear(config.hidden_size, kv_width)
            self.k_norm = nn.RMSNorm(layer.head_dim, eps=config.rms_norm_eps)
            if not layer.k_eq_v:
                self.v_proj = Linear(config.hidden_size, kv_width)
        self.o_proj = Linear(query_width, config.hidden_size)

    def queries(self, x: mx.array, position: mx.array, packing: Packing | None = None) -> mx.array:
        """Queries [B, heads, T, head_dim] of x [B, T, H], whose rows start at position [B].

        For a layer without keys and values of its own. x is [1, width, H] with a packing.
        """
        heads = self.q_norm(self.q_proj(x).reshape(*x.shape[:2], self._heads, self._head_dim))
        heads = heads if packing is None else packing.unpack(heads)
        return self._rope(heads.swapaxes(1, 2), position)

    def queries_keys_values(
        self, x: mx.array, position: mx.array, packing: Packing | None = None
    ) -> tuple[mx.array, mx.array, mx.array]:
        """Like `queries`, with the keys and values [B, kv_heads, T, head_dim] of the layer."""
        heads = project(self, x, "qkv_proj").reshape(*x.shape[:2], -1, self._head_dim)
        heads = rms_norm(heads, self._eps)  # all at once; the weights follow
        heads = heads if packing is None else packing.unpack(heads)
        q, k, v = mx.split(
            heads.swapaxes(1, 2), [self._heads, self._heads + self._kv_heads], axis=1
        )
        if self._k_eq_v:
            v = k
        dtype = kv_dtype(self._head_dim, x.dtype)
        q, k = (q * self.q_norm.weight).astype(dtype), (k * self.k_norm.weight).astype(dtype)
        return self._rope(q, position), self._rope(k, position), v.astype(dtype)

    def __call__(
        self,
        q: mx.array,
        keys: mx.array,
        values: mx.array,
        mask: mx.array,
        cuts: Sequence[tuple[slice, slice]] = ((slice(None), slice(None)),),
        packing: Packing | None = None,
    ) -> mx.array:
        """`attend`, projected to [B, T, H]; with a packing, to [1, width, H].

        cuts: some queries each, and the keys they may see.
        """
        parts: list[mx.array] = []
        for some, seen in cuts:
            piece = q[:, :, some]
            if parts:  # one after the other: see `attend`
                piece = mx.depends(piece, parts[-1])
            part = attend(piece, keys[:, :, seen], values[:, :, seen], mask[..., some, seen])
            parts.append(part)
        out = mx.concatenate(parts, axis=2).swapaxes(1, 2)  # [B, T, heads, head_dim]
        out = out if packing is None else packing.pack(out)
        dtype = self.q_norm.weight.dtype  # not that of `kv_dtype`
        return self.o_proj(out.reshape(*out.shape[:2], -1).astype(dtype))


class MLP(nn.Module):
    """The gated feed-forward block."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_proj = Linear(hidden_size, intermediate_size)
        self.up_proj = Linear(hidden_size, intermediate_size)
        self.down_proj = Linear(intermediate_size, hidden_size)

    def __call__(self, x: mx.array) -> mx.array:
        gate, up = mx.split(project(self, x, "gate_up_proj"), 2, axis=-1)
        return self.down_proj(gelu_tanh(gate) * up)


class DecoderLayer(nn.Module):
    """The weights that every layer has."""

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


FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
Model = TypeVar("Model", bound=nn.Module)


def fuse_projections(model: Model) -> Model:
    """Fuse the projections of the same input in every layer of a target or drafter, in place.

    Computes nothing yet. A wider product reads its weights faster: on an H100, 8% for the gate and
    up projections of 31B. Projections that are quantized differently stay apart. Outputs differ in
    their last bits at most.
    """
    for layer in model.layers:
        for module, fused in ((layer.self_attn, "qkv_proj"), (layer.mlp, "gate_up_proj")):
            names = [name for name in FUSED[fused] if name in module]
            parts = [module[name] for name in names]
            if len(parts) == 1 or len({_storage(part) for part in parts}) > 1:
                continue
            whole = parts[0]
            for name in whole.parameters():
                whole[name] = mx.concatenate([part[name] for part in parts])
            for name in names:
                del module[name]
            module[fused] = whole
    return model


def _storage(projection: nn.Module) -> tuple[object, ...]:
    """How the weight of a linear map is stored."""
    if "scales" not in projection:
        return (type(projection),)
    return (type(projection), projection.group_size, projection.bits, projection.mode)


def project(module: nn.Module, x: mx.array, fused: str) -> mx.array:
    """The outputs of the projections that `fused` stands for, side by side, fused or not."""
    if fused in module:
        return module[fused](x)
    return mx.concatenate([module[name](x) for name in FUSED[fused] if name in module], axis=-1)
