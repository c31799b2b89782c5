"""The least that a round must do: the bytes it reads and the multiply-adds it computes.

Counted from the models, loaded or not. `mgm bench` divides the bytes by the measured bandwidth;
`mgm estimate` predicts from both.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import reduce
from typing import NamedTuple

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from mlx_gemma_mtp import device
from mlx_gemma_mtp.model.config import DecoderConfig, TargetConfig
from mlx_gemma_mtp.model.drafter import Drafter
from mlx_gemma_mtp.model.layer_config import LayerKind
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


class Work(NamedTuple):
    """Bytes read, and multiply-adds."""

    bytes: float
    products: float


class Floor:
    """What the rounds of a pair must read and multiply: each weight and each visible key once.

    lengths, in all methods: the committed positions of each row. Experts are counted as if routing
    were even, which is the most that a round reads: tokens of one text share experts. Keeps numbers
    only, no arrays.

    dense, experts, draft_step: the bytes of the target's weights that every token passes, of all
    its experts, and of what a draft step reads of the drafter; with the multiply-adds of one row
    with all of them.
    """

    def __init__(self, target: Target, drafter: Drafter | None) -> None:
        self.target, self.drafter = target.config, None if drafter is None else drafter.config
        self._dtype_bytes = target.dtype.size
        whole, experts, looked_up = (
            _weights(target, part) for part in ("", ".experts.", "embed_tokens_per_layer.")
        )
        dense = whole - experts - looked_up  # a few rows of the latter are read
        if "lm_head" in target:  # then they are of the embedding, too
            dense = dense - _weights(target, "embed_tokens.")
        self.dense, self.experts = Work(*dense.tolist()), Work(*experts.tolist())
        self.draft_step = Work(0, 0)
        if drafter is not None:
            step = _weights(drafter)
            if drafter.config.use_ordered_embeddings:  # of the head, only the best clusters' rows
                config = drafter.config
                unread = 1 - config.centroid_intermediate_top_k / config.num_centroids
                head = _weights(drafter, "embed_tokens.") + _weights(drafter, ".token_ordering")
                step = step - unread * head
            self.draft_step = Work(*step.tolist())

    def verify(self, lengths: Sequence[int], tokens: float) -> Work:
        """The target's pass over this many new tokens of every row."""
        config, num_tokens = self.target, tokens * len(lengths)
        chosen = config.top_k_experts / config.num_experts if config.num_experts else 0
        cached, attention = self.attention(config, lengths)
        num_bytes = self.dense.bytes + self.experts.bytes * expert_share(config, num_tokens)
        products = self.dense.products + self.experts.products * chosen
        return Work(num_bytes + cached, num_tokens * products + tokens * attention)

    def draft(self, lengths: Sequence[int]) -> Work:
        """One draft step of all rows. Needs a drafter."""
        assert self.drafter is not None
        cached, attention = self.attention(self.drafter, lengths)
        num_bytes, products = self.draft_step
        return Work(num_bytes + cached, products * len(lengths) + attention)

    def round_bytes(self, lengths: Sequence[int], num_draft_tokens: float) -> float:
        """Bytes that a whole round reads."""
        verify = self.verify(lengths, num_draft_tokens + 1).bytes
        return verify + (num_draft_tokens and num_draft_tokens * self.draft(lengths).bytes)

    def attention(
        self, config: DecoderConfig, lengths: Sequence[int], kind: LayerKind | None = None
    ) -> Work:
        """One query in every row, with the keys and the values that it sees: the target's.

        kind: only of layers of this kind.
        """
        num_bytes = products = 0
        for layer in config.layers:
            if kind not in (None, layer.kind):
                continue
            owner = self.target.layers[self.target.last_owner(layer.kind)]
            sliding = layer.kind == "sliding_attention"
            most = self.target.sliding_window if sliding else max(lengths)
            visible = sum(min(length, most) for length in lengths)
            num_bytes += 2 * owner.num_key_value_heads * owner.head_dim * visible
            products += 2 * config.num_attention_heads * layer.head_dim * visible
        return Work(num_bytes * self._dtype_bytes, products)


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
