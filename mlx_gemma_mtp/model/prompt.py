"""What the queries of one pass over prompts see: more than one row at a time, all at one position.

The host knows that position, so queries attend to the used slots only, and sliding layers to the
pass itself and the window before it. Knows nothing of requests.
"""

from __future__ import annotations

import mlx.core as mx

from mlx_gemma_mtp.model.cache import KVCache, Reach, rounded_up
from mlx_gemma_mtp.model.layer_config import LayerKind

CUT = 512  # queries that attend together
ALIGNED = 8  # products of 16-bit rows are slow if the rows do not start at multiples of 16 bytes


def prompt_reach(
    cache: KVCache, kind: LayerKind, num_positions: int, start: int, cut: int = CUT
) -> Reach:
    """`KVCache.reach` if all rows stand at position `start`.

    A sliding layer need not hold more than its window for it. cut: the most queries of a piece.
    """
    capacity, end = cache.capacity(kind), start + num_positions
    query = mx.arange(start, end)[:, None]
    kept = mx.arange(max(start, end - capacity), end)
    slots = (kept % capacity)[None, None, :, None]
    if kind == "full_attention":
        num_seen = min(rounded_up(end, ALIGNED), capacity)
        mask = mx.arange(num_seen) <= query
        return Reach(slots, mask[None, None], cuts=_cuts(num_positions, start, end, cut))
    window = cache.config.sliding_window
    first = max(0, start - window)
    key = mx.arange(first, first + rounded_up(end - first, ALIGNED))
    mask = (key <= query) & (key > query - window)
    earlier = mx.arange(first, start) % capacity
    cuts = _cuts(num_positions, start - first, window, cut)
    return Reach(slots, mask[None, None], earlier, cuts)


def last_reach(cache: KVCache, kind: LayerKind, last: mx.array, end: int) -> Reach:
    """What the query at position `last` [B] of each row sees, all of them before position `end`.

    For layers without keys and values of their own, so nothing is written.
    """
    heads = cache.config.num_attention_heads
    mask = cache.visible(kind, last[:, None, None, None], heads)
    if kind == "full_attention":
        mask = mask[..., : rounded_up(end, ALIGNED)]
    return Reach(last, mask)


def _cuts(
    num_positions: int, num_earlier: int, window: int, cut: int
) -> tuple[tuple[slice, slice], ...]:
    """Pieces of these positions, and the keys that they see: some earlier ones come first."""
    num_pieces = -(-num_positions // cut)
    size = rounded_up(-(-num_positions // num_pieces), ALIGNED)
    cuts = []
    for at in range(0, num_positions, size):
        until = rounded_up(num_earlier + at + size, ALIGNED)
        cuts.append((slice(at, at + size), slice(max(0, num_earlier + at - window), until)))
    return tuple(cuts)
