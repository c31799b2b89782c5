"""The target: Gemma 4's text decoder. Holds weights and nothing else; the cache is the caller's."""

from __future__ import annotations

from collections.abc import Iterable

import mlx.core as mx
import mlx.nn as nn

from mlx_gemma_mtp.model.cache import KVCache, Reach
from mlx_gemma_mtp.model.config import LayerConfig, LayerKind, TargetConfig
from mlx_gemma_mtp.model.experts import ExpertRouter, Experts
from mlx_gemma_mtp.model.layers import DecoderLayer, gelu_tanh, rms_norm
from mlx_gemma_mtp.model.prompt import last_reach, prompt_reach


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

    def __call__(self, tokens: mx.array, cache: KVCache) -> mx.array:
        """Hidden states [B, T, H] after the final norm, of tokens [B, T].

        The tokens stand at positions cache.offset .. cache.offset + T - 1 of each row. Their keys
        and values are written to the cache; they count once the caller advances its offset.
        """
        h = self.embed(tokens)
        extra = self._per_layer_inputs(tokens, h)
        reaches = {kind: cache.reach(kind, tokens.shape[1]) for kind in self.config.kinds}
        return self.norm(self._through(self.layers, h, extra, cache.offset, cache, reaches))

    def read(self, tokens: mx.array, cache: KVCache, start: int, lengths: mx.array) -> mx.array:
        """Like a call, for the next tokens [B, T] of prompts; returns [B, 1, H].

        start: the offset of every row, known to the host. lengths [B]: how many of the T tokens
        each row has; the rest is padding. Returns the state of each row's last token alone. The
        others skip the layers that write no keys and values (more than half of E2B and E4B).
        """
        h, kinds, end = self.embed(tokens), self.config.kinds, start + tokens.shape[1]
        extra = self._per_layer_inputs(tokens, h)
        owners = self.config.num_kv_layers
        reaches = {kind: prompt_reach(cache, kind, tokens.shape[1], start) for kind in kinds}
        h = self._through(self.layers[:owners], h, extra, cache.offset, cache, reaches)
        last = (lengths - 1)[:, None, None]
        h = mx.take_along_axis(h, last, axis=1)
        if extra is not None:
            extra = mx.take_along_axis(extra, last[..., None], axis=1)[:, :, owners:]
        position = start + lengths - 1
        reaches = {kind: last_reach(cache, kind, position, end) for kind in kinds}
        h = self._through(self.layers[owners:], h, extra, position, cache, reaches)
        return self.norm(h)

    def _through(
        self,
        layers: Iterable[TargetLayer],
        h: mx.array,
        extra: mx.array | None,
        position: mx.array,
        cache: KVCache,
        reaches: dict[LayerKind, Reach],
    ) -> mx.array:
        """h [B, T, H], whose rows start at position [B], after these layers.

        extra: the per-layer embeddings of its tokens for these layers, if any.
        """
        for index, layer in enumerate(layers):
            own = None if extra is None else extra[:, :, index]
            h = layer(h, position, cache, reaches, own)
        return h

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
    """One layer of the target, with experts next to the MLP and per-layer embeddings if it has any.

    Reads the keys and values of layer `kv_source` in the cache: its own, if it owns any.
    """

    def __init__(self, config: TargetConfig, layer: LayerConfig) -> None:
        super().__init__(config, layer)
        size, eps = config.hidden_size, config.rms_norm_eps
        self._eps = eps
        self._kind, self._owns_kv, self._kv_source = layer.kind, layer.owns_kv, layer.kv_source
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
        reaches: dict[LayerKind, Reach],
        per_layer_input: mx.array | None,
    ) -> mx.array:
        """h [B, T, H], whose rows start at position [B] -> the next layer's h.

        per_layer_input: this layer's embeddings [B, T, W] of the tokens.
        """
        x, reach = self.input_layernorm(h), reaches[self._kind]
        if self._owns_kv:
            q, k, v = self.self_attn.queries_keys_values(x, position)
            keys, values = cache.write(self._kv_source, k, v, reach)
        else:
            q = self.self_attn.queries(x, position)
            keys, values = cache.seen(self._kv_source, reach)
        attended = self.self_attn(q, keys, values, reach.mask, reach.cuts)
        h = h + self.post_attention_layernorm(attended)

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
