"""The parts both models are built from: rotary embedding, attention, MLP, experts, layer.

Parameters keep the checkpoint's names. Nothing here knows of a cache: keys, values and masks
come in as arguments.
"""

from __future__ import annotations

import math

import mlx.core as mx
import mlx.nn as nn

from mlx_gemma_mtp.config import DecoderConfig, LayerConfig, RopeConfig, TargetConfig

# From this many (token, expert) pairs on, sorting them by expert lets one read of an expert's
# weights serve all of its tokens; below, the sort costs more than it saves.
SORT_EXPERTS_FROM = 64

# Telling gather_mm that rows are sorted lets Metal use its fast kernel. On CUDA, MLX 0.32.4 then
# returns wrong sums (relative error 0.5 on an H100, bfloat16 and float32); gather_qmm is right.
SORTED_GATHER_MM = mx.metal.is_available()


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
        turning = int(head_dim * config.rotated) // 2
        exponents = mx.arange(turning, dtype=mx.float32) * (2 / head_dim)
        still = mx.full((head_dim // 2 - turning,), mx.inf)  # an infinite period never turns
        self._head_dim = head_dim
        self._periods = mx.concatenate([mx.power(config.theta, exponents), still])

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


class Attention(nn.Module):
    """Grouped-query attention with normed queries and keys and a scale of 1.

    A layer that owns no keys and values (KV-shared in a target, every one in a drafter) has
    only the query and output projections.
    """

    def __init__(self, config: DecoderConfig, layer: LayerConfig) -> None:
        super().__init__()
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

    def _heads(self, x: mx.array) -> mx.array:
        return x.reshape(*x.shape[:2], -1, self._head_dim)  # [B, T, heads, head_dim]

    def keys_values(self, x: mx.array, position: mx.array) -> tuple[mx.array, mx.array]:
        """Keys and values [B, kv_heads, T, head_dim] of x [B, T, H], from position [B] on."""
        k = self._heads(self.k_proj(x))
        v = k if self._k_eq_v else self._heads(self.v_proj(x))
        k = self._rope(self.k_norm(k).swapaxes(1, 2), position)
        return k, rms_norm(v, self._eps).swapaxes(1, 2)

    def __call__(
        self, x: mx.array, position: mx.array, keys: mx.array, values: mx.array, mask: mx.array
    ) -> mx.array:
        """Attend from x [B, T, H] to keys, values [B, kv_heads, S, head_dim].

        `mask` is boolean, [B, 1, T, S]. Returns [B, T, H].
        """
        q = self.q_norm(self._heads(self.q_proj(x))).swapaxes(1, 2)
        q = self._rope(q, position)
        out = mx.fast.scaled_dot_product_attention(q, keys, values, scale=1.0, mask=mask)
        return self.o_proj(out.swapaxes(1, 2).reshape(*x.shape[:2], -1))


class MLP(nn.Module):
    """The gated feed-forward block."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        return self.down_proj(gelu_tanh(self.gate_proj(x)) * self.up_proj(x))


class ExpertLinear(nn.Module):
    """One linear map per expert, weight [experts, out, in]; every input picks its expert."""

    def __init__(self, num_experts: int, in_dims: int, out_dims: int) -> None:
        super().__init__()
        self.weight = mx.zeros((num_experts, out_dims, in_dims))

    def __call__(self, x: mx.array, experts: mx.array, in_order: bool) -> mx.array:
        """x [..., 1, in] through the expert numbered in experts [...]: [..., 1, out].

        `in_order`: the caller has sorted the rows by expert.
        """
        return mx.gather_mm(
            x,
            self.weight.swapaxes(-1, -2),
            rhs_indices=experts,
            sorted_indices=in_order and SORTED_GATHER_MM,
        )

    def to_quantized(
        self, group_size: int = 64, bits: int = 4, mode: str = "affine", **_: object
    ) -> QuantizedExpertLinear:
        """The same map with quantized weights; `mlx.nn.quantize` calls this."""
        return QuantizedExpertLinear(self.weight, group_size, bits, mode)


class QuantizedExpertLinear(nn.Module):
    """ExpertLinear with MLX-quantized weights."""

    def __init__(self, weight: mx.array, group_size: int, bits: int, mode: str) -> None:
        super().__init__()
        self.group_size, self.bits, self.mode = group_size, bits, mode
        self.weight, self.scales, *biases = mx.quantize(weight, group_size, bits, mode)
        self.biases = biases[0] if biases else None
        self.freeze()

    def __call__(self, x: mx.array, experts: mx.array, in_order: bool) -> mx.array:
        return mx.gather_qmm(
            x,
            self.weight,
            self.scales,
            self.biases,
            rhs_indices=experts,
            transpose=True,
            group_size=self.group_size,
            bits=self.bits,
            mode=self.mode,
            sorted_indices=in_order,
        )


class Experts(nn.Module):
    """The routed feed-forward blocks of a mixture-of-experts layer."""

    def __init__(self, config: TargetConfig) -> None:
        super().__init__()
        width = config.moe_intermediate_size
        self.gate_up_proj = ExpertLinear(config.num_experts, config.hidden_size, 2 * width)
        self.down_proj = ExpertLinear(config.num_experts, width, config.hidden_size)

    def __call__(self, x: mx.array, experts: mx.array, weights: mx.array) -> mx.array:
        """Weighted sum over the chosen experts: x [N, H], experts and weights [N, k] -> [N, H]."""
        num_tokens, num_chosen = experts.shape
        chosen = experts.flatten()  # [N k]
        in_order = chosen.size >= SORT_EXPERTS_FROM
        order = mx.argsort(chosen) if in_order else mx.arange(chosen.size)
        rows = x[order // num_chosen][:, None, :]  # [N k, 1, H]
        chosen = chosen[order]
        gate, up = mx.split(self.gate_up_proj(rows, chosen, in_order), 2, axis=-1)
        out = self.down_proj(gelu_tanh(gate) * up, chosen, in_order)[:, 0]
        if in_order:
            out = out[mx.argsort(order)]
        out = out.reshape(num_tokens, num_chosen, -1) * weights[..., None]
        return out.sum(axis=1)


class Router(nn.Module):
    """Chooses the experts of each token and their weights."""

    def __init__(self, config: TargetConfig) -> None:
        super().__init__()
        self._eps = config.rms_norm_eps
        self._top_k = config.top_k_experts
        self._root_size = config.hidden_size**-0.5
        self.proj = nn.Linear(config.hidden_size, config.num_experts, bias=False)
        self.scale = mx.ones((config.hidden_size,))
        self.per_expert_scale = mx.ones((config.num_experts,))

    def __call__(self, x: mx.array) -> tuple[mx.array, mx.array]:
        """x [N, H] -> experts [N, k] and their weights [N, k], in x's type."""
        scores = self.proj(rms_norm(x, self._eps) * self.scale * self._root_size)
        probabilities = mx.softmax(scores.astype(mx.float32), axis=-1)
        experts = mx.argpartition(-probabilities, self._top_k - 1, axis=-1)[:, : self._top_k]
        weights = mx.take_along_axis(probabilities, experts, axis=-1)
        weights = weights / weights.sum(axis=-1, keepdims=True)
        weights = weights * self.per_expert_scale[experts]
        return experts, weights.astype(x.dtype)


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

    def blocks(self, h: mx.array, attended: mx.array) -> mx.array:
        """Both residual blocks: h [B, T, H] and what its attention returned -> [B, T, H]."""
        h = h + self.post_attention_layernorm(attended)
        return h + self.post_feedforward_layernorm(self.feed_forward(h))

    def __call__(self, h: mx.array, attended: mx.array) -> mx.array:
        """h [B, T, H] and what its attention returned -> the next layer's h."""
        return self.blocks(h, attended) * self.layer_scalar


class TargetLayer(DecoderLayer):
    """A target's layer: experts beside the MLP, and a per-layer embedding, where it has them."""

    def __init__(self, config: TargetConfig, layer: LayerConfig) -> None:
        super().__init__(config, layer)
        size, eps = config.hidden_size, config.rms_norm_eps
        self._has_experts = config.num_experts > 0
        if self._has_experts:
            self.router = Router(config)
            self.experts = Experts(config)
            self.pre_feedforward_layernorm_2 = nn.RMSNorm(size, eps=eps)
            self.post_feedforward_layernorm_1 = nn.RMSNorm(size, eps=eps)
            self.post_feedforward_layernorm_2 = nn.RMSNorm(size, eps=eps)
        width = config.hidden_size_per_layer_input
        if width:
            self.per_layer_input_gate = nn.Linear(size, width, bias=False)
            self.per_layer_projection = nn.Linear(width, size, bias=False)
            self.post_per_layer_input_norm = nn.RMSNorm(size, eps=eps)

    def feed_forward(self, h: mx.array) -> mx.array:
        dense = super().feed_forward(h)
        if not self._has_experts:
            return dense
        flat = h.reshape(-1, h.shape[-1])
        routed = self.experts(self.pre_feedforward_layernorm_2(flat), *self.router(flat))
        return self.post_feedforward_layernorm_1(dense) + self.post_feedforward_layernorm_2(
            routed.reshape(h.shape)
        )

    def __call__(
        self, h: mx.array, attended: mx.array, per_layer_input: mx.array | None = None
    ) -> mx.array:
        """As DecoderLayer; per_layer_input is this layer's slice [B, T, width] of the PLE."""
        h = self.blocks(h, attended)
        if per_layer_input is not None:
            gated = gelu_tanh(self.per_layer_input_gate(h)) * per_layer_input
            h = h + self.post_per_layer_input_norm(self.per_layer_projection(gated))
        return h * self.layer_scalar
