"""The requests that decode together, and the rounds they play.

Knows requests and the device; knows nothing of threads, of prompts as text, or of the requests that
wait.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import mlx.core as mx

from mlx_gemma_mtp import device
from mlx_gemma_mtp.command_buffers import rounds_may_overlap
from mlx_gemma_mtp.decode.acceptance import Acceptance
from mlx_gemma_mtp.decode.depth import Depth
from mlx_gemma_mtp.decode.player import RoundPlayer
from mlx_gemma_mtp.decode.round import first_token
from mlx_gemma_mtp.engine.budget import Budget
from mlx_gemma_mtp.engine.exactness import Exactness
from mlx_gemma_mtp.engine.flight import Flight, Guess, Landed, Plan, Verify
from mlx_gemma_mtp.engine.masks import Masks
from mlx_gemma_mtp.engine.prefill import Prefill
from mlx_gemma_mtp.engine.prefixes import Prefixes
from mlx_gemma_mtp.engine.request import Request
from mlx_gemma_mtp.engine.round_builder import RoundBuilder
from mlx_gemma_mtp.engine.row import Row
from mlx_gemma_mtp.engine.rows import Rows
from mlx_gemma_mtp.model.target import Target

LIKELY = 2048  # tokens that an output is expected to have at most


class Batch:
    """Up to max_batch requests that decode together; none at first."""

    def __init__(
        self,
        target: Target,
        player: RoundPlayer,
        suppressed: Sequence[int],
        depth: Depth,
        exactness: Exactness,
        *,
        copies: bool = True,
        has_drafter: bool = True,
        budget: Budget,
        prefix_cache: int = 0,
        turn: int | None = None,
    ) -> None:
        """copies: rows take them, see `decode.copies`. prefix_cache, turn: see `Prefixes`."""
        self.target = target
        self.loaded = True
        self.exactness = exactness
        self.limits = limits = exactness.limits
        self._depth = depth
        self._budget = budget
        self._overlaps = limits.overlap and rounds_may_overlap(target.config)
        self._has_drafter = has_drafter
        self._copies = Acceptance() if copies else None  # of all rows
        self._limited = Acceptance()  # of drafts of all rows with a constraint
        self.prefixes = Prefixes(target.config, exactness, budget, prefix_cache, turn)
        self._rows = Rows(target, suppressed, exactness.max_batch, limits, budget, self.prefixes)
        self._masks = Masks(target.config.vocab_size, suppressed)
        self._builder = RoundBuilder(self._rows, player, self._masks, limits)
        self._landed_at = 0.0
        self._full = False  # the next round must choose on the full path: see `verify`
        self._flight: Flight | None = None

    @property
    def active(self) -> list[Request]:
        """The requests that have a row and have not ended."""
        return [row.request for row in self._rows.active]

    @property
    def num_free(self) -> int:
        """How many more requests may have a row."""
        return self._rows.num_free if self.loaded else 0

    def clear(self) -> None:
        """Drop every row and return the memory."""
        self._flight = None
        self._rows.clear()

    def fits(self, requests: Sequence[Request]) -> bool:
        """Return whether the budget has rows for all of these at once, for an output of LIKELY."""
        return len(requests) == 1 or self._budget.fits(*self._likely(requests))

    def make_room(self, requests: Sequence[Request]) -> None:
        """Drop prefixes until there is room for rows for all of these."""
        self.prefixes.give_way(*self._likely(requests))

    def _likely(self, requests: Sequence[Request]) -> tuple[int, int]:
        """Return how long the rows of these become, and how many there are."""
        ends = [len(one.ids) + min(one.max_tokens, LIKELY) for one in requests]
        return max(ends), self._rows.size_for(len(ends))

    def unload(self) -> None:
        """Let go of the models and the prefixes; no request may have a row.

        None gets one until `load`.
        """
        self.clear()
        self.prefixes.clear()
        self.loaded = False
        del self.target, self._builder

    def load(self, target: Target, player: RoundPlayer) -> None:
        """Take the models back."""
        self.target, self.loaded = target, True
        self._builder = RoundBuilder(self._rows, player, self._masks, self.limits)

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
        requests, rows = prefill.requests, self._rows
        settings = rows.settings_of(requests)
        masks = self._masks.blank(len(requests), 1)
        self._masks.write(masks, [None if one.ended else one for one in requests])
        if any(request.constrained for request in requests):
            settings = settings._replace(masks=masks.array)
        counts, least = rows.counts_of(requests), self.exactness.least
        first = first_token(self.target, *prefill.ends(), settings, least, counts)
        landed = Landed.of(first)
        for index, request in enumerate(requests):
            if not request.ended:
                logprobs = landed.logprobs(index, request.params.logprobs)
                request.take(landed.taken(index), logprobs=logprobs)
        self.free_ended()
        if all(request.ended for request in requests):
            prefill.stop()
        else:
            rows.join(prefill, first.newest, self._row)

    def play(self, *, settled: bool) -> None:
        """Dispatch the drafts of the next round, read the round before, then verify the drafts.

        So the device is busy with the drafts while the host reads, tokens are handed out when they
        are ready, a request that has ended costs no further pass of the target, and MLX updates
        every buffer in place, because nothing that reads it is left. Without drafts the device
        would wait for the host: see `_runs_ahead`. For constraints see `_play_constrained`.
        settled: no request is about to get a row, so spare rows may go.
        """
        self.free_ended()
        if settled and self._rows.may_shrink():
            self.land()
            self._rows.shrink()
        if not self.limits.overlap:
            self.land()
        if self._rows.constrained:
            self._play_constrained()
        else:
            self._play_free()

    def _play_free(self) -> None:
        guess = self._guess(self._plan()) if self._continues else None
        following = ahead = None
        if guess is not None:
            mx.async_eval(guess.drafts)
            following = self._builder.verify(guess, full=self._full)
            ahead = self._runs_ahead(guess)
            if ahead:
                self._dispatch(following)
        self.land(guess)
        if not self.active:
            self.clear()
        elif guess and following:
            if not ahead:
                following = self._builder.verify(guess, full=True) if self._full else following
                self._dispatch(following)
            self._flight = following.flight

    def _play_constrained(self) -> None:
        """Play a round that needs the tokens before it, and its drafts, on the host.

        To lay a round out takes the host a while. So one like that in flight is laid out before
        that is read, with blanks for what depends on its tokens, and dropped if it turns out to be
        another one. The target is busy with the drafts while these are read. Without any drafts
        its pass depends on nothing that is read, and runs ahead of it: see `_runs_ahead`.
        """
        following = self._lay_out_likely()
        plain = all(request.num_draft_tokens == 0 for request in self.active)
        early = following and plain and self._overlaps
        if following and early:
            self._start(following)
        self.land(following.flight.guess if following else None)
        if not early:
            if not self._rows.constrained:  # that row has ended
                self._play_free()
                return
            following = self._known(following)
            if following:
                self._start(following)
        if not self.active:
            self.clear()
        elif following:
            self._builder.fill_verify(following)
            self._dispatch(following)
            self._flight = following.flight

    def _lay_out_likely(self) -> Verify | None:
        """Lay out a round like the one in flight; None if there is none, or nothing like it."""
        if self._flight is None or not self._continues:
            return None
        plan = self._flight.guess.plan
        rows = zip(self._rows.each, plan.division.drafts, strict=True)
        if any((row is None) != (drafts < 0) for row, drafts in rows) or self._builder.is_new(plan):
            return None
        guess = self._builder.guess(plan, follows=True, compiled_from=None)
        return self._builder.verify(guess, full=self._full)

    def _known(self, likely: Verify | None) -> Verify | None:
        """Return the next round, its drafts dispatched: the likely one, if that is what it is.

        All tokens have been read. None if no row is left to play it.
        """
        plan, guess = self._plan(), None if likely is None else likely.flight.guess
        if guess is None or self._full or plan.division != guess.plan.division:
            likely, guess = None, self._guess(plan)
        if guess is None:
            return None
        self._builder.limit_drafts(guess, plan)
        mx.async_eval(guess.drafts)
        likely = likely or self._builder.verify(guess, full=self._full)
        return self._builder.fill_copies(likely, plan)

    def land(self, following: Guess | None = None) -> None:
        """Wait for the round in flight, if any, and give its tokens to the requests.

        A session gets its cache as soon as its request has ended: somebody may save it then, and
        the next round would write into the row. following: the drafts that were dispatched after
        it.
        """
        if self._flight is None:
            return
        flight, self._flight = self._flight, None
        landed = Landed.of(flight.round)
        accepted = landed.accepted
        now, guess = time.perf_counter(), flight.guess
        division = guess.plan.division
        if guess.compiled_from is not None:
            self._depth.round_compiled(division.shape, now - guess.compiled_from)
        # If the device is faster than the host, a landing waits for the dispatch of the next
        # drafts. The time between two landings is that of a round if the next one is like it.
        alike = following is not None and following.plan.division.shape == division.shape
        if guess.follows and alike:
            self._depth.round_took(division.shape, now - self._landed_at)
        self._landed_at = now
        exact = self.exactness.round(division)
        for index, row in enumerate(flight.rows):
            num_drafts = division.drafts[index]
            if row is None or row.request.ended or num_drafts < 0:
                continue
            row.length -= num_drafts - accepted[index]
            if accepted[index] < 0:
                self._full = True
                continue
            row.request.exact &= exact
            steps, stretch = division.shape.num_steps, flight.stretches[index]
            logprobs = landed.logprobs(index, row.request.params.logprobs)
            row.take(landed.taken(index), num_drafts, steps, stretch, logprobs)
        self.free_ended()

    def _row(self, request: Request) -> Row:
        """Return a row for a request that has its first token."""
        most, copied = request.num_draft_tokens, self._copies
        drafted = None
        if self._has_drafter:
            drafted = Acceptance(self._limited) if request.constrained else self._depth.row()
        return Row(request, drafted, Acceptance(copied) if copied and most != 0 else None)

    @property
    def _continues(self) -> bool:
        """True if a row needs a round after the one in flight."""
        in_flight = 0 if self._flight is None else 1
        return any(len(r.tokens) + in_flight < r.max_tokens for r in self.active)

    def _guess(self, plan: Plan) -> Guess | None:
        """Lay out the first half of a round; None if no row is left to play it."""
        builder, is_new = self._builder, self._builder.is_new(plan)
        if is_new:
            self.land()  # so that no round's time includes the compiling and copying
            if not self.active or not self._rows.grow(builder.capacity(plan)):
                return None
        start = time.perf_counter() if is_new else None
        return builder.guess(plan, follows=self._flight is not None, compiled_from=start)

    def _runs_ahead(self, guess: Guess) -> bool:
        """True if the verify pass of these drafts is dispatched before the round before is read.

        That is where reading first was measured to be slower, on an H200: in rounds without steps
        of the drafter (plain ones: 16% for 26B-A4B at batch 8), and with CUDA in all rounds of a
        single row (7% for 31B with 3 drafts), whose drafts end before the host has dispatched the
        pass. At batch 4 and 8 with drafts it made no difference. Never if it would copy buffers.
        """
        quick = device.backend() == "cuda" and len(self._rows.each) == 1
        return self._overlaps and (guess.plan.division.shape.num_steps == 0 or quick)

    def _start(self, verify: Verify) -> None:
        """Start the drafts and the pass of a round whose tokens are limited later."""
        assert verify.blanks is not None
        self._rows.cache = verify.cache
        mx.async_eval(verify.blanks.drafts)  # apart from the pass: who reads them need not wait
        mx.async_eval(verify.flight.round.passed)

    def _dispatch(self, verify: Verify) -> None:
        """Start the second half of a round, or the rest of it."""
        flight, self._rows.cache = verify.flight, verify.cache
        self._full &= not verify.full
        for row, drafts in zip(self._rows.each, flight.guess.plan.division.drafts, strict=True):
            if row:
                row.length += drafts + 1
        self._rows.newest = flight.round.newest
        mx.async_eval(flight.round)

    def _plan(self) -> Plan:
        """Return how the next round is divided, and what its rows may gain."""
        flight = self._flight
        most = 0 if self.exactness.lone else self.limits.max_draft_tokens
        chances = [
            None if row is None else row.chances(most, flight.coming(index) if flight else 0)
            for index, row in enumerate(self._rows.each)
        ]
        return Plan(self._depth.choose(chances), chances)
