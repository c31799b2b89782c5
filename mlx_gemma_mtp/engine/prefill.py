"""Reading a prompt into the cache chunk by chunk, and how large a chunk may be.

Knows nothing of batches or of the requests that wait.
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
    """How long prefill takes on this machine, so how much of it fits between two rounds."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._seconds_per_token = math.inf  # a running mean; infinite until measured

    def measure(self, num_tokens: int, seconds: float) -> None:
        """Record the duration of one chunk."""
        if num_tokens < self._limits.chunks[0]:
            return  # each token of a short chunk takes longer
        now, before = seconds / num_tokens, self._seconds_per_token
        self._seconds_per_token = now if before == math.inf else (before + now) / 2

    def chunk(self, *, decoding: bool) -> int:
        """The most tokens of the next chunk.

        While rows are decoding, the largest size that should take no longer than `pause_seconds`;
        the smallest if all take longer or nothing was measured.
        """
        chunks, pause = self._limits.chunks, self._limits.pause_seconds
        if not decoding:
            return chunks[-1]
        quick = [chunk for chunk in chunks if chunk * self._seconds_per_token <= pause]
        return max(quick, default=chunks[0])


class Prefill:
    """One request's prompt, and the one-row cache it is read into."""

    def __init__(self, target: Target, request: Request, limits: Limits) -> None:
        request.start()
        self.request = request
        self._target = target
        self._capacity = capacity_for(len(request.ids), limits.slot_step)
        session, largest, step = request.session, limits.chunks[-1], limits.slot_step
        lent = session.lend(request.ids) if session else None
        if lent:
            self.cache, request.stats.reused_tokens = lent
        else:
            config, dtype, capacity = target.config, target.dtype, self._capacity
            most = largest if session else min(largest, len(request.ids))
            self.cache = KVCache.empty(
                config, 1, capacity=capacity, most=most, dtype=dtype, slot_step=step
            )
        self.hidden: mx.array  # [1, 1, H] of the last token so far
        self._left = request.ids[request.stats.reused_tokens :]

    @property
    def finished(self) -> bool:
        """True if the whole prompt is in the cache."""
        return not self._left

    def advance(self, most: int) -> int:
        """Run up to `most` more tokens and wait for them; returns how many they were."""
        self.cache.grow(self._capacity)
        chunk, self._left = self._left[:most], self._left[most:]
        self.hidden = prefill(self._target, self.cache, mx.array([chunk]))
        # Wait, so that the activations of only one chunk are in memory.
        mx.eval(self.hidden, self.cache.keys, self.cache.values)
        if self.finished and self.request.session:
            self.request.session.remember_prompt(self.cache, self.request.ids)
        return len(chunk)

    def stop(self) -> None:
        """Return the cache to the request's session, if it has one."""
        if self.request.session:
            done = len(self.request.ids) - len(self._left)
            self.request.session.take_back(self.cache, self.request.ids[:done])
