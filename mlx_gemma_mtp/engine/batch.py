"""The rows that decode together: their cache, where each stands, and the rounds they play.

Grows and shrinks with the requests in it. Knows requests and the device; knows nothing of threads,
prompts as text, or who is waiting.
"""

from __future__ import annotations

import time
from typing import NamedTuple, cast

import mlx.core as mx

from mlx_gemma_mtp.decode.acceptance import Acceptance
from mlx_gemma_mtp.decode.depth import Depth
from mlx_gemma_mtp.decode.round import Newest, PlayRound, Round, first_token
from mlx_gemma_mtp.decode.sampling import row_settings
from mlx_gemma_mtp.engine.prefill import Prefill
from mlx_gemma_mtp.engine.request import Request
from mlx_gemma_mtp.memory import Limits
from mlx_gemma_mtp.model.cache import KVCache, capacity_for
from mlx_gemma_mtp.model.target import Target

SIZES = (1, 2, 4, 8)


class Flight(NamedTuple):
    """A round that was dispatched and not yet read."""

    round: Round
    rows: list[Request | None]
    num_draft_tokens: int
    follows: bool  # dispatched while the round before was in flight
    compiled_from: float | None  # when it was dispatched, if it is the first of its shape


class Batch:
    """Up to max_batch requests decoding side by side; none at first."""

    def __init__(
        self,
        target: Target,
        play_round: PlayRound,
        depth: Depth,
        suppressed: list[int],
        max_batch: int,
        limits: Limits,
    ) -> None:
        self._limits = limits
        self._target = target
        self._play_round = play_round
        self._depth = depth
        self._acceptance: dict[Request, Acceptance] = {}  # of those with a row
        self._sizes = sorted({min(size, max_batch) for size in SIZES})
        self._suppress: mx.array | None = None
        if suppressed:
            self._suppress = mx.zeros((target.config.vocab_size,))
            self._suppress[mx.array(suppressed)] = -mx.inf
        self._shapes: set[tuple[int, int, int]] = set()  # rounds are compiled for each
        self._landed_at = 0.0
        self._num_drafts = 0  # of the last round
        self._repeat: bool  # the next round takes as many
        self._spare_rounds = 0  # in a row that left enough rows unused for the next smaller size
        self._flight: Flight | None
        self._rows: list[Request | None]
        self._lengths: list[int]  # most positions each row may have committed; 0 for a free one
        self._cache: KVCache
        self._newest: Newest
        self.clear()

    @property
    def active(self) -> list[Request]:
        """The requests that have not ended."""
        return [row for row in self._rows if row is not None and not row.ended]

    @property
    def full(self) -> bool:
        """Is there no row to be had?"""
        return len(self.active) == self._sizes[-1]

    def clear(self) -> None:
        """Drop every row and give the memory back."""
        self._begin(0, capacity_for(1))

    def fail(self, error: BaseException) -> None:
        """End all requests with this error and drop their rows."""
        for request in self.active:
            request.fail(error)
        self.clear()

    def join(self, prefill: Prefill) -> None:
        """Give a request whose prefill is finished its first token, and a row if it goes on.

        No round may be in flight. Where this fails, the other rows are as they were.
        """
        assert self._flight is None
        request, length = prefill.request, len(prefill.request.ids)
        settings = row_settings([request.params], self._suppress)
        newest = first_token(self._target, prefill.cache, prefill.hidden, settings)
        if request.session:
            request.session.mark(prefill.cache, request.ids)
        request.take(cast(list[int], newest.token.tolist()))
        if request.ended:
            prefill.hand_back()
            return
        self.free_ended()
        if None not in self._rows:
            size = next(size for size in self._sizes if size > len(self._rows))
            self._resize(size, length)
        row = self._rows.index(None)
        offset = prefill.cache.offset
        self._cache.grow(capacity_for(length))
        self._cache.take_over(row, prefill.cache, length)
        self._cache.offset = _put(self._cache.offset, row, offset)
        self._newest = Newest(
            _put(self._newest.token, row, newest.token),
            _put(self._newest.hidden, row, newest.hidden),
        )
        self._rows[row] = request
        self._lengths[row] = length
        self._acceptance[request] = self._depth.row(request.pinned_drafts)
        self._lay_out()

    def play(self, *, settled: bool) -> None:
        """Dispatch the next round, then hand out the one before it.

        So the device never waits for the host; what a row gets after its end is dropped. settled:
        nobody is about to join, so that rows to spare may go.
        """
        self.free_ended()
        if settled:
            self._shrink()
        following = self._dispatch() if self._more_to_come else None
        self.land(following)
        self._flight = following
        self.free_ended()  # a session has its cache as soon as its request has ended
        if not self.active:
            self.clear()

    def land(self, following: Flight | None = None) -> None:
        """Wait for the round in flight, if there is one, and hand out its tokens.

        following: the round that was dispatched meanwhile.
        """
        if self._flight is None:
            return
        flight, self._flight = self._flight, None
        tokens = cast(list[list[int]], flight.round.tokens.tolist())
        accepted = cast(list[int], flight.round.accepted.tolist())
        now = time.perf_counter()
        if flight.compiled_from is not None:
            took = now - flight.compiled_from
            self._depth.round_compiled(len(flight.rows), flight.num_draft_tokens, took)
        # Where the device outruns the host, a landing waits for the dispatch of the round after:
        # the time between two of them is that of a round if the round after is one like it.
        alike = following is not None and following.num_draft_tokens == flight.num_draft_tokens
        seconds = now - self._landed_at if flight.follows and alike else None
        self._observe(flight, accepted, seconds)
        self._landed_at = now
        for row, request in enumerate(flight.rows):
            if request is None or request.ended:
                continue
            drafted = min(request.most_drafts, flight.num_draft_tokens)
            self._lengths[row] -= flight.num_draft_tokens - accepted[row]
            request.take(tokens[row][: accepted[row] + 1], drafted)

    @property
    def _more_to_come(self) -> bool:
        """Will a row go on after the round in flight?"""
        in_flight = 0 if self._flight is None else 1
        return any(len(r.tokens) + in_flight < r.max_tokens for r in self.active)

    def _observe(self, flight: Flight, accepted: list[int], seconds: float | None) -> None:
        """Learn from a round what the next ones should draft.

        seconds: what it took, where nothing but rounds of this shape was done since the one before
        was read; else None. accepted: of each row, -1 for a free one.
        """
        if seconds is not None:
            self._depth.round_took(len(flight.rows), flight.num_draft_tokens, seconds)
        for row, request in enumerate(flight.rows):
            if request is not None and not request.ended:
                drafted = min(request.most_drafts, flight.num_draft_tokens)
                self._acceptance[request].seen(drafted, accepted[row])

    def _dispatch(self) -> Flight | None:
        """Start a round; None where no row can play it."""
        drafts = self._choose_drafts()
        held = self._cache.capacity("full_attention")
        capacity = max(held, capacity_for(max(self._lengths) + drafts + 1))
        shape = (len(self._rows), drafts, capacity)
        is_new = capacity > held or shape not in self._shapes
        if is_new:
            self.land()  # what is compiled and copied now is no part of any round's time
            self.free_ended()
            if not self.active or not self._grow(capacity):
                return None
        begun = time.perf_counter()
        self._shapes.add(shape)
        for row, request in enumerate(self._rows):
            if request is not None:
                self._lengths[row] += drafts + 1
        played = self._play_round(
            self._cache, self._newest, self._settings, self._max_accepted, drafts
        )
        mx.async_eval(played)
        self._newest = played.newest
        follows, compiled_from = self._flight is not None, begun if is_new else None
        return Flight(played, list(self._rows), drafts, follows, compiled_from)

    def _choose_drafts(self) -> int:
        """How many drafts the next round takes; another number comes twice, to be timed once."""
        if self._repeat:
            self._repeat = False
            return self._num_drafts
        rows = [self._acceptance[request] for request in self.active]
        drafts = self._depth.choose(len(self._rows), rows)
        self._repeat, self._num_drafts = drafts != self._num_drafts, drafts
        return drafts

    def _grow(self, capacity: int) -> bool:
        """Make room for longer texts. Where there is none the longest ends, the others go on."""
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
        if self._spare_rounds > self._limits.shrink_after:
            self.land()
            self.free_ended()
            self._resize(size)

    def _begin(self, size: int, capacity: int) -> None:
        """Start anew with this many free rows."""
        config, dtype = self._target.config, self._target.dtype
        most = self._limits.rounds_ahead * (self._limits.max_draft_tokens + 1)
        self._flight = None
        self._rows = [None] * size
        self._acceptance = {}
        self._lengths = [0] * size
        self._spare_rounds = 0
        self._cache = KVCache.empty(config, size, capacity=capacity, most=most, dtype=dtype)
        self._newest = Newest(
            mx.zeros((size,), mx.int32), mx.zeros((size, 1, config.hidden_size), dtype)
        )
        self._lay_out()

    def _resize(self, size: int, longest: int = 0) -> None:
        """Move to another number of rows, with room for a text of this length. None in flight."""
        kept = [row for row, request in enumerate(self._rows) if request is not None]
        lengths = [self._lengths[row] for row in kept]
        capacity = capacity_for(max([longest, *lengths]) + self._limits.max_draft_tokens + 1)
        if not kept:
            self._begin(size, capacity)
            return
        rows = [*kept, *[None] * (size - len(kept))]
        self._cache.resize(rows, capacity)
        index = mx.array([row or 0 for row in rows])
        self._newest = Newest(self._newest.token[index], self._newest.hidden[index])
        self._rows = [None if row is None else self._rows[row] for row in rows]
        self._lengths = [0 if row is None else self._lengths[row] for row in rows]
        self._lay_out()

    def free_ended(self) -> None:
        """Free the rows of requests that have ended; those with a session leave it their cache."""
        rows = [None if row is None or row.ended else row for row in self._rows]
        if rows == self._rows:
            return
        for row, request in enumerate(self._rows):
            if request and request.ended and request.session:
                # The newest token's keys and values are not there yet.
                held = [*request.ids, *request.tokens[:-1]]
                try:
                    request.session.keep_row(self._cache, row, held)
                except (RuntimeError, MemoryError):  # no room: the next turn is prefilled whole
                    request.session.close()
        self._rows = rows
        self._acceptance = {row: self._acceptance[row] for row in rows if row}
        self._lengths = [
            length if row else 0 for length, row in zip(self._lengths, rows, strict=True)
        ]
        self._lay_out()

    def _lay_out(self) -> None:
        """Lay out the settings of the rows anew; a free row stays where it is."""
        self._repeat = False  # the rows may now want another number of drafts
        params = [row.params if row else None for row in self._rows]
        self._settings = row_settings(params, self._suppress)
        limits = [row.most_drafts if row else -1 for row in self._rows]
        self._max_accepted = mx.array(limits, mx.int32)


def _put(array: mx.array, row: int, value: mx.array) -> mx.array:
    """array [B, ...] with this row replaced by value [1, ...]; the old array stays as it was."""
    return mx.concatenate([array[:row], value.astype(array.dtype), array[row + 1 :]])
