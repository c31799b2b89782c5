"""Reading prompts into a cache pass by pass, and which of them together.

Knows nothing of batches or of how the queue is kept.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable, Sequence

import mlx.core as mx

from mlx_gemma_mtp.decode.round import prefill
from mlx_gemma_mtp.engine.exactness import Exactness
from mlx_gemma_mtp.engine.prefixes import Prefixes
from mlx_gemma_mtp.engine.request import Request
from mlx_gemma_mtp.model.cache import KVCache, capacity_for
from mlx_gemma_mtp.model.target import Target


def together(
    first: Request,
    others: Iterable[Request],
    most: int,
    exactness: Exactness,
    prefixes: Prefixes,
) -> list[Request]:
    """Return the first request and those of the others that one prefill reads with it.

    Those with the same prompt share its row. Different ones must fit into a pass of `most` tokens
    whole; padding takes next to no time, but memory: with it they must fit into the largest chunk.
    They continue from the same prefix, and have no longer one in common that is worth a wait.
    A session brings a cache of its own, so its prompt is read alone.
    """
    if first.session:
        return [first]
    group, prompts, prefix = [first], [first.ids], prefixes.find(first.ids)
    start = 0 if prefix is None else prefix.end
    for request in others:
        if request.session:
            continue
        ids = request.ids
        if ids not in prompts:
            lengths = [len(one) for one in (*prompts, ids)]
            held = len(lengths) * max(lengths) <= exactness.limits.chunks[-1]
            new = sum(lengths) - start * len(lengths)
            if exactness.alone or new > most or not held or prefixes.find(ids) is not prefix:
                continue
            if any(prefixes.shared(ids, one) >= start + prefixes.least for one in prompts):
                continue
            prompts.append(ids)
        group.append(request)
    return group


class Prefill:
    """The prompts of some requests, and the cache with a row for each that they are read into.

    Several are read in one pass, each from its start or from the same prefix; one alone in as many
    as it takes, some of which end where a prefix of it is kept. Requests with the same prompt share
    a row.
    """

    def __init__(
        self,
        target: Target,
        requests: Sequence[Request],
        exactness: Exactness,
        prefixes: Prefixes,
    ) -> None:
        self.requests: list[Request] = []
        self.rows: list[int] = []  # of the cache, one for each request
        self.cache: KVCache  # from the first pass on
        self.hidden: mx.array  # [B, 1, H] of the last token of each row so far
        self._target = target
        self._exactness = exactness
        self._limits = exactness.limits
        self._prefixes = prefixes
        self._prompts: list[list[int]] = []
        for request in requests:
            if request.ids not in self._prompts:
                self._prompts.append(request.ids)
        self._longest = max(map(len, self._prompts))
        first = requests[0]
        prefix = prefixes.find(first.ids)
        lent = first.session._reusable(first.ids) if first.session else 0
        self._prefix = prefix if prefix is not None and prefix.end > lent else None
        self._start = self._done = lent if self._prefix is None else self._prefix.end
        # Of each prompt, where it is kept. A session holds most of its prompts itself.
        shown = [] if lent and self._prefix is None else self._prompts
        most = 1 if first.session else None
        self._cuts = [prefixes.cuts(ids, self._start)[:most] for ids in shown]
        self._opened = False
        self._exact = exactness.prompts and len(self._prompts) == 1
        if self._prefix is not None:
            self._exact &= self._prefix.exact and exactness.continues(self._start)
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
        """Tokens of each prompt that are left to read."""
        return self._longest - self._done

    def takes(self, request: Request) -> bool:
        """True if this request can share its row: it has the same prompt."""
        alone = len(self._prompts) == 1 and not self.requests[0].session
        return alone and not request.session and request.ids == self._prompts[0]

    def share(self, request: Request) -> None:
        """Start a request with one of its prompts."""
        row = self._prompts.index(request.ids)
        shares = row in self.rows
        request.stats.reused_tokens = len(request.ids) if shares else self._start
        request.unread = self.unread
        self.requests.append(request)
        self.rows.append(row)
        request.start(exact=self._exact)

    def gives(self, request: Request) -> int:
        """Return how many tokens of another prompt are kept here soon, if it can wait for them.

        0 if not, or if it is not worth it.
        """
        if not self._prefixes or len(self._cuts) != 1 or self.takes(request):
            return 0
        prompt, done, least = self._prompts[0], self._done, self._prefixes.least
        cuts, worth = [cut for cut in self._cuts[0] if cut > done], request.held + least
        first = min([done + least, *cuts])
        if request.ids[done:first] != prompt[done:first]:  # quick, and most share no more
            return 0
        most = self._prefixes.shared(request.ids, prompt)
        found = max((cut for cut in cuts if cut <= most), default=0)
        if most >= max(found + least, done + least, worth) and not self.requests[0].session:
            insort(self._cuts[0], most)
            found = most
        return found if found >= worth else 0

    def has(self, num_tokens: int) -> bool:
        """True if this many tokens have been read."""
        return self._done >= num_tokens

    @property
    def finished(self) -> bool:
        """True if all prompts are in the cache."""
        return self._done == self._longest

    def advance(self, most: int) -> int:
        """Run up to `most` more tokens and wait for them; returns how many were computed.

        Padding counts only for a single prompt: see `Target.read`.

        Several prompts are read whole, whatever `most` has become since they were put together.
        """
        self.open()
        start, left = self._done, self._longest - self._done
        width, end = left, self._longest
        if len(self._prompts) == 1:
            width, end = self._next_pass(most)
            self._exact &= self._exactness.follows(width, left)
            for request in self.requests:
                request.exact = self._exact
        chunks = [ids[start:end] for ids in self._prompts]
        lengths = [len(chunk) for chunk in chunks]
        padded = [[*chunk, *[0] * (width - len(chunk))] for chunk in chunks]
        tokens, least = mx.array(padded), self._exactness.least
        hidden = prefill(self._target, self.cache, tokens, start, lengths, least)
        # Wait, so that the activations of only one pass are in memory.
        mx.eval(hidden, self.cache.buffers)
        self.hidden, self._done = hidden, end
        for request in self.requests:
            request.unread = self.unread
        for row, cuts in enumerate(self._cuts):
            for cut in cuts:
                if start < cut <= end:
                    self._keep(row, cut)
        session = self.requests[0].session
        if self.finished and session:
            session._remember_prompt(self.cache, self.requests[0].ids, padding=width - left)
        return width if len(chunks) == 1 else sum(lengths)

    def ends(self) -> tuple[KVCache, mx.array]:
        """Return the buffers, with the offset of each request, and its hidden state [B, 1, H]."""
        rows, buffers = mx.array(self.rows), self.cache.buffers
        buffers = buffers._replace(offset=self.cache.offset[rows])
        return KVCache(self._target.config, buffers), self.hidden[rows]

    def stop(self) -> None:
        """Return the cache to the request's session, or keep what was read of a single prompt."""
        request = self.requests[0]
        if request.session:
            request.session._take_back(self.cache, request.ids[: self._done])
        elif len(self._prompts) == 1:
            self._keep(0, self._done)

    def open(self) -> None:
        """Make the cache, with the prefix, or borrow that of a session; once."""
        if self._opened:
            return
        self._opened = True
        first, window = self.requests[0], self._target.config.sliding_window
        step, padding = self._limits.slot_step, self._exactness.most_padding
        capacity = capacity_for(self._longest + padding, step)
        if first.session:
            lent = first.session._lend(first.ids) if self._prefix is None else None
            if lent:
                self.cache, _ = lent
                self.cache.grow(capacity)
                return
            first.session._start_from(self._start)
            most = self._limits.rollback
        else:  # no round runs here; sliding layers hold the padding as well
            held = self._longest if len(self._prompts) > 1 else min(self._longest, window)
            most = held + padding + self._prefixes.spare - window
        self.cache = KVCache.empty(
            self._target.config,
            len(self._prompts),
            capacity=capacity,
            most=most,
            dtype=self._target.dtype,
            slot_step=step,
        )
        if self._prefix is not None:
            self._prefixes.lend(self._prefix, self.cache, len(self.requests))
            self._prefix = None

    def _next_pass(self, most: int) -> tuple[int, int]:
        """Return how many tokens the next pass over a single prompt computes, and where it ends.

        That is where a prefix must be kept, if a longer pass would overwrite the window before.
        """
        start, end = self._done, self._longest
        width = self._exactness.padded(min(end - start, most))
        ring = self.cache.capacity("sliding_attention")
        for cut in self._cuts[0] if self._cuts else []:
            kept_from = max(0, cut - self._target.config.sliding_window)
            if start < cut < min(start + width, end) and start + width - ring > kept_from:
                width, end = self._exactness.padded(min(cut - start, most)), cut
                break
        return width, min(start + width, end)

    def _keep(self, row: int, length: int) -> None:
        ids = self._prompts[row]
        self._prefixes.keep(self.cache, row, ids, length, len(ids), exact=self._exact)
