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

    rows, positions: where each token stands in [B, T]. places: where each position's token is in
    the list; anywhere for a position without one. num_tokens: how many there are without the
    padding; experts compute no more. All but num_tokens are arrays, so that a pass compiled for one
    division of the tokens serves all.
    """

    rows: mx.array  # int32 [width]
    positions: mx.array  # int32 [width]
    places: mx.array  # int32 [B, T], below num_tokens
    num_tokens: int

    def pack(self, x: mx.array) -> mx.array:
        """x [B, T, ...] -> [1, width, ...]. One launch, however x is laid out in memory."""
        return x[self.rows, self.positions][None]

    def unpack(self, x: mx.array) -> mx.array:
        """x [1, num_tokens or more, ...] -> [B, T, ...]."""
        return mx.take(x.squeeze(0), self.places, axis=0)  # x[0] would be a launch of its own


def packing_of(counts: Sequence[int], num_positions: int, width: int) -> Packing | None:
    """Pack the first counts[b] of num_positions positions of each row b into `width` tokens.

    None if every position has a token and nothing is padded: then nothing needs to move.
    """
    num_tokens = sum(counts)
    assert 0 < num_tokens <= width
    assert max(counts) <= num_positions
    if num_tokens == width == len(counts) * num_positions:
        return None
    tokens, places = list[tuple[int, int]](), list[list[int]]()
    for row, count in enumerate(counts):
        first, last = len(tokens), min(len(tokens) + max(count, 1), num_tokens) - 1
        places.append([min(first + position, last) for position in range(num_positions)])
        tokens += [(row, position) for position in range(count)]
    tokens += tokens[:1] * (width - num_tokens)
    rows, positions = (mx.array(list(part), mx.int32) for part in zip(*tokens, strict=True))
    return Packing(rows, positions, mx.array(places, mx.int32), num_tokens)
