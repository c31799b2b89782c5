"""The least that a round must do: the bytes it reads and the multiply-adds it computes.

Counted from the models, loaded or not. `mgm bench` divides the bytes by the measured bandwidth;
`mgm estimate` predicts from both.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import reduce

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from mlx_gemma_mtp import device
from mlx_gemma_mtp.model.config import DecoderConfig, LayerConfig, TargetConfig
from mlx_gemma_mtp.model.drafter import Drafter
from mlx_gemma_mtp.model.target import Target

BUFFER_BYTES = 1 << 31  # large enough that the launch takes no time next to it
MEMORY_SHARE = 16  # but at most this fraction of the free memory
CPU_BUFFER_BYTES = 1 << 27  # larger than its caches
PASSES = 4  # per launch, so that launching and waiting hardly count
REPEATS = 10


def bandwidth() -> float:
    """Bytes per second that this device moves at best, reads and writes counted.

    The fastest of copies and plain reads. On a CPU numpy does both, because arithmetic limits
    MLX's kernels there.
    """
    if device.backend() == "cpu":
        one = np.arange(CPU_BUFFER_BYTES // 4, dtype=np.float32)
        other, num_bytes = one[::-1].copy(), 2 * one.nbytes
        return max(
            rate(num_bytes, lambda: np.dot(one, other)),
            rate(num_bytes, lambda: np.copyto(other, one)),
        )
    free = device.available() - mx.get_active_memory()
    array = mx.arange(min(BUFFER_BYTES, free // MEMORY_SHARE) // 4)
    mx.eval(array)

    def copy() -> None:
        mx.eval(reduce(lambda copied, _: copied + 1, range(PASSES), array))

    def read() -> None:
        mx.eval([mx.sum(array) for _ in range(PASSES)])

    num_bytes = PASSES * array.nbytes
    found = max(rate(num_bytes, read), rate(2 * num_bytes, copy))
    mx.clear_cache()
    return found


def rate(
    num_bytes: int, action: Callable[[], object], clock: Callable[[], float] = time.perf_counter
) -> float:
    """Bytes per second of the fastest of several repeats."""
    seconds = []
    for _ in range(REPEATS):
        start = clock()
        action()
        seconds.append(clock() - start)
    return num_bytes / min(seconds)


class Floor:
    """What the rounds of a pair must read and multiply: each weight and each visible key once.

    lengths, in all methods: the committed positions of each row. Experts are counted as if routing
    were even, which is the most that a round reads: tokens of one text share experts. Keeps numbers
    only, no arrays.
    """

    def __init__(self, target: Target, drafter: Drafter | None) -> None:
        self._target, self._drafter = target.config, None if drafter is None else drafter.config
        self._dtype_bytes = target.dtype.size
        whole, self._experts, looked_up = (
            _weights(target, part) for part in ("", ".experts.", "embed_tokens_per_layer.")
        )
        self._dense = whole - self._experts - looked_up  # a few rows of the latter are read
        if drafter is not None:
            self._draft_step: np.ndarray = _weights(drafter)
            if drafter.config.use_ordered_embeddings:  # of the head, only the best clusters' rows
                config = drafter.config
                unread = 1 - config.centroid_intermediate_top_k / config.num_centroids
                head = _weights(drafter, "embed_tokens.") + _weights(drafter, ".token_ordering")
                self._draft_step = self._draft_step - unread * head

    def verify_bytes(self, lengths: Sequence[int], tokens: float) -> float:
        """Bytes that the target reads for this many new tokens of every row."""
        experts = self._experts[0] * expert_share(self._target, tokens * len(lengths))
        return float(self._dense[0] + experts + self._cache_bytes(self._target, lengths))

    def draft_bytes(self, lengths: Sequence[int]) -> float:
        """Bytes that one draft step reads for all rows. Needs a drafter."""
        assert self._drafter is not None
        return float(self._draft_step[0] + self._cache_bytes(self._drafter, lengths))

    def round_bytes(self, lengths: Sequence[int], num_draft_tokens: float) -> float:
        """Bytes that a whole round reads."""
        verify = self.verify_bytes(lengths, num_draft_tokens + 1)
        return verify + (num_draft_tokens and num_draft_tokens * self.draft_bytes(lengths))

    def verify_products(self, lengths: Sequence[int], tokens: int) -> float:
        """Multiply-adds of the target for this many new tokens of every row."""
        config = self._target
        chosen = config.top_k_experts / config.num_experts if config.num_experts else 0
        each = self._dense[1] + self._experts[1] * chosen
        return float(tokens * (each * len(lengths) + self._attention_products(config, lengths)))

    def draft_products(self, lengths: Sequence[int]) -> float:
        """Multiply-adds of one draft step for all rows. Needs a drafter."""
        assert self._drafter is not None
        attention = self._attention_products(self._drafter, lengths)
        return float(self._draft_step[1] * len(lengths) + attention)

    def _cache_bytes(self, config: DecoderConfig, lengths: Sequence[int]) -> int:
        """Keys and values that the layers of `config` read, all of them the target's."""
        total = 0
        for layer in config.layers:
            owner = self._target.layers[self._target.last_owner(layer.kind)]
            per_slot = 2 * owner.num_key_value_heads * owner.head_dim * self._dtype_bytes
            total += per_slot * sum(self._visible(layer, length) for length in lengths)
        return total

    def _attention_products(self, config: DecoderConfig, lengths: Sequence[int]) -> int:
        """Of one query in every row: with the keys it sees, and of the weights with the values."""
        return sum(
            2 * config.num_attention_heads * layer.head_dim * self._visible(layer, length)
            for layer in config.layers
            for length in lengths
        )

    def _visible(self, layer: LayerConfig, length: int) -> int:
        sliding = layer.kind == "sliding_attention"
        return min(length, self._target.sliding_window) if sliding else length


def expert_share(config: TargetConfig, tokens: float) -> float:
    """The expected share of a layer's experts that this many tokens choose, evenly; 0 without."""
    if not config.num_experts:
        return 0.0
    return 1 - (1 - config.top_k_experts / config.num_experts) ** tokens


def _weights(model: Target | Drafter, part: str = "") -> np.ndarray:
    """Bytes, and numbers in matrices, of the weights with this in their names."""
    arrays = dict(tree_flatten(model.parameters()))
    num_bytes = sum(array.nbytes for name, array in arrays.items() if part in name)
    numbers = 0
    for path, module in model.named_modules():
        if part in f"{path}.weight" and "weight" in module and module.weight.ndim > 1:
            packed = 32 / module.bits if "scales" in module else 1
            numbers += int(module.weight.size * packed)
    return np.array([num_bytes, numbers], np.float64)
