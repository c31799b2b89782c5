"""Which tokens of a pass over B rows of T positions are computed, side by side as one list.

Linear layers, experts and the head see the list; attention and the cache see every position, and
what stands in a position without a token is as stale as a rejected draft. Knows nothing of drafts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import mlx.core as mx


class Packing(NamedTuple):
    """The tokens of a pass, row after row, and then padding: copies of the first one.

    index: of each in [B T]. places: of each position among them, any for a position without one.
    num_tokens: how many there are without the padding; experts compute no more.
    """

    index: mx.array  # int32 [width]
    places: mx.array  # int32 [B, T]
    num_tokens: int

    def pack(self, x: mx.array) -> mx.array:
        """x [B, T, ...] -> [1, width, ...]."""
        return mx.take(x.reshape(-1, *x.shape[2:]), self.index, axis=0)[None]

    def unpack(self, x: mx.array) -> mx.array:
        """x [1, width, ...] -> [B, T, ...]."""
        return mx.take(x[0], self.places, axis=0)


def packing_of(counts: Sequence[int], num_positions: int, width: int) -> Packing | None:
    """Pack the first counts[b] of num_positions positions of each row b into `width` tokens.

    None if every position has a token and nothing is padded: then nothing needs to move.
    """
    num_tokens = sum(counts)
    assert 0 < num_tokens <= width
    assert max(counts) <= num_positions
    if num_tokens == width == len(counts) * num_positions:
        return None
    index, places = list[int](), list[list[int]]()
    for row, count in enumerate(counts):
        places.append([len(index) + min(at, max(0, count - 1)) for at in range(num_positions)])
        index += range(row * num_positions, row * num_positions + count)
    index += index[:1] * (width - num_tokens)
    last = width - 1
    kept = [[min(place, last) for place in row] for row in places]
    return Packing(mx.array(index, mx.int32), mx.array(kept, mx.int32), num_tokens)
