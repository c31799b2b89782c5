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
        self._sizes = sorted({min(size, max_batch) for size in SIZES})
        self._suppress = mx.array(list(suppressed), mx.int32) if suppressed else None
        self._shapes: set[tuple[int, int, int]] = set()  # a round is compiled for each
        self._landed_at = 0.0
        self._num_drafts = 0  # of the last round
        self._same_drafts: bool  # the next round takes the same number
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
    def full(self) -> bool:
        """True if every row is taken."""
        return len(self.active) == self._sizes[-1]

    def clear(self) -> None:
        """Drop every row and return the memory."""
        self._start(0, self._capacity(1))

    def fail(self, error: BaseException) -> None:
        """End all requests with this error and drop their rows."""
        for request in self.active:
            request.fail(error)
        self.clear()

    def add(self, prefill: Prefill) -> None:
        """Give a request its first token, and a row if it continues. Its prefill is finished.

        No round may be in flight. If this fails, the other rows are as they were.
        """
        assert self._flight is None
        request, length = prefill.request, len(prefill.request.ids)
        settings = row_settings([request.params], self._suppress)
        newest = first_token(self.target, prefill.cache, prefill.hidden, settings)
        request.take(cast(list[int], newest.token.tolist()))
        if request.ended:
            prefill.stop()
            return
        self.free_ended()
        if None not in self._rows:
            size = next(size for size in self._sizes if size > len(self._rows))
            self._resize(size, length)
        index = self._rows.index(None)
        offset = prefill.cache.offset
        self._cache.grow(self._capacity(length))
        self._cache.take_over(index, prefill.cache, length)
        self._cache.offset = _put(self._cache.offset, index, offset)
        pairs = zip(self._newest, newest, strict=True)
        self._newest = Newest(*(_put(array, index, value) for array, value in pairs))
        self._rows[index] = Row(request, self._depth.row(request.num_draft_tokens), length)
        self._lay_out()

    def play(self, *, settled: bool) -> None:
        """Dispatch the drafts of the next round, read the round before, then verify the drafts.

        So the device is busy with the drafts while the host reads; tokens are handed out when they
        are ready, a request that has ended costs no further pass of the target, and MLX updates
        every buffer in place, because nothing that reads it is left.
        settled: no request is about to get a row, so spare rows may go.
        """
        self.free_ended()
        if settled:
            self._shrink()
        in_flight = 0 if self._flight is None else 1
        continues = any(len(r.tokens) + in_flight < r.max_tokens for r in self.active)
        guess = self._dispatch_drafts() if continues else None
        self.land(guess)
        self.free_ended()  # a session gets its cache as soon as its request has ended
        if not self.active:
            self.clear()
        elif guess is not None:
            self._dispatch_verify(guess)

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
            row.acceptance.seen(drafted, accepted[index])
            row.length -= guess.num_draft_tokens - accepted[index]
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

    def _dispatch_verify(self, guess: Guess) -> None:
        """Start the second half of a round."""
        for row in self._rows:
            if row:
                row.length += guess.num_draft_tokens + 1
        played = self._player.verify(
            self._cache, self._newest, self._settings, self._max_accepted, guess.drafts
        )
        mx.async_eval(played)
        self._newest = played.newest
        self._flight = Flight(played, list(self._rows), guess)

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
        most, step = limits.max_draft_tokens + 1, limits.slot_step
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


def _put(array: mx.array, row: int, value: mx.array) -> mx.array:
    """array [B, ...] with this row replaced by value [1, ...]; the old array stays as it was."""
    return mx.concatenate([array[:row], value.astype(array.dtype), array[row + 1 :]])
