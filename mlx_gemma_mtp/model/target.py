"""The target: Gemma 4's text decoder. Holds weights; the cache is the caller's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn

from mlx_gemma_mtp.model.cache import KVCache, Reach
from mlx_gemma_mtp.model.config import TargetConfig
from mlx_gemma_mtp.model.experts import Experts, Way, default_ways
from mlx_gemma_mtp.model.layer_config import LayerConfig, LayerKind
from mlx_gemma_mtp.model.layers import DecoderLayer, gelu_tanh, rms_norm
from mlx_gemma_mtp.model.linear import dequantizes
from mlx_gemma_mtp.model.packing import Packing, packing_of
from mlx_gemma_mtp.model.prompt import last_reach, prompt_reach
from mlx_gemma_mtp.model.router import ExpertRouter


class Pass(NamedTuple):
    """What all layers of a pass share."""

    cache: KVCache
    position: mx.array  # int32 [B], of each row's first query
    reaches: dict[LayerKind, Reach]
    packing: Packing | None
    way: Way  # to compute experts


class Target(nn.Module):
    """Gemma 4 E2B, E4B, 12B, 26B-A4B or 31B; parameters named as in the text-only checkpoint."""

    def __init__(self, config: TargetConfig) -> None:
        super().__init__()
        self.config = config
        self.ways = default_ways(config)
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

    def set_ways(self, ways: Mapping[int, str]) -> None:
        """Compute experts in the ways measured by numbers of tokens, see `Ways.measured`."""
        self.ways = default_ways(self.config).measured(ways)

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

    def __call__(
        self, tokens: mx.array, cache: KVCache, packing: Packing | None = None
    ) -> mx.array:
        """Hidden states [B, T, H] after the final norm, of tokens [B, T].

        The tokens stand at positions cache.offset .. cache.offset + T - 1 of each row. Their keys
        and values are written to the cache; they count once the caller advances its offset.
        packing: which of the tokens are computed; the result is [1, width, H] then, and positions
        without a token get stale keys and values.
        """
        num_positions = tokens.shape[1]
        tokens = tokens if packing is None else packing.pack(tokens)
        h = self.embed(tokens)
        extra = self._per_layer_inputs(tokens, h)
        reaches = {kind: cache.reach(kind, num_positions) for kind in self.config.kinds}
        num_tokens = tokens.size if packing is None else packing.num_tokens
        through = Pass(cache, cache.offset, reaches, packing, self.ways[num_tokens])
        return self.norm(_through(self.layers, h, extra, through))

    def read(
        self, tokens: mx.array, cache: KVCache, start: int, lengths: Sequence[int], least: int = 1
    ) -> mx.array:
        """Like a call, for the next tokens [B, T] of prompts; returns [B, 1, H].

        start: the offset of every row, known to the host. lengths: how many of the T tokens
        each row has; the rest is padding. That of several rows costs attention alone; that of a
        single one is computed, because it is there for the size of the products. least: the least
        tokens in any product, with more padding if need be. Returns the state of each row's last
        token alone. The others skip the layers that write no keys and values (more than half of
        E2B and E4B).
        """
        batch, num_positions = tokens.shape
        kinds, end, owners = self.config.kinds, start + num_positions, self.config.num_kv_layers
        counts = [num_positions] if batch == 1 else lengths
        num_tokens = sum(counts)
        packing = packing_of(counts, num_positions, max(num_tokens, least))
        tokens = tokens if packing is None else packing.pack(tokens)
        h = self.embed(tokens)
        extra = self._per_layer_inputs(tokens, h)
        reaches = {kind: prompt_reach(cache, kind, num_positions, start) for kind in kinds}
        way = self.ways[num_tokens]
        through = Pass(cache, cache.offset, reaches, packing, way)
        h = _through(self.layers[:owners], h, extra, through)

        last = mx.array([end - 1 for end in accumulate(lengths)])  # among the tokens of all rows
        packing = packing_of([1] * batch, 1, max(batch, least))

        def last_of(x: mx.array) -> mx.array:
            x = x.reshape(-1, *x.shape[2:])[last][:, None]
            return x if packing is None else packing.pack(x)

        h = last_of(h)
        extra = None if extra is None else last_of(extra)[:, :, owners:]
        position = mx.array([start + length - 1 for length in lengths], mx.int32)
        reaches = {kind: last_reach(cache, kind, position, end) for kind in kinds}
        through = Pass(cache, position, reaches, packing, self.ways[batch])
        h = _through(self.layers[owners:], h, extra, through)
        return self.norm(h if packing is None else packing.unpack(h))

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

    def __call__(self, h: mx.array, per_layer_input: mx.array | None, through: Pass) -> mx.array:
        """h [B, T, H], or [1, width, H] with a packing -> the next layer's h.

        per_layer_input: this layer's embeddings of the same tokens, [..., W].
        """
        cache, position, reaches, packing, way = through
        x, reach = self.input_layernorm(h), reaches[self._kind]
        if self._owns_kv:
            q, k, v = self.self_attn.queries_keys_values(x, position, packing)
            keys, values = cache.write(self._kv_source, k, v, reach)
        else:
            q = self.self_attn.queries(x, position, packing)
            keys, values = cache.seen(self._kv_source, reach)
        attended = self.self_attn(q, keys, values, reach.mask, reach.cuts, packing)
        h = h + self.post_attention_layernorm(attended)

        if self._has_experts:
            normed = rms_norm(h, self._eps)  # one norm for three readers, each with its own weight
            dense = self.mlp(normed * self.pre_feedforward_layernorm.weight)
            dense = self.post_feedforward_layernorm_1(dense)
            mixed = self._through_experts(normed, packing, way)
            out = dense + self.post_feedforward_layernorm_2(mixed)
        else:
            out = self.mlp(self.pre_feedforward_layernorm(h))
        h = h + self.post_feedforward_layernorm(out)

        if per_layer_input is not None:
            gated = gelu_tanh(self.per_layer_input_gate(h)) * per_layer_input
            h = h + self.post_per_layer_input_norm(self.per_layer_projection(gated))
        return h * self.layer_scalar

    def _through_experts(self, normed: mx.array, packing: Packing | None, way: Way) -> mx.array:
        """normed, shaped like h -> the experts' outputs. Padding gets those of the first token."""
        flat = normed.reshape(-1, normed.shape[-1])
        chosen, shares = self.router(flat)
        scaled = flat * self.pre_feedforward_layernorm_2.weight
        width, num_tokens = len(flat), len(flat) if packing is None else packing.num_tokens
        mixed = self.experts(scaled[:num_tokens], chosen[:num_tokens], shares[:num_tokens], way)
        if num_tokens < width:
            mixed = mixed[mx.array([*range(num_tokens), *[0] * (width - num_tokens)])]
        return mixed.reshape(normed.shape)


def _through(
    layers: Iterable[TargetLayer], h: mx.array, extra: mx.array | None, through: Pass
) -> mx.array:
    """h [B, T, H], or [1, width, H] with a packing, after these layers.

    extra: the per-layer embeddings of its tokens for these layers, if any.
    """
    for index, layer in enumerate(layers):
        before, h = h, layer(h, None if extra is None else extra[:, :, index], through)
        if dequantizes(h):  # with the weights of two layers in memory, not of all
            mx.async_eval(h)
            mx.eval(before)
    return h
