"""The rows that decode together: their cache, their requests, and the rounds they play.

Grows and shrinks with the requests in it. Knows requests and the device; knows nothing of threads,
of prompts as text, or of the requests that wait.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import mlx.core as mx

from mlx_gemma_mtp.command_buffers import rounds_may_overlap
from mlx_gemma_mtp.decode.acceptance import Acceptance
from mlx_gemma_mtp.decode.depth import Depth
from mlx_gemma_mtp.decode.round import Newest, Round, RoundPlayer, first_token
from mlx_gemma_mtp.decode.sampling import row_settings
from mlx_gemma_mtp.engine.prefill import Prefill
from mlx_gemma_mtp.engine.request import Request
from mlx_gemma_mtp.memory import Limits
from mlx_gemma_mtp.model.cache import KVCache, capacity_for
from mlx_gemma_mtp.model.target import Target

SIZES = (1, 2, 4, 8)


@dataclass(eq=False)
class Row:
    """A request that is decoding, and its place in the batch."""

    request: Request
    acceptance: Acceptance
    length: int  # the most positions it may have committed


class Guess(NamedTuple):
    """The first half of a round: its drafts, dispatched before the round before them is read.

    follows: that round was in flight, so the device did not wait. compiled_from: when this half was
    dispatched, if it is the first of its shape.
    """

    drafts: mx.array  # int32 [B, K]
    follows: bool
    compiled_from: float | None

    @property
    def num_draft_tokens(self) -> int:
        """K."""
        return self.drafts.shape[1]


class Flight(NamedTuple):
    """A round whose both halves are dispatched, and that is not read yet."""

    round: Round
    rows: list[Row | None]
    guess: Guess


class Verify(NamedTuple):
    """The second half of a round, not dispatched yet, and the cache as it will be then."""

    flight: Flight
    cache: KVCache


class Batch:
    """Up to max_batch requests that decode together; none at first."""

    def __init__(
        self,
        target: Target,
        player: RoundPlayer,
        depth: Depth,
        suppressed: Sequence[int],
        max_batch: int,
        limits: Limits,
    ) -> None:
        self.target = target
        self._player = player
        self._depth = depth
        self.limits = limits
        self._ahead = limits.overlap and rounds_may_overlap(target.config)
        self._sizes = sorted({min(size, max_batch) for size in SIZES})
        self._suppress = mx.array(list(suppressed), mx.int32) if suppressed else None
        self._shapes: set[tuple[int, int, int]] = set()  # a round is compiled for each
        self._landed_at = 0.0
        self._num_drafts = 0  # of the last round
        self._same_drafts: bool  # the next round takes the same number
        self._full = False  # the next round must choose on the full path: see `verify`
        self._spare_rounds: int  # in succession that would have fitted into the next smaller size
        self._flight: Flight | None
        self._rows: list[Row | None]  # None for a free one
        self._cache: KVCache
        self._newest: Newest
        self.clear()

    @property
    def active(self) -> list[Request]:
        """The requests that have a row and have not ended."""
        return [row.request for row in self._rows if row and not row.request.ended]

    @property
    def num_free(self) -> int:
        """How many more requests may have a row."""
        return self._sizes[-1] - len(self.active)

    def clear(self) -> None:
        """Drop every row and return the memory."""
        self._start(0, self._capacity(1))

    def fail(self, error: BaseException) -> None:
        """End all requests with this error and drop their rows."""
        for request in self.active:
            request.fail(error)
        self.clear()

    def add(self, prefill: Prefill) -> None:
        """Give requests their first token, and rows to those that continue; prefill is finished.

        No round may be in flight. If memory runs out, the last requests fail. If this fails, the
        other rows are as they were.
        """
        assert self._flight is None
        settings = row_settings([request.params for request in prefill.requests], self._suppress)
        newest = first_token(self.target, prefill.cache, prefill.hidden, settings)
        tokens = cast(list[int], newest.token.tolist())
        for request, token in zip(prefill.requests, tokens, strict=True):
            request.take([token])
        self.free_ended()
        joining = [n for n, request in enumerate(prefill.requests) if not request.ended]
        if not joining:
            prefill.stop()
            return
        joining = self._make_room(joining, prefill.requests)
        free = [index for index, row in enumerate(self._rows) if row is None]
        moves = [
            (index, source, len(prefill.requests[source].ids))
            for index, source in zip(free, joining, strict=False)
        ]
        offset = prefill.cache.offset
        self._cache.take_over(prefill.cache, moves)
        self._cache.offset = _put(self._cache.offset, offset, moves)
        pairs = zip(self._newest, newest, strict=True)
        self._newest = Newest(*(_put(array, values, moves) for array, values in pairs))
        for index, source, length in moves:
            request = prefill.requests[source]
            self._rows[index] = Row(request, self._depth.row(request.num_draft_tokens), length)
        self._lay_out()

    def _make_room(self, joining: list[int], requests: Sequence[Request]) -> list[int]:
        """Have free rows for these requests, all at once; those that are left if memory ran out."""
        while True:
            longest = max(len(requests[n].ids) for n in joining)
            num_rows = len(joining) + sum(row is not None for row in self._rows)
            try:
                if num_rows > len(self._rows):
                    size = next(size for size in self._sizes if size >= num_rows)
                    self._resize(size, longest)
                self._cache.grow(self._capacity(longest))
            except (RuntimeError, MemoryError) as error:
                if len(joining) == 1:
                    raise
                requests[joining[-1]].fail(error)
                joining = joining[:-1]
            else:
                return joining

    def play(self, *, settled: bool) -> None:
        """Dispatch the drafts of the next round, read the round before, then verify the drafts.

        So the device is busy with the drafts while the host reads, tokens are handed out when they
        are ready, a request that has ended costs no further pass of the target, and MLX updates
        every buffer in place, because nothing that reads it is left. Without drafts the device
        would wait for the host: that pass is dispatched before the read, if that copies no buffer.
        On an H200, reading first made plain rounds of 26B-A4B at batch 8 16% slower.
        settled: no request is about to get a row, so spare rows may go.
        """
        self.free_ended()
        if settled:
            self._shrink()
        if not self.limits.overlap:
            self.land()
        in_flight = 0 if self._flight is None else 1
        continues = any(len(r.tokens) + in_flight < r.max_tokens for r in self.active)
        guess = self._dispatch_drafts() if continues else None
        following = None if guess is None else self._lay_out_verify(guess)
        ahead = self._ahead and guess is not None and guess.num_draft_tokens == 0
        if following and ahead:
            self._dispatch_verify(following)
        self.land(guess)
        self.free_ended()  # a session gets its cache as soon as its request has ended
        if not self.active:
            self.clear()
        elif following and guess:
            if not ahead:
                following = self._lay_out_verify(guess) if self._full else following
                self._dispatch_verify(following)
            self._flight = following.flight

    def land(self, following: Guess | None = None) -> None:
        """Wait for the round in flight, if any, and give its tokens to the requests.

        following: the drafts that were dispatched after it.
        """
        if self._flight is None:
            return
        flight, self._flight = self._flight, None
        tokens = cast(list[list[int]], flight.round.tokens.tolist())
        accepted = cast(list[int], flight.round.accepted.tolist())
        now, guess = time.perf_counter(), flight.guess
        shape = len(flight.rows), guess.num_draft_tokens
        if guess.compiled_from is not None:
            self._depth.round_compiled(*shape, now - guess.compiled_from)
        # If the device is faster than the host, a landing waits for the dispatch of the next
        # drafts. The time between two landings is that of a round if the next one has as many.
        alike = following is not None and following.num_draft_tokens == guess.num_draft_tokens
        if guess.follows and alike:
            self._depth.round_took(*shape, now - self._landed_at)
        self._landed_at = now
        for index, row in enumerate(flight.rows):
            if row is None or row.request.ended:
                continue
            drafted = min(row.request.most_drafts, guess.num_draft_tokens)
            row.length -= guess.num_draft_tokens - accepted[index]
            if accepted[index] < 0:
                self._full = True
                continue
            row.acceptance.seen(drafted, accepted[index])
            row.request.take(tokens[index][: accepted[index] + 1], drafted)

    def free_ended(self) -> None:
        """Free the rows of requests that have ended; their sessions get a copy of the cache."""
        ended = [(index, row) for index, row in enumerate(self._rows) if row and row.request.ended]
        for index, row in ended:
            self._rows[index], request = None, row.request
            if request.session:
                # The keys and values of the newest token are not computed yet.
                held = [*request.ids, *request.tokens[:-1]]
                try:
                    request.session.copy_back(self._cache, index, held)
                except (RuntimeError, MemoryError):  # no room: the next turn starts from scratch
                    request.session.close()
        if ended:
            self._lay_out()

    def _dispatch_drafts(self) -> Guess | None:
        """Start the first half of a round; None if no row is left to play it."""
        drafts = self._choose_drafts()
        held = self._cache.capacity("full_attention")
        longest = max(row.length for row in self._rows if row)
        capacity = max(held, self._capacity(longest + drafts + 1))
        shape = (len(self._rows), drafts, capacity)
        is_new = capacity > held or shape not in self._shapes
        if is_new:
            self.land()  # so that no round's time includes the compiling and copying
            self.free_ended()
            if not self.active or not self._grow(capacity):
                return None
        start = time.perf_counter()
        self._shapes.add(shape)
        guessed = self._player.draft(self._cache, self._newest, self._settings, drafts)
        mx.async_eval(guessed)
        return Guess(guessed, self._flight is not None, start if is_new else None)

    def _lay_out_verify(self, guess: Guess) -> Verify:
        """Lay out the second half of a round, which takes the host a while, and run nothing yet."""
        full = self._settings.full or self._full
        settings, self._full = self._settings._replace(full=full), False
        cache = self._cache
        if self._flight is not None:  # the request may end in it, then this cache is needed
            cache = KVCache(self.target.config, self._cache.buffers)
        played = self._player.verify(
            cache, self._newest, settings, self._max_accepted, guess.drafts
        )
        return Verify(Flight(played, list(self._rows), guess), cache)

    def _dispatch_verify(self, verify: Verify) -> None:
        """Start the second half of a round."""
        flight, self._cache = verify
        for row in self._rows:
            if row:
                row.length += flight.guess.num_draft_tokens + 1
        self._newest = flight.round.newest
        mx.async_eval(flight.round)

    def _choose_drafts(self) -> int:
        """The number of drafts of the next round. A new number comes twice, to be timed once."""
        if self._same_drafts:
            self._same_drafts = False
            return self._num_drafts
        rows = [row.acceptance for row in self._rows if row and not row.request.ended]
        drafts = self._depth.choose(len(self._rows), rows)
        self._same_drafts, self._num_drafts = drafts != self._num_drafts, drafts
        return drafts

    def _capacity(self, length: int) -> int:
        return capacity_for(length, self.limits.slot_step)

    def _grow(self, capacity: int) -> bool:
        """Grow the cache. If memory runs out, fail the longest request and return False."""
        try:
            self._cache.grow(capacity)
        except (RuntimeError, MemoryError) as error:
            longest = max(self.active, key=lambda request: len(request.ids) + len(request.tokens))
            longest.fail(error)
            return False
        return True

    def _shrink(self) -> None:
        size = next(size for size in self._sizes if size >= len(self.active))
        self._spare_rounds = self._spare_rounds + 1 if size < len(self._rows) else 0
        if self._spare_rounds > self.limits.shrink_after:
            self.land()
            self.free_ended()
            self._resize(size)

    def _start(self, size: int, capacity: int) -> None:
        """Start over with this many free rows."""
        config, dtype, limits = self.target.config, self.target.dtype, self.limits
        most, step = limits.most_beyond, limits.slot_step
        self._flight = None
        self._rows = [None] * size
        self._spare_rounds = 0
        self._cache = KVCache.empty(
            config, size, capacity=capacity, most=most, dtype=dtype, slot_step=step
        )
        token, hidden = mx.zeros((size,), mx.int32), mx.zeros((size, 1, config.hidden_size), dtype)
        self._newest = Newest(token, hidden)
        self._lay_out()

    def _resize(self, size: int, length: int = 0) -> None:
        """Change the number of rows, with room for one of this length. No round is in flight."""
        kept = [index for index, row in enumerate(self._rows) if row]
        longest = max([length, *(row.length for row in self._rows if row)])
        capacity = self._capacity(longest + self.limits.max_draft_tokens + 1)
        if not kept:
            self._start(size, capacity)
            return
        sources = [*kept, *[None] * (size - len(kept))]
        self._cache.resize(sources, capacity)
        index = mx.array([source or 0 for source in sources])
        self._newest = Newest(self._newest.token[index], self._newest.hidden[index])
        self._rows = [None if source is None else self._rows[source] for source in sources]
        self._lay_out()

    def _lay_out(self) -> None:
        """Lay out the settings of the rows for the device."""
        self._same_drafts = False  # the rows may now want another number
        params = [row.request.params if row else None for row in self._rows]
        self._settings = row_settings(params, self._suppress)
        most = [row.request.most_drafts if row else -1 for row in self._rows]
        self._max_accepted = mx.array(most, mx.int32)


def _put(array: mx.array, values: mx.array, moves: Sequence[tuple[int, int, int]]) -> mx.array:
    """array [B, ...] with rows replaced by rows of values, see `KVCache.take_over`.

    The old array stays as it was.
    """
    order = list(range(len(array)))
    for index, source, _ in moves:
        order[index] = len(array) + source
    return mx.concatenate([array, values.astype(array.dtype)])[mx.array(order)]
