"""The target: Gemma 4's text decoder. Holds weights and nothing else; the cache is the caller's."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from mlx_gemma_mtp.model.cache import KVCache, Reach
from mlx_gemma_mtp.model.config import LayerConfig, TargetConfig
from mlx_gemma_mtp.model.experts import ExpertRouter, Experts
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
        """Logits before the softcap, hidden [..., H] -> [..., V]: from the embedding or `lm_head`.

        Google's models have no head of their own; some fine-tuned ones have.
        """
        if "lm_head" in self:
            return self.lm_head(hidden)
        return self.embed_tokens.as_linear(hidden)

    def __call__(self, tokens: mx.array, cache: KVCache, *, last_only: bool = False) -> mx.array:
        """Hidden states [B, T, H] after the final norm, of tokens [B, T].

        The tokens stand at positions cache.offset .. cache.offset + T - 1 of each row. Their keys
        and values are written to the cache; they count once the caller advances its offset.
        last_only: return the last position's state alone, [B, 1, H]. The other positions then skip
        the layers that write no keys and values (more than half of E2B and E4B).
        """
        h = self.embed(tokens)
        position = cache.offset
        per_layer = self._per_layer_inputs(tokens, h)
        reaches = {kind: cache.reach(kind, tokens.shape[1]) for kind in self.config.kinds}
        for index, (layer, config) in enumerate(zip(self.layers, self.config.layers, strict=True)):
            reach = reaches[config.kind]
            if last_only and not config.owns_kv:
                h, position = h[:, -1:], cache.offset + tokens.shape[1] - 1
                reach = Reach(reach.slots, reach.mask[:, :, -1:])
            extra = None if per_layer is None else per_layer[:, -h.shape[1] :, index]
            h = layer(h, position, cache, reach, extra)
        return self.norm(h[:, -1:] if last_only else h)

    def _per_layer_inputs(self, tokens: mx.array, embedded: mx.array) -> mx.array | None:
        """Per-layer embeddings, what each layer gets of its token besides h: [B, T, layers, W]."""
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
    """One layer of the target, with experts beside the MLP and per-layer embeddings if it has any.

    Reads the keys and values of layer `kv_source` in the cache: its own, if it owns any.
    """

    def __init__(self, config: TargetConfig, layer: LayerConfig) -> None:
        super().__init__(config, layer)
        size, eps = config.hidden_size, config.rms_norm_eps
        self._eps = eps
        self._owns_kv, self._kv_source = layer.owns_kv, layer.kv_source
        self._has_experts = config.num_experts > 0
        if self._has_experts:
            self.router = ExpertRouter(config)
            self.experts = Experts(config)
            self.pre_feedforward_layernorm_2 = nn.RMSNorm(size, eps=eps)
            self.post_feedforward_layernorm_1 = nn.RMSNorm(size, eps=eps)
            self.post_feedforward_layernorm_2 = nn.RMSNorm(size, eps=eps)
        width = config.hidden_size_per_layer_input
        if width:
            self.per_layer_input_gate = nn.Linear(size, width, bias=False)
            self.per_layer_projection = nn.Linear(width, size, bias=False)
            self.post_per_layer_input_norm = nn.RMSNorm(size, eps=eps)

    def __call__(
        self,
        h: mx.array,
        position: mx.array,
        cache: KVCache,
        reach: Reach,
        per_layer_input: mx.array | None,
    ) -> mx.array:
        """h [B, T, H], whose rows start at position [B] -> the next layer's h.

        per_layer_input: this layer's embeddings [B, T, W] of the tokens.
        """
        x = self.input_layernorm(h)
        if self._owns_kv:
            q, k, v = self.self_attn.queries_keys_values(x, position)
            cache.write(self._kv_source, k, v, reach.slots)
        else:
            q = self.self_attn.queries(x, position)
        keys, values = cache.keys[self._kv_source], cache.values[self._kv_source]
        h = h + self.post_attention_layernorm(self.self_attn(q, keys, values, reach.mask))

        if self._has_experts:
            normed = rms_norm(h, self._eps)  # one norm for three readers, each with its own weight
            flat = normed.reshape(-1, h.shape[-1])  # [B T, H]
            dense = self.mlp(normed * self.pre_feedforward_layernorm.weight)
            chosen, shares = self.router(flat)
            mixed = self.experts(flat * self.pre_feedforward_layernorm_2.weight, chosen, shares)
            dense = self.post_feedforward_layernorm_1(dense)
            out = dense + self.post_feedforward_layernorm_2(mixed.reshape(h.shape))
        else:
            out = self.mlp(self.pre_feedforward_layernorm(h))
        h = h + self.post_feedforward_layernorm(out)

        if per_layer_input is not None:
            gated = gelu_tanh(self.per_layer_input_gate(h)) * per_layer_input
            h = h + self.post_per_layer_input_norm(self.per_layer_projection(gated))
        return h * self.layer_scalar
