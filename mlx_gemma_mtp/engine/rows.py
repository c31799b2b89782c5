"""The rows of a batch: their requests, and what the device holds for them.

Grows and shrinks with the requests. Knows nothing of rounds, of how many drafts they have, or of
the requests that wait.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import mlx.core as mx

from mlx_gemma_mtp.decode.control import counts_of_prompts, has_penalties, of_rows
from mlx_gemma_mtp.decode.round import Newest
from mlx_gemma_mtp.decode.sampling import RowSettings, row_settings
from mlx_gemma_mtp.engine.budget import Budget
from mlx_gemma_mtp.engine.prefill import Prefill
from mlx_gemma_mtp.engine.prefixes import Prefixes
from mlx_gemma_mtp.engine.request import Request
from mlx_gemma_mtp.engine.row import Row
from mlx_gemma_mtp.errors import NotEnoughMemoryError, is_lack_of_memory
from mlx_gemma_mtp.memory import Limits
from mlx_gemma_mtp.model.cache import KVCache, capacity_for
from mlx_gemma_mtp.model.target import Target

SIZES = (1, 2, 4, 8)


class Rows:
    """Up to max_batch rows, some of them free; none at first.

    each: None for a free one. cache, newest, settings: what a round takes.
    """

    def __init__(
        self,
        target: Target,
        suppressed: Sequence[int],
        max_batch: int,
        limits: Limits,
        budget: Budget,
        prefixes: Prefixes,
    ) -> None:
        self._config, self._dtype = target.config, target.dtype
        self._limits = limits
        self._budget = budget
        self._prefixes = prefixes
        self._sizes = sorted({min(size, max_batch) for size in SIZES})
        self._suppress = mx.array(list(suppressed), mx.int32) if suppressed else None
        self._spare_rounds: int  # in succession that would have fitted into the next smaller size
        self.each: list[Row | None]
        self.cache: KVCache
        self.newest: Newest
        self.clear()

    @property
    def active(self) -> list[Row]:
        """The rows of requests that have not ended."""
        return [row for row in self.each if row and not row.request.ended]

    @property
    def num_free(self) -> int:
        """How many more requests may have a row."""
        return self._sizes[-1] - len(self.active)

    @property
    def constrained(self) -> bool:
        """True if the tokens of a row must be read before the next ones are limited."""
        return any(row.request.constrained for row in self.active)

    @property
    def longest(self) -> int:
        """The most positions that any row may have committed."""
        return max((row.length for row in self.each if row), default=0)

    def clear(self) -> None:
        """Drop every row and return the memory."""
        self._start(0, self.capacity(1))

    def capacity(self, length: int) -> int:
        """The slots of a full-attention layer for rows of this length."""
        return capacity_for(length, self._limits.slot_step)

    def settings_of(self, requests: Sequence[Request]) -> RowSettings:
        """The settings of these requests, in a batch of their own."""
        params = [request.params for request in requests]
        return row_settings(params, self._suppress, self._config.vocab_size)

    def counts_of(self, requests: Sequence[Request]) -> mx.array | None:
        """The counts of these requests' prompts, see `control`; None without penalties."""
        if not any(has_penalties(request.params) for request in requests):
            return None
        prompts = [request.ids for request in requests]
        return counts_of_prompts(prompts, self._config.vocab_size)

    def join(self, prefill: Prefill, newest: Newest, make: Callable[[Request], Row]) -> None:
        """Give rows to the requests of a prefill that have not ended.

        newest: the first token of each. make: makes a row for a request. If memory runs out, the
        last requests fail. If this fails, the other rows are as they were.
        """
        joining = [n for n, request in enumerate(prefill.requests) if not request.ended]
        joining = self._make_room(joining, prefill.requests)
        free = [index for index, row in enumerate(self.each) if row is None]
        places = list(zip(free, joining, strict=False))
        rows = [(index, prefill.rows[n]) for index, n in places]
        lengths = [len(prefill.requests[n].ids) for _, n in places]
        offset = prefill.cache.offset
        moves = [(*row, length) for row, length in zip(rows, lengths, strict=True)]
        self.cache.take_over(prefill.cache, moves)
        self.cache.offset = _put(self.cache.offset, offset, rows)
        (token, hidden, counts), size = self.newest, self._config.vocab_size
        if counts is not None or newest.counts is not None:
            counts = _put(_counts(self.newest, size), _counts(newest, size), places)
        self.newest = Newest(
            _put(token, newest.token, places), _put(hidden, newest.hidden, places), counts
        )
        for index, n in places:
            self.each[index] = make(prefill.requests[n])
        self._lay_out()

    def _make_room(self, joining: list[int], requests: Sequence[Request]) -> list[int]:
        """Have free rows for these requests, all at once; those that are left if memory ran out."""
        while True:
            longest = max(len(requests[n].ids) for n in joining)
            num_rows = len(joining) + sum(row is not None for row in self.each)
            try:
                if num_rows > len(self.each):
                    size = next(size for size in self._sizes if size >= num_rows)
                    self._with_room(partial(self._resize, size, longest))
                self._with_room(partial(self.cache.grow, self.capacity(longest)))
            except (RuntimeError, MemoryError) as error:
                if len(joining) == 1:
                    raise
                requests[joining[-1]].fail(error)
                joining = joining[:-1]
            else:
                return joining

    def free_ended(self) -> None:
        """Free the rows of requests that have ended.

        Their sessions get a copy of the cache. Without a session it becomes a prefix.
        """
        ended = [(index, row) for index, row in enumerate(self.each) if row and row.request.ended]
        for index, row in ended:
            self.each[index], request = None, row.request
            # The keys and values of the newest token are not computed yet.
            held, prompt = [*request.ids, *request.tokens[:-1]], len(request.ids)
            if not request.session:
                exact = request.exact
                self._prefixes.keep(self.cache, index, held, len(held), prompt, exact=exact)
            else:
                try:
                    request.session._copy_back(self.cache, index, held)
                except (RuntimeError, MemoryError):  # no room: the next turn starts from scratch
                    request.session.close()
        if ended:
            self._lay_out()

    def grow(self, capacity: int) -> bool:
        """Grow the cache. If memory runs out, fail the longest request and return False."""
        try:
            # Drafts beyond the end of an output are counted by the budget.
            context = max(1, self.longest - self._limits.most_beyond)
            self._budget.check(context, len(self.each))
            self._prefixes.give_way(context, len(self.each))
            self._with_room(partial(self.cache.grow, capacity))
        except (RuntimeError, MemoryError, NotEnoughMemoryError) as error:
            requests = [row.request for row in self.active]
            longest = max(requests, key=lambda request: len(request.ids) + len(request.tokens))
            longest.fail(error)
            return False
        return True

    def _with_room(self, action: Callable[[], object]) -> None:
        """Do something that takes memory; if there is not enough, without the prefixes."""
        try:
            action()
        except (RuntimeError, MemoryError) as error:
            if not is_lack_of_memory(error) or not self._prefixes.clear():
                raise
            action()

    def may_shrink(self) -> bool:
        """True if fewer rows have been enough for some rounds; to be asked once a round."""
        spare = self.size_for(len(self.active)) < len(self.each)
        self._spare_rounds = self._spare_rounds + 1 if spare else 0
        return self._spare_rounds > self._limits.shrink_after

    def shrink(self) -> None:
        """Have as few rows as the requests need."""
        self._resize(self.size_for(len(self.active)))

    def size_for(self, count: int) -> int:
        """Return how many rows there are for this many requests."""
        return next((size for size in self._sizes if size >= count), self._sizes[-1])

    def _start(self, size: int, capacity: int) -> None:
        """Start over with this many free rows."""
        config, dtype, limits = self._config, self._dtype, self._limits
        most, step = limits.most_beyond, limits.slot_step
        self.each = [None] * size
        self._spare_rounds = 0
        self.cache = KVCache.empty(
            config, size, capacity=capacity, most=most, dtype=dtype, slot_step=step
        )
        token, hidden = mx.zeros((size,), mx.int32), mx.zeros((size, 1, config.hidden_size), dtype)
        self.newest = Newest(token, hidden)
        self._lay_out()

    def _resize(self, size: int, length: int = 0) -> None:
        """Change the number of rows, with room for one of this length. No round is in flight."""
        kept = [index for index, row in enumerate(self.each) if row]
        longest = max(length, self.longest)
        capacity = self.capacity(longest + self._limits.max_draft_tokens + 1)
        if not kept:
            self._start(size, capacity)
            return
        sources = [*kept, *[None] * (size - len(kept))]
        self.cache.resize(sources, capacity)
        index = mx.array([source or 0 for source in sources])
        token, hidden, counts = self.newest
        self.newest = Newest(token[index], hidden[index], of_rows(counts, index))
        self.each = [None if source is None else self.each[source] for source in sources]
        self._lay_out()

    def _lay_out(self) -> None:
        """Lay out the settings of the rows for the device."""
        params = [row.request.params if row else None for row in self.each]
        self.settings = row_settings(params, self._suppress, self._config.vocab_size)
        if self.settings.control is None or self.settings.control.penalties is None:
            self.newest = self.newest._replace(counts=None)


def _counts(newest: Newest, vocab_size: int) -> mx.array:
    """The counts [B, V] of rows; zeros if none of them has penalties."""
    shape = len(newest.token), vocab_size
    return mx.zeros(shape, mx.int32) if newest.counts is None else newest.counts


def _put(array: mx.array, values: mx.array, moves: Sequence[tuple[int, int]]) -> mx.array:
    """array [B, ...] with rows replaced by rows of values. moves: a row here, the row there.

    The old array stays as it was.
    """
    order = list(range(len(array)))
    for index, source in moves:
        order[index] = len(array) + source
    return mx.concatenate([array, values.astype(array.dtype)])[mx.array(order)]
