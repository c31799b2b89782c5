"""The drafter: Google's multi-token-prediction model. Holds weights and nothing else.

One step takes the newest token's target embedding and the last hidden state, and attends to keys
and values that the target has committed. It gives a state for the next token's logits and the
hidden state for the next step.
"""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from mlx_gemma_mtp.model.cache import SharedKV
from mlx_gemma_mtp.model.config import DrafterConfig
from mlx_gemma_mtp.model.layer_config import LayerKind
from mlx_gemma_mtp.model.layers import DecoderLayer


class CentroidHead(nn.Module):
    """Finds the clusters of tokens that score best, so that only their tokens need logits."""

    def __init__(self, config: DrafterConfig) -> None:
        super().__init__()
        self._top_k = config.centroid_intermediate_top_k
        self._num_centroids = config.num_centroids
        self.centroids = nn.Linear(config.hidden_size, config.num_centroids, bias=False)
        self.token_ordering = mx.zeros((config.vocab_size,), mx.int32)

    def __call__(self, state: mx.array) -> mx.array:
        """The token ids [B, 1, C] in the best clusters for state [B, 1, h]."""
        scores = self.centroids(state)
        best = mx.argpartition(-scores, self._top_k - 1, axis=-1)[..., : self._top_k]
        members = self.token_ordering.reshape(self._num_centroids, -1)[best]
        return members.reshape(*state.shape[:2], -1)


class Drafter(nn.Module):
    """A drafter with a dense or a centroid head; parameters named as in the checkpoint."""

    def __init__(self, config: DrafterConfig) -> None:
        super().__init__()
        self.config = config
        size = config.hidden_size
        self.embed_tokens = nn.Embedding(config.vocab_size, size)  # only used as the tied head
        self.layers = [DrafterLayer(config, layer) for layer in config.layers]
        self.norm = nn.RMSNorm(size, eps=config.rms_norm_eps)
        self.pre_projection = nn.Linear(2 * config.backbone_hidden_size, size, bias=False)
        self.post_projection = nn.Linear(size, config.backbone_hidden_size, bias=False)
        if config.use_ordered_embeddings:
            self.masked_embedding = CentroidHead(config)

    def __call__(
        self,
        embedding: mx.array,
        hidden: mx.array,
        shared: dict[LayerKind, SharedKV],
        position: mx.array,
    ) -> tuple[mx.array, mx.array]:
        """One draft step for every row.

        embedding [B, 1, backbone]: the newest token, embedded and scaled by the target.
        hidden [B, 1, backbone]: the target's state after its final norm, or the last step's.
        position [B]: of the queries; the same in all steps of a round.
        Returns the normed state [B, 1, h] for `candidates`, and `hidden` for the next step.
        """
        h = self.pre_projection(mx.concatenate([embedding, hidden], axis=-1))
        for layer, config in zip(self.layers, self.config.layers, strict=True):
            h = layer(h, position, shared[config.kind])
        state = self.norm(h)
        return state, self.post_projection(state)

    def candidates(self, state: mx.array) -> tuple[mx.array, mx.array | None]:
        """Logits [B, 1, C] and token ids int32 [B, 1, C], from the state [B, 1, h] of a step.

        ids are None if the candidates are the whole vocabulary.
        """
        if not self.config.use_ordered_embeddings:
            return self.embed_tokens.as_linear(state), None
        ids = self.masked_embedding(state)
        rows = self.embed_tokens(ids)  # [B, 1, C, h]
        return (rows @ state[..., None])[..., 0], ids


class DrafterLayer(DecoderLayer):
    """One layer of the drafter, which reads keys and values of the target."""

    def __call__(self, h: mx.array, position: mx.array, shared: SharedKV) -> mx.array:
        """h [B, 1, h], whose queries stand at position [B] -> the next layer's h."""
        q = self.self_attn.queries(self.input_layernorm(h), position)
        h = h + self.post_attention_layernorm(self.self_attn(q, *shared))
        h = h + self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(h)))
        return h * self.layer_scalar
