"""The target: Gemma 4's text decoder. Holds weights and nothing else; the cache is the caller's."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from mlx_gemma_mtp.model.cache import KVCache
from mlx_gemma_mtp.model.config import LayerConfig, TargetConfig
from mlx_gemma_mtp.model.experts import Experts, Router
from mlx_gemma_mtp.model.layers import DecoderLayer, gelu_tanh, rms_norm


class Target(nn.Module):
    """Gemma 4 E2B, E4B, 12B, 26B-A4B or 31B; parameters named as in the text-only checkpoint."""

    def __init__(self, config: TargetConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = [TargetLayer(config, layer) for layer in config.layers]
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        width = config.hidden_size_per_layer_input
        if width:
            packed = width * len(config.layers)
            self.embed_tokens_per_layer = nn.Embedding(config.vocab_size_per_layer_input, packed)
            self.per_layer_model_projection = nn.Linear(config.hidden_size, packed, bias=False)
            self.per_layer_projection_norm = nn.RMSNorm(width, eps=config.rms_norm_eps)

    @property
    def dtype(self) -> mx.Dtype:
        """Type of activations, keys and values."""
        return self.norm.weight.dtype

    def embed(self, tokens: mx.array) -> mx.array:
        """Scaled embeddings [..., H] of tokens [...]; the scale is rounded to the weights' type."""
        scale = mx.array(self.config.hidden_size**0.5, self.dtype)
        return self.embed_tokens(tokens) * scale

    def logits(self, hidden: mx.array) -> mx.array:
        """Tied head, before the softcap: hidden [..., H] -> [..., V]."""
        return self.embed_tokens.as_linear(hidden)

    def __call__(self, tokens: mx.array, cache: KVCache, *, last_only: bool = False) -> mx.array:
        """Hidden states [B, T, H] after the final norm, of tokens [B, T].

        They stand at positions cache.offset .. cache.offset + T - 1 of each row. Their keys and
        values are written to the cache; they count once the caller advances its offset.
        last_only: return [B, 1, H], the last position's, and spare the others the layers that
        write no keys and values (more than half of E2B and E4B).
        """
        h = self.embed(tokens)
        position = cache.offset
        per_layer = self._per_layer_inputs(tokens, h)
        reach = {kind: cache.reach(kind, tokens.shape[1]) for kind in self.config.kinds}
        for index, (layer, config) in enumerate(zip(self.layers, self.config.layers, strict=True)):
            slots, mask = reach[config.kind]
            if last_only and not config.owns_kv:
                h, position = h[:, -1:], cache.offset + tokens.shape[1] - 1
                mask = mask[:, :, -1:]
            x = layer.input_layernorm(h)
            if config.owns_kv:
                q, k, v = layer.self_attn.queries_keys_values(x, position)
                cache.write(index, k, v, slots)
            else:
                q = layer.self_attn.queries(x, position)
            keys, values = cache.keys[config.kv_source], cache.values[config.kv_source]
            attended = layer.self_attn(q, keys, values, mask)
            extra = None if per_layer is None else per_layer[:, -h.shape[1] :, index]
            h = layer(h, attended, extra)
        return self.norm(h[:, -1:] if last_only else h)

    def _per_layer_inputs(self, tokens: mx.array, embedded: mx.array) -> mx.array | None:
        """What each layer gets to know of its token besides h: [B, T, layers, width]."""
        width = self.config.hidden_size_per_layer_input
        if not width:
            return None
        shape = (*tokens.shape, len(self.layers), width)
        context = self.per_layer_model_projection(embedded) * self.config.hidden_size**-0.5
        context = self.per_layer_projection_norm(context.reshape(shape))
        scale = mx.array(width**0.5, self.dtype)
        identity = (self.embed_tokens_per_layer(tokens) * scale).reshape(shape)
        return (context + identity) * 2**-0.5


class TargetLayer(DecoderLayer):
    """A target's layer: experts beside the MLP, and a per-layer embedding, where it has them."""

    def __init__(self, config: TargetConfig, layer: LayerConfig) -> None:
        super().__init__(config, layer)
        size, eps = config.hidden_size, config.rms_norm_eps
        self._eps = eps
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

    def both_feed_forwards(self, h: mx.array) -> mx.array:
        """As feed_forward, of the MLP and the experts."""
        normed = rms_norm(h, self._eps)  # one norm for three readers; its weights follow
        flat = normed.reshape(-1, h.shape[-1])
        dense = self.mlp(normed * self.pre_feedforward_layernorm.weight)
        chosen, weights = self.router(flat)
        routed = self.experts(flat * self.pre_feedforward_layernorm_2.weight, chosen, weights)
        return self.post_feedforward_layernorm_1(dense) + self.post_feedforward_layernorm_2(
            routed.reshape(h.shape)
        )

    def __call__(
        self, h: mx.array, attended: mx.array, per_layer_input: mx.array | None = None
    ) -> mx.array:
        """As DecoderLayer; per_layer_input is this layer's slice [B, T, width] of the PLE."""
        h = h + self.post_attention_layernorm(attended)
        out = self.both_feed_forwards(h) if self._has_experts else self.feed_forward(h)
        h = h + self.post_feedforward_layernorm(out)
        if per_layer_input is not None:
            gated = gelu_tanh(self.per_layer_input_gate(h)) * per_layer_input
            h = h + self.post_per_layer_input_norm(self.per_layer_projection(gated))
        return h * self.layer_scalar
