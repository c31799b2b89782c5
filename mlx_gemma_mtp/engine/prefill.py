"""A prompt on its way into the cache, chunk by chunk, and how large a chunk may be.

Knows nothing of batches or of who else waits.
"""

from __future__ import annotations

import math

import mlx.core as mx

from mlx_gemma_mtp.decode.round import prefill
from mlx_gemma_mtp.engine.request import Request
from mlx_gemma_mtp.memory import Limits
from mlx_gemma_mtp.model.cache import KVCache, capacity_for
from mlx_gemma_mtp.model.target import Target


class Pace:
    """How long prefill takes here, and so how much of it may come between two rounds."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._seconds_per_token = math.inf  # a running mean; inf before the first measurement

    def measure(self, num_tokens: int, seconds: float) -> None:
        """Learn what a chunk took."""
        if num_tokens < self._limits.chunks[0]:
            return  # each token of a short chunk takes longer
        now, before = seconds / num_tokens, self._seconds_per_token
        self._seconds_per_token = now if before == math.inf else (before + now) / 2

    def chunk(self, *, decoding: bool) -> int:
        """The most tokens of the next chunk.

        While rows are decoding, the largest size that should take no longer than `pause_seconds`;
        the smallest if all take longer, and before the first measurement.
        """
        chunks, pause = self._limits.chunks, self._limits.pause_seconds
        if not decoding:
            return chunks[-1]
        quick = [chunk for chunk in chunks if chunk * self._seconds_per_token <= pause]
        return max(quick, default=chunks[0])


class Prefill:
    """One request's prompt and the one-row cache it goes into."""

    def __init__(self, target: Target, request: Request, limits: Limits) -> None:
        request.begin()
        length, session = len(request.ids), request.session
        self.request = request
        self._target = target
        reused = session.resume(request.ids) if session else None
        if reused:
            self.cache = reused.cache
            request.stats.reused_tokens = reused.length
        else:
            self.cache = KVCache.empty(
                target.config,
                1,
                capacity=capacity_for(length),
                most=limits.chunks[-1] if session else min(limits.chunks[-1], length),
                dtype=target.dtype,
            )
        self.hidden: mx.array  # [1, 1, H] of the last token so far
        self._left = request.ids[request.stats.reused_tokens :]

    @property
    def finished(self) -> bool:
        """Is the whole prompt in the cache?"""
        return not self._left

    def hand_back(self) -> None:
        """Leave what there is of it to the request's session, where it has one."""
        if self.request.session:
            done = len(self.request.ids) - len(self._left)
            self.request.session.keep(self.cache, self.request.ids[:done])

    def advance(self, most: int) -> int:
        """Run up to `most` further tokens, and wait for them; returns how many they were."""
        self.cache.grow(capacity_for(len(self.request.ids)))
        chunk, self._left = self._left[:most], self._left[most:]
        self.hidden = prefill(self._target, self.cache, mx.array([chunk]))
        # One chunk's activations at a time.
        mx.eval(self.hidden, self.cache.keys, self.cache.values)
        return len(chunk)
