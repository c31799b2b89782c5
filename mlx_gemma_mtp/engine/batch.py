"""The requests that decode together, and the rounds they play.

Knows requests and the device; knows nothing of threads, of prompts as text, or of the requests that
wait.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple, cast

import mlx.core as mx

from mlx_gemma_mtp import device
from mlx_gemma_mtp.command_buffers import rounds_may_overlap
from mlx_gemma_mtp.decode.depth import Depth
from mlx_gemma_mtp.decode.round import Layout, Round, RoundPlayer, first_token
from mlx_gemma_mtp.engine.prefill import Prefill
from mlx_gemma_mtp.engine.request import Request
from mlx_gemma_mtp.engine.rows import Row, Rows
from mlx_gemma_mtp.memory import Limits
from mlx_gemma_mtp.model.cache import KVCache
from mlx_gemma_mtp.model.target import Target


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
        self.limits = limits
        self._player = player
        self._depth = depth
        self._overlaps = limits.overlap and rounds_may_overlap(target.config)
        self._rows = Rows(target, suppressed, max_batch, limits)
        self._shapes: set[tuple[int, int, int]] = set()  # a round is compiled for each
        self._landed_at = 0.0
        self._num_drafts = 0  # of the last round
        self._same_drafts = False  # the next round takes the same number
        self._full = False  # the next round must choose on the full path: see `verify`
        self._flight: Flight | None = None

    @property
    def active(self) -> list[Request]:
        """The requests that have a row and have not ended."""
        return [row.request for row in self._rows.active]

    @property
    def num_free(self) -> int:
        """How many more requests may have a row."""
        return self._rows.num_free

    def clear(self) -> None:
        """Drop every row and return the memory."""
        self._flight = None
        self._rows.clear()

    def fail(self, error: BaseException) -> None:
        """End all requests with this error and drop their rows."""
        for request in self.active:
            request.fail(error)
        self.clear()

    def free_ended(self) -> None:
        """Free the rows of requests that have ended."""
        self._rows.free_ended()

    def add(self, prefill: Prefill) -> None:
        """Give requests their first token, and rows to those that continue; prefill is finished.

        No round may be in flight. Errors as `Rows.join`.
        """
        assert self._flight is None
        requests = prefill.requests
        settings = self._rows.settings_of(requests)
        newest = first_token(self.target, prefill.cache, prefill.hidden, settings)
        for request, token in zip(requests, cast(list[int], newest.token.tolist()), strict=True):
            request.take([token])
        self.free_ended()
        if all(request.ended for request in requests):
            prefill.stop()
        else:
            acceptances = [self._depth.row(request.num_draft_tokens) for request in requests]
            self._rows.join(prefill, newest, acceptances)

    def play(self, *, settled: bool) -> None:
        """Dispatch the drafts of the next round, read the round before, then verify the drafts.

        So the device is busy with the drafts while the host reads, tokens are handed out when they
        are ready, a request that has ended costs no further pass of the target, and MLX updates
        every buffer in place, because nothing that reads it is left. Without drafts the device
        would wait for the host: see `_runs_ahead`.
        settled: no request is about to get a row, so spare rows may go.
        """
        self.free_ended()
        if settled and self._rows.may_shrink():
            self.land()
            self._rows.shrink()
        if not self.limits.overlap:
            self.land()
        in_flight = 0 if self._flight is None else 1
        continues = any(len(r.tokens) + in_flight < r.max_tokens for r in self.active)
        guess = self._dispatch_drafts() if continues else None
        following = None if guess is None else self._lay_out_verify(guess)
        ahead = guess is not None and self._runs_ahead(guess)
        if following and ahead:
            self._dispatch_verify(following)
        self.land(guess)
        if not self.active:
            self.clear()
        elif following and guess:
            if not ahead:
                following = self._lay_out_verify(guess) if self._full else following
                self._dispatch_verify(following)
            self._flight = following.flight

    def land(self, following: Guess | None = None) -> None:
        """Wait for the round in flight, if any, and give its tokens to the requests.

        A session gets its cache as soon as its request has ended: somebody may save it then, and
        the next round would write into the row. following: the drafts that were dispatched after
        it.
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
        self.free_ended()

    def _dispatch_drafts(self) -> Guess | None:
        """Start the first half of a round; None if no row is left to play it."""
        drafts = self._choose_drafts()
        rows, held = self._rows, self._rows.cache.capacity("full_attention")
        capacity = max(held, rows.capacity(rows.longest + drafts + 1))
        shape = (len(rows.each), drafts, capacity)
        is_new = capacity > held or shape not in self._shapes
        if is_new:
            self.land()  # so that no round's time includes the compiling and copying
            if not self.active or not rows.grow(capacity):
                return None
        start = time.perf_counter()
        self._shapes.add(shape)
        guessed = self._player.draft(rows.cache, rows.newest, rows.settings, drafts)
        mx.async_eval(guessed)
        return Guess(guessed, self._flight is not None, start if is_new else None)

    def _runs_ahead(self, guess: Guess) -> bool:
        """True if the verify pass of these drafts is dispatched before the round before is read.

        That is where reading first was measured to be slower, on an H200: in plain rounds (16% for
        26B-A4B at batch 8), and with CUDA in all rounds of a single row (7% for 31B with 3 drafts),
        whose drafts end before the host has dispatched the pass. At batch 4 and 8 with drafts it
        made no difference. Never if it would copy buffers.
        """
        quick = device.backend() == "cuda" and len(self._rows.each) == 1
        return self._overlaps and (guess.num_draft_tokens == 0 or quick)

    def _lay_out_verify(self, guess: Guess) -> Verify:
        """Lay out the second half of a round, which takes the host a while, and run nothing yet."""
        rows, cache = self._rows, self._rows.cache
        full = rows.settings.full or self._full
        settings, self._full = rows.settings._replace(full=full), False
        if self._flight is not None:  # the request may end in it, then this cache is needed
            cache = KVCache(self.target.config, cache.buffers)
        layout = Layout(rows.max_accepted, packing=None)
        played = self._player.verify(cache, rows.newest, settings, layout, guess.drafts)
        return Verify(Flight(played, list(rows.each), guess), cache)

    def _dispatch_verify(self, verify: Verify) -> None:
        """Start the second half of a round."""
        flight, self._rows.cache = verify
        for row in self._rows.each:
            if row:
                row.length += flight.guess.num_draft_tokens + 1
        self._rows.newest = flight.round.newest
        mx.async_eval(flight.round)

    def _choose_drafts(self) -> int:
        """The number of drafts of the next round. A new number comes twice, to be timed once."""
        if self._same_drafts and not self._rows.changed:
            self._same_drafts = False
            return self._num_drafts
        self._rows.changed = False
        acceptances = [row.acceptance for row in self._rows.active]
        drafts = self._depth.choose(len(self._rows.each), acceptances)
        self._same_drafts, self._num_drafts = drafts != self._num_drafts, drafts
        return drafts
