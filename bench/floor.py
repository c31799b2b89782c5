"""The least that a round must do: the bytes it reads, and the products of the numbers it adds up.

Counted from two configurations and the bytes of each weight, loaded or not: `estimate` predicts
from it, the benchmark divides it by the bandwidth of the run. Knows nothing of time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import reduce

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from mlx_gemma_mtp import device
from mlx_gemma_mtp.model.config import DecoderConfig, DrafterConfig, LayerConfig, TargetConfig
from mlx_gemma_mtp.model.drafter import Drafter
from mlx_gemma_mtp.model.target import Target

BUFFER_BYTES = 1 << 31  # so large that a launch takes no time beside it; of what is left at most
MEMORY_SHARE = 16  # one part in so many
CPU_BUFFER_BYTES = 1 << 27  # beyond its caches
PASSES = 4  # at once, so that to launch them and to wait for them hardly counts
REPEATS = 10


def bandwidth() -> float:
    """Bytes per second that this device moves at the best: read and written, both counted.

    Measured by copies and, since a round reads far more than it writes, by reading alone. On a CPU
    numpy does both: MLX's kernels there are limited by their arithmetic.
    """
    if mx.default_device() == mx.Device(mx.cpu):
        one = np.arange(CPU_BUFFER_BYTES // 4, dtype=np.float32)
        other, num_bytes = one[::-1].copy(), 2 * one.nbytes
        reading = _rate(num_bytes, lambda: np.dot(one, other))
        return max(reading, _rate(num_bytes, lambda: np.copyto(other, one)))
    left = device.available() - mx.get_active_memory()
    array = mx.arange(min(BUFFER_BYTES, left // MEMORY_SHARE) // 4)
    mx.eval(array)

    def copy() -> None:
        mx.eval(reduce(lambda copied, _: copied + 1, range(PASSES), array))

    def read() -> None:
        mx.eval([mx.sum(array) for _ in range(PASSES)])

    num_bytes = PASSES * array.nbytes
    found = max(_rate(num_bytes, read), _rate(2 * num_bytes, copy))
    mx.clear_cache()
    return found


def _rate(num_bytes: int, action: Callable[[], object]) -> float:
    """Bytes per second where so many are moved; of several times the fastest, for it is a floor."""
    seconds = []
    for _ in range(REPEATS):
        begun = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - begun)
    return num_bytes / min(seconds)


class Floor:
    """What the rounds of a pair cannot do without: each weight and each visible key and value read
    once, each weight that a token passes multiplied once.

    lengths, in all that follows: the committed positions of each row. The methods that are about
    drafts need a drafter.
    """

    def __init__(
        self,
        target: TargetConfig,
        drafter: DrafterConfig | None,
        *,
        target_bytes: Mapping[str, int],
        drafter_bytes: Mapping[str, int],
        dtype_bytes: int,
    ) -> None:
        """target_bytes, drafter_bytes: of each weight, by its name in the model, scales and biases
        of quantized ones apart. dtype_bytes: of a number in keys and values."""
        self._target, self._drafter = target, drafter
        self._dtype_bytes = dtype_bytes
        self._experts = _sum(target_bytes, ".experts.")
        looked_up = _sum(target_bytes, "embed_tokens_per_layer.")  # a few rows of it
        self._dense = sum(target_bytes.values()) - self._experts - looked_up
        self._draft_step: float = sum(drafter_bytes.values())
        if drafter is not None and drafter.use_ordered_embeddings:
            head = _sum(drafter_bytes, "embed_tokens.") + _sum(drafter_bytes, ".token_ordering")
            self._draft_step -= (1 - _head_share(drafter)) * head

    @classmethod
    def of(cls, target: Target, drafter: Drafter | None) -> Floor:
        """Of these models, which may be given away afterwards. Evaluates nothing."""
        return cls(
            target.config,
            None if drafter is None else drafter.config,
            target_bytes=_sizes(target),
            drafter_bytes={} if drafter is None else _sizes(drafter),
            dtype_bytes=target.dtype.size,
        )

    def verify_bytes(self, lengths: Sequence[int], distinct_experts: float | None) -> float:
        """Bytes that the target's pass reads; of each layer's experts so many, None without any."""
        total: float = self._dense + self._cache_bytes(self._target, lengths)
        if distinct_experts is not None:
            total += self._experts * distinct_experts / self._target.num_experts
        return total

    def draft_bytes(self, lengths: Sequence[int]) -> float:
        """Bytes that one draft step reads, for all rows at once."""
        assert self._drafter is not None
        return self._draft_step + self._cache_bytes(self._drafter, lengths)

    def round_bytes(
        self, lengths: Sequence[int], num_drafts: float, distinct_experts: float | None
    ) -> float:
        """Bytes that a round of so many draft steps and one verification reads."""
        verify = self.verify_bytes(lengths, distinct_experts)
        return verify + (num_drafts * self.draft_bytes(lengths) if num_drafts else 0)

    def _cache_bytes(self, config: DecoderConfig, lengths: Sequence[int]) -> int:
        """Keys and values that the layers of `config` look at, all of them the target's."""
        total = 0
        for layer in config.layers:
            read = self._read_by(layer)
            per_slot = 2 * read.num_key_value_heads * read.head_dim * self._dtype_bytes
            total += per_slot * sum(self._seen(layer, length) for length in lengths)
        return total

    def _read_by(self, layer: LayerConfig) -> LayerConfig:
        """The target's layer whose keys and values a layer of either model reads."""
        return self._target.layers[self._target.last_owner(layer.kind)]

    def _seen(self, layer: LayerConfig, length: int) -> int:
        sliding = layer.kind == "sliding_attention"
        return min(length, self._target.sliding_window) if sliding else length

    def verify_products(self, lengths: Sequence[int], tokens: int) -> float:
        """Multiply-adds of the target's pass over so many new tokens of every row."""
        config = self._target
        each = sum(self._layer_products(layer) for layer in config.layers)
        each += config.hidden_size * config.vocab_size  # the tied head
        attention = self._attention_products(config, lengths)
        return tokens * (each * len(lengths) + attention)

    def draft_products(self, lengths: Sequence[int]) -> float:
        """Multiply-adds of one draft step for all rows."""
        config = self._drafter
        assert config is not None
        size = config.hidden_size
        each = sum(
            2 * _heads(config, layer) * size + 3 * layer.intermediate_size * size
            for layer in config.layers
        )
        each += 3 * config.backbone_hidden_size * size  # two into it, one out of it
        if config.use_ordered_embeddings:
            each += config.num_centroids * size
        head = _head_share(config) * config.vocab_size * size
        return (each + head) * len(lengths) + self._attention_products(config, lengths)

    def _layer_products(self, layer: LayerConfig) -> int:
        """Of one token in one of the target's layers, attention to the others apart."""
        config, size = self._target, self._target.hidden_size
        kv = layer.num_key_value_heads * layer.head_dim * (1 if layer.k_eq_v else 2)
        width = 2 * _heads(config, layer) + layer.owns_kv * kv + 3 * layer.intermediate_size
        # Its slice of the per-layer projection, the gate, and the way back.
        width += 3 * config.hidden_size_per_layer_input
        if config.num_experts:
            width += config.num_experts  # the router
            width += 3 * config.top_k_experts * config.moe_intermediate_size
        return width * size

    def _attention_products(self, config: DecoderConfig, lengths: Sequence[int]) -> int:
        """Of one query of every row with the keys it sees, and of its weights with the values."""
        return sum(
            2 * _heads(config, layer) * self._seen(layer, length)
            for layer in config.layers
            for length in lengths
        )


def _sizes(model: Target | Drafter) -> dict[str, int]:
    return {name: array.nbytes for name, array in dict(tree_flatten(model.parameters())).items()}


def _sum(sizes: Mapping[str, int], part: str) -> int:
    return sum(size for name, size in sizes.items() if part in name)


def _heads(config: DecoderConfig, layer: LayerConfig) -> int:
    return config.num_attention_heads * layer.head_dim


def _head_share(config: DrafterConfig) -> float:
    """How much of its tied head a drafter looks at: with centroids, the best clusters' rows."""
    if not config.use_ordered_embeddings:
        return 1.0
    return config.centroid_intermediate_top_k / config.num_centroids
