"""The time no implementation can beat: the bytes a round must read over the memory's bandwidth."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

import mlx.core as mx
from mlx.utils import tree_flatten

from mlx_gemma_mtp.config import DecoderConfig
from mlx_gemma_mtp.drafter import Drafter
from mlx_gemma_mtp.target import Target

BUFFER_BYTES = 1 << 31  # far larger than any cache; less where memory is slow to touch
REPEATS = 10


def bandwidth(num_bytes: int = BUFFER_BYTES) -> float:
    """Bytes per second that this device reads and writes, both counted, measured by a copy."""
    source = mx.zeros((num_bytes // 4,), mx.int32)
    mx.eval(source)
    seconds = []
    for _ in range(REPEATS):
        begun = time.perf_counter()
        mx.eval(source + 1)
        seconds.append(time.perf_counter() - begun)
    return 2 * source.nbytes / statistics.median(seconds)


class Floor:
    """Bytes that a round of this pair must read, each weight and each visible key and value once.

    Taken when made: the pair may be given away afterwards.
    """

    def __init__(self, target: Target, drafter: Drafter) -> None:
        weights = {name: a.nbytes for name, a in dict(tree_flatten(target.parameters())).items()}
        self._target = target.config
        self._item = target.dtype.size
        self._experts = sum(size for name, size in weights.items() if ".experts." in name)
        looked_up = weights.get("embed_tokens_per_layer.weight", 0)  # a few rows of it
        self._weights = sum(weights.values()) - self._experts - looked_up
        self._drafter = drafter.config
        parts = {name: a.nbytes for name, a in dict(tree_flatten(drafter.parameters())).items()}
        self._draft_step = sum(parts.values())
        if drafter.config.use_ordered_embeddings:  # of the tied head, the best clusters' rows
            share = drafter.config.centroid_intermediate_top_k / drafter.config.num_centroids
            head = parts["embed_tokens.weight"] + parts["masked_embedding.token_ordering"]
            self._draft_step -= int((1 - share) * head)

    def round_bytes(
        self, lengths: Sequence[int], num_drafts: int, distinct_experts: float | None
    ) -> float:
        """Bytes of one round over rows of these lengths that reads so many experts per layer."""
        experts = 0.0
        if distinct_experts is not None:
            experts = self._experts * distinct_experts / self._target.num_experts
        verify = self._weights + experts + self._cache_bytes(self._target, lengths)
        return verify + num_drafts * (self._draft_step + self._cache_bytes(self._drafter, lengths))

    def _cache_bytes(self, config: DecoderConfig, lengths: Sequence[int]) -> int:
        """Keys and values that the layers of `config` look at, all of them the target's."""
        total = 0
        for layer in config.layers:
            sliding = layer.kind == "sliding_attention"
            seen = sum(min(n, self._target.sliding_window) if sliding else n for n in lengths)
            total += 2 * seen * layer.num_key_value_heads * layer.head_dim * self._item
        return total
