"""Passes of a target over random tokens after a random context, in caches of their own.

For what a pass costs and which passes give the same bits; neither is decided here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from typing import NamedTuple, cast

import mlx.core as mx

from mlx_gemma_mtp.device import compiled
from mlx_gemma_mtp.engine.rows import SIZES
from mlx_gemma_mtp.memory import Limits
from mlx_gemma_mtp.model.cache import Buffers, KVCache, rounded_up
from mlx_gemma_mtp.model.packing import Packing, packing_of
from mlx_gemma_mtp.model.target import Target

MOST_ROWS = SIZES[-1]
MOST_POSITIONS = 16
NEAR, FAR = 16, 224  # positions of context

_KEY = mx.random.key(0)

# Of each token, by row and position: what it gave, see `Passes.bits`.
Bits = dict[tuple[int, int], tuple[int, ...]]


class Shaped(NamedTuple):
    """The first counts[b] of num_positions positions of each row b, padded to `width` tokens."""

    counts: Sequence[int]
    num_positions: int
    width: int

    @classmethod
    def of(cls, num_tokens: int) -> Shaped:
        """Return the pass of a round over this many tokens of as many rows as there may be."""
        positions = -(-num_tokens // MOST_ROWS)
        rows = -(-num_tokens // positions)
        return cls(_divided(num_tokens, rows), positions, num_tokens)

    @classmethod
    def narrow(cls, num_tokens: int) -> Shaped:
        """Return a pass over this many tokens in which every row has MOST_ROWS positions."""
        return cls(_divided(num_tokens, MOST_ROWS), MOST_ROWS, num_tokens)


class Passes:
    """Passes of one target, compiled as rounds are. The worker calls everything."""

    def __init__(self, target: Target, limits: Limits) -> None:
        self.target = target
        self._limits = limits
        draw = mx.random.randint(0, target.config.vocab_size, (MOST_ROWS, MOST_POSITIONS), key=_KEY)
        self._tokens = draw.astype(mx.int32)
        self._near = dict[int, KVCache]()
        self._play = _compiled_pass(target)

    def with_ways(self, ways: Mapping[int, str]) -> Passes:
        """Return passes in the same caches that compute experts in these ways."""
        passes = copy(self)
        passes.target = copy(self.target)  # the same weights
        passes.target.set_ways(ways)
        passes._play = _compiled_pass(passes.target)
        return passes

    def near(self, batch: int) -> KVCache:
        """Return rows with little context and few slots, always the same ones."""
        if batch not in self._near:
            slots = rounded_up(NEAR + MOST_POSITIONS, self._limits.slot_step)
            most = max(slots - self.target.config.sliding_window, MOST_POSITIONS)
            self._near[batch] = self._cache(batch, slots, most, NEAR)
        return self._near[batch]

    def far(self, capacity: int) -> KVCache:
        """One row with more context, and as many slots as the rows of an engine have."""
        return self._cache(1, capacity, self._limits.most_beyond, FAR)

    def run(self, cache: KVCache, shaped: Shaped, first: int = 0) -> tuple[mx.array, mx.array]:
        """Return the states and logits of a pass; the next one overwrites what it wrote.

        first: the token of each row that its pass starts with; those before it are in the cache.
        """
        packing = packing_of(*shaped)
        tokens = self._tokens[: len(shaped.counts), first : first + shaped.num_positions]
        hidden, logits, cache.buffers = self._play(cache.buffers, tokens, packing)
        return hidden, logits

    def bits(self, cache: KVCache, shaped: Shaped, first: int = 0) -> Bits:
        """Return digests of each token's state, its logits, and its keys and values in all layers.

        Tokens with the same digests have the same bits. first: see `run`.
        """
        start = cache.offset
        cache.offset = start + first
        parts = [part.reshape(-1, part.shape[-1]) for part in self.run(cache, shaped, first)]
        cache.offset = start
        at = [(row, first + i) for row, count in enumerate(shaped.counts) for i in range(count)]
        rows, positions = (mx.array(list(part)) for part in zip(*at, strict=True))
        for buffer in (*cache.keys, *cache.values):
            slots = (start[rows] + positions) % buffer.shape[2]
            parts.append(buffer[rows, :, slots].reshape(len(at), -1))
        found = mx.stack([digests(part[: len(at)]) for part in parts], axis=1).tolist()
        every = zip(at, cast(list[list[int]], found), strict=True)
        return {token: tuple(own) for token, own in every}

    def _cache(self, batch: int, capacity: int, most: int, context: int) -> KVCache:
        config, step = self.target.config, self._limits.slot_step
        cache = KVCache.empty(
            config, batch, capacity=capacity, most=most, dtype=self.target.dtype, slot_step=step
        )
        keys = iter(mx.random.split(_KEY, 2 * len(cache.keys)))
        for buffers in (cache.keys, cache.values):
            for index, buffer in enumerate(buffers):
                _, heads, slots, size = buffer.shape
                shape = (1, heads, min(context, slots), size)  # all rows have the same context
                drawn = mx.random.normal(shape, key=next(keys)).astype(buffer.dtype)
                row = mx.pad(drawn, [(0, 0), (0, 0), (0, slots - shape[2]), (0, 0)])
                buffers[index] = mx.repeat(row, batch, axis=0)
                mx.eval(buffers[index])
        cache.offset = mx.full((batch,), context, mx.int32)
        return cache


def digests(x: mx.array) -> mx.array:
    """Return a number for the bits of each row of x [n, m]: uint32 [n]."""
    kinds = {1: mx.uint8, 2: mx.uint16, 4: mx.uint32}
    bits = x.view(kinds[x.itemsize]).astype(mx.uint32)
    odd = 2 * mx.random.randint(0, 2**31 - 1, x.shape[1:], key=_KEY).astype(mx.uint32) + 1
    return (bits * odd).sum(axis=1)


def _compiled_pass(
    target: Target,
) -> Callable[[Buffers, mx.array, Packing | None], tuple[mx.array, mx.array, Buffers]]:
    def play(
        buffers: Buffers, tokens: mx.array, packing: Packing | None
    ) -> tuple[mx.array, mx.array, Buffers]:
        cache = KVCache(target.config, buffers)
        hidden = target(tokens, cache, packing)
        return hidden, target.logits(hidden), cache.buffers

    return compiled(play)


def _divided(number: int, parts: int) -> list[int]:
    return [number // parts + (part < number % parts) for part in range(parts)]
