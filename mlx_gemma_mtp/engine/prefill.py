"""Reading prompts into a cache pass by pass: which of them together, and how much at a time.

Knows nothing of batches or of how the queue is kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import islice

import mlx.core as mx

from mlx_gemma_mtp.decode.round import prefill
from mlx_gemma_mtp.engine.exactness import Exactness
from mlx_gemma_mtp.engine.request import Request
from mlx_gemma_mtp.memory import Limits
from mlx_gemma_mtp.model.cache import KVCache, capacity_for
from mlx_gemma_mtp.model.target import Target

MOST_COMPUTED = 4 / 3  # of what prompts take alone: at most a quarter of a pass is padding


class Pace:
    """How long prefill takes on this machine, so how much of it fits into a pause."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._seconds_per_token = math.inf  # a running mean; infinite until measured

    def measure(self, num_tokens: int, seconds: float) -> None:
        """Record the duration of one pass."""
        if num_tokens < self._limits.chunks[0]:
            return  # each token of a short pass takes longer
        now, before = seconds / num_tokens, self._seconds_per_token
        self._seconds_per_token = now if before == math.inf else (before + now) / 2

    def chunk(self, pause: float = math.inf, *, most: float = math.inf) -> int:
        """The largest chunk that should take no longer than `pause` seconds, and is `most` or less.

        The smallest if all take longer or nothing was measured.
        """
        chunks = [chunk for chunk in self._limits.chunks if chunk <= most]
        quick = [chunk for chunk in chunks if chunk * self._seconds_per_token <= pause]
        return max(quick, default=self._limits.chunks[0])


def num_together(waiting: Iterable[Request], num_rows: int, most: int, exactness: Exactness) -> int:
    """How many of these requests, from the first on, one pass of `most` tokens reads; at least 1.

    All of them fit whole, and little of the pass is padding. A session brings a cache of its own,
    so its prompt is read alone. A short prompt counts for the smallest chunk, which takes as long.
    """
    count = longest = alone = 0
    for request in islice(waiting, 1 if exactness.alone else num_rows):
        longest = max(longest, len(request.ids))
        alone += max(len(request.ids), exactness.limits.chunks[0])
        computed = (count + 1) * longest
        if request.session or computed > min(most, MOST_COMPUTED * alone):
            break
        count += 1
    return max(count, 1)


class Prefill:
    """The prompts of some requests, and the cache with a row for each that they are read into.

    Several are read in one pass, each from its start; one alone in as many as it takes.
    """

    def __init__(self, target: Target, requests: Sequence[Request], exactness: Exactness) -> None:
        for request in requests:
            request.start(exact=exactness.prompts and len(requests) == 1)
        self.requests = requests
        self.cache: KVCache  # from the first pass on
        self.hidden: mx.array  # [B, 1, H] of the last token of each so far
        self._target = target
        self._exactness = exactness
        self._limits = exactness.limits
        self._longest = max(len(request.ids) for request in requests)
        self._done: int | None = None  # tokens of each prompt that are in the cache

    @property
    def finished(self) -> bool:
        """True if all prompts are in the cache."""
        return self._done == self._longest

    def advance(self, most: int) -> int:
        """Run up to `most` more tokens and wait for them; returns how many were computed.

        Several prompts are read whole, whatever `most` has become since they were put together.
        """
        start = self._open() if self._done is None else self._done
        width = left = self._longest - start
        if len(self.requests) == 1:
            width = self._exactness.padded(min(left, most))
            self.requests[0].exact &= self._exactness.follows(width, left)
        chunks = [request.ids[start : start + width] for request in self.requests]
        lengths = [len(chunk) for chunk in chunks]
        padded = [[*chunk, *[0] * (width - len(chunk))] for chunk in chunks]
        tokens, least = mx.array(padded), self._exactness.least
        hidden = prefill(self._target, self.cache, tokens, start, lengths, least)
        # Wait, so that the activations of only one pass are in memory.
        mx.eval(hidden, self.cache.buffers)
        self.hidden, self._done = hidden, start + min(width, left)
        session = self.requests[0].session
        if self.finished and session:
            session.remember_prompt(self.cache, self.requests[0].ids, padding=width - left)
        return len(chunks) * width

    def stop(self) -> None:
        """Return the cache to the request's session, if it has one."""
        request = self.requests[0]
        if request.session:
            request.session.take_back(self.cache, request.ids[: self._done])

    def _open(self) -> int:
        """Make the cache, or borrow that of a session; returns how many tokens are in it."""
        first, window = self.requests[0], self._target.config.sliding_window
        step, padding = self._limits.slot_step, self._exactness.most_padding
        capacity = capacity_for(self._longest + padding, step)
        lent = first.session.lend(first.ids) if first.session else None
        if lent:
            self.cache, first.stats.reused_tokens = lent
            self.cache.grow(capacity)
            return first.stats.reused_tokens
        if first.session:
            most = self._limits.rollback
        else:  # no round runs here; sliding layers hold the padding as well
            held = self._longest if len(self.requests) > 1 else min(self._longest, window)
            most = held + padding - window
        self.cache = KVCache.empty(
            self._target.config,
            len(self.requests),
            capacity=capacity,
            most=most,
            dtype=self._target.dtype,
            slot_step=step,
        )
        return 0
