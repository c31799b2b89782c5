"""The best of very many logits, without sorting all of them.

Knows nothing of settings, noise or tokens that may not be chosen.
"""

from __future__ import annotations

import mlx.core as mx

# Metal sorts up to 2,048 numbers in one launch, and 262,144 in 16 that move 132 bytes per number.
NUM_BLOCKS = 2048
NUM_BEST = 128  # blocks to keep; more while there are fewer than NUM_CANDIDATES numbers in them
NUM_CANDIDATES = 1024


def narrows(size: int) -> bool:
    """True if `candidates` can narrow this many numbers down to NUM_CANDIDATES."""
    return size >= NUM_BLOCKS and size.bit_count() == 1


def candidates(logits: mx.array, ids: mx.array | None) -> tuple[mx.array, mx.array, mx.array]:
    """Return NUM_CANDIDATES logits, their ids, and the largest logit [B, T, 1] left out.

    Keeps the blocks with the best maxima, divides what they hold into smaller blocks, and so on.
    """
    outside: mx.array | None = None
    rows = logits.shape[:-1]
    while logits.shape[-1] > NUM_CANDIDATES:
        size = logits.shape[-1] // NUM_BLOCKS
        num_kept = max(NUM_BEST, NUM_CANDIDATES // size)
        blocks = logits.reshape(*rows, NUM_BLOCKS, size)
        maxima = blocks.max(axis=-1)
        order = mx.argsort(maxima, axis=-1)
        next_best = mx.take_along_axis(maxima, order[..., -num_kept - 1 : -num_kept], axis=-1)
        outside = next_best if outside is None else mx.maximum(outside, next_best)
        best = order[..., -num_kept:, None]
        logits = mx.take_along_axis(blocks, best, axis=-2).reshape(*rows, -1)
        if ids is None:
            ids = best.astype(mx.int32) * size + mx.array(list(range(size)), mx.int32)
        else:
            ids = mx.take_along_axis(ids.reshape(*rows, NUM_BLOCKS, size), best, axis=-2)
        ids = ids.reshape(*rows, -1)
    assert ids is not None
    assert outside is not None
    return logits, ids, outside
