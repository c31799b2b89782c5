"""Reading prompts into a cache pass by pass: which of them together, and how much at a time.

Knows nothing of batches or of how the queue is kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import mlx.core as mx

from mlx_gemma_mtp.decode.round import prefill
from mlx_gemma_mtp.engine.exactness import Exactness
from mlx_gemma_mtp.engine.request import Request
from mlx_gemma_mtp.memory import Limits
from mlx_gemma_mtp.model.cache import KVCache, capacity_for
from mlx_gemma_mtp.model.target import Target


class Pace:
    """How long prefill takes on this machine, so how much of it fits into a pause."""

    def __init__(self, limits: Limits, *, experts: bool = False) -> None:
        """experts: the model has them."""
        self._limits = limits
        self._experts = experts
        self._seconds_per_token = math.inf  # a running mean; infinite until measured

    @property
    def known(self) -> bool:
        """True once a pass was measured."""
        return self._seconds_per_token < math.inf

    def measure(self, num_tokens: int, seconds: float) -> None:
        """Record the duration of one pass. A short one only shows what a token takes at most."""
        now, before = seconds / num_tokens, self._seconds_per_token
        if num_tokens < self._limits.chunks[0] or not self.known:
            self._seconds_per_token = min(before, now)
        else:
            self._seconds_per_token = (before + now) / 2

    def chunk(self, pause: float = math.inf, *, most: float = math.inf) -> int:
        """The largest chunk that should take no longer than `pause` seconds, and is `most` or less.

        The smallest if all take longer or nothing was measured.
        """
        chunks = [chunk for chunk in self._limits.chunks if chunk <= most]
        quick = [chunk for chunk in chunks if chunk * self._seconds_per_token <= pause]
        return max(quick, default=self._limits.chunks[0])

    def lone_chunk(self, seconds: float) -> int:
        """The same while no row decodes, so that no request that comes next waits much longer.

        At least a decoding_chunk if nothing was measured, and for experts: each pass reads their
        weights again, and 512 tokens cost 8 to 30% more than 2,048 (Apple M4 to M5).
        """
        chunk, limits = self.chunk(seconds), self._limits
        if self._experts or not self.known:
            chunk = max(chunk, self.chunk(math.inf, most=limits.decoding_chunk))
        return chunk


def together(
    first: Request, others: Iterable[Request], most: int, exactness: Exactness
) -> list[Request]:
    """Return the first request and those of the others that one prefill reads with it.

    Those with the same prompt share its row. Different ones must fit into a pass of `most` tokens
    whole; padding takes next to no time, but memory: with it they must fit into the largest chunk.
    A session brings a cache of its own, so its prompt is read alone.
    """
    if first.session:
        return [first]
    group, prompts = [first], [first.ids]
    for request in others:
        if request.session:
            continue
        if request.ids not in prompts:
            lengths = [len(ids) for ids in (*prompts, request.ids)]
            positions = len(lengths) * max(lengths)
            held = positions <= exactness.limits.chunks[-1]
            if exactness.alone or sum(lengths) > most or not held:
                continue
            prompts.append(request.ids)
        group.append(request)
    return group


class Prefill:
    """The prompts of some requests, and the cache with a row for each that they are read into.

    Several are read in one pass, each from its start; one alone in as many as it takes. Requests
    with the same prompt share a row.
    """

    def __init__(self, target: Target, requests: Sequence[Request], exactness: Exactness) -> None:
        self.requests: list[Request] = []
        self.rows: list[int] = []  # of the cache, one for each request
        self.cache: KVCache  # from the first pass on
        self.hidden: mx.array  # [B, 1, H] of the last token of each row so far
        self._target = target
        self._exactness = exactness
        self._limits = exactness.limits
        self._prompts: list[list[int]] = []
        for request in requests:
            if request.ids not in self._prompts:
                self._prompts.append(request.ids)
        self._longest = max(map(len, self._prompts))
        self._done: int | None = None  # tokens of each prompt that are in the cache
        self._exact = exactness.prompts and len(self._prompts) == 1
        for request in requests:
            self.share(request)

    @property
    def order(self) -> tuple[int, int]:
        """Of its first request that has not ended."""
        return min(request.order for request in self.requests if not request.ended)

    @property
    def queued(self) -> float:
        """When its first request came."""
        return min(request.queued for request in self.requests)

    @property
    def num_rows(self) -> int:
        """How many rows its requests need."""
        return sum(not request.ended for request in self.requests)

    @property
    def unread(self) -> int:
        """Tokens of each prompt that are left to read, or an estimate before the first pass."""
        return self.requests[0].unread

    def takes(self, request: Request) -> bool:
        """True if this request can share its row: it has the same prompt."""
        alone = len(self._prompts) == 1 and not self.requests[0].session
        return alone and not request.session and request.ids == self._prompts[0]

    def share(self, request: Request) -> None:
        """Start a request with one of its prompts."""
        row = self._prompts.index(request.ids)
        if row in self.rows:
            request.stats.reused_tokens = len(request.ids)
            request.unread = self.unread
        self.requests.append(request)
        self.rows.append(row)
        request.start(exact=self._exact)

    @property
    def finished(self) -> bool:
        """True if all prompts are in the cache."""
        return self._done == self._longest

    def advance(self, most: int) -> int:
        """Run up to `most` more tokens and wait for them; returns how many were computed.

        Padding counts only for a single prompt: see `Target.read`.

        Several prompts are read whole, whatever `most` has become since they were put together.
        """
        start = self._open() if self._done is None else self._done
        width = left = self._longest - start
        if len(self._prompts) == 1:
            width = self._exactness.padded(min(left, most))
            self._exact &= self._exactness.follows(width, left)
            for request in self.requests:
                request.exact = self._exact
        chunks = [ids[start : start + width] for ids in self._prompts]
        lengths = [len(chunk) for chunk in chunks]
        padded = [[*chunk, *[0] * (width - len(chunk))] for chunk in chunks]
        tokens, least = mx.array(padded), self._exactness.least
        hidden = prefill(self._target, self.cache, tokens, start, lengths, least)
        # Wait, so that the activations of only one pass are in memory.
        mx.eval(hidden, self.cache.buffers)
        self.hidden, self._done = hidden, start + min(width, left)
        for request in self.requests:
            request.unread = self._longest - self._done
        session = self.requests[0].session
        if self.finished and session:
            session.remember_prompt(self.cache, self.requests[0].ids, padding=width - left)
        return width if len(chunks) == 1 else sum(lengths)

    def ends(self) -> tuple[KVCache, mx.array]:
        """Return the buffers, with the offset of each request, and its hidden state [B, 1, H]."""
        rows, buffers = mx.array(self.rows), self.cache.buffers
        buffers = buffers._replace(offset=self.cache.offset[rows])
        return KVCache(self._target.config, buffers), self.hidden[rows]

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
            held = self._longest if len(self._prompts) > 1 else min(self._longest, window)
            most = held + padding - window
        self.cache = KVCache.empty(
            self._target.config,
            len(self._prompts),
            capacity=capacity,
            most=most,
            dtype=self._target.dtype,
            slot_step=step,
        )
        return 0
