"""The requests that decode together, and the rounds they play.

Knows requests and the device; knows nothing of threads, of prompts as text, or of the requests that
wait.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import mlx.core as mx

from mlx_gemma_mtp import device
from mlx_gemma_mtp.command_buffers import rounds_may_overlap
from mlx_gemma_mtp.decode.acceptance import Acceptance
from mlx_gemma_mtp.decode.depth import Depth
from mlx_gemma_mtp.decode.player import RoundPlayer
from mlx_gemma_mtp.decode.round import Copies, Layout, first_token, with_copies
from mlx_gemma_mtp.engine.budget import Budget
from mlx_gemma_mtp.engine.exactness import Exactness
from mlx_gemma_mtp.engine.flight import Flight, Guess, Landed, Plan, Verify
from mlx_gemma_mtp.engine.masks import Masks
from mlx_gemma_mtp.engine.prefill import Prefill
from mlx_gemma_mtp.engine.prefixes import Prefixes
from mlx_gemma_mtp.engine.request import Request
from mlx_gemma_mtp.engine.row import Row, Stretch
from mlx_gemma_mtp.engine.rows import Rows
from mlx_gemma_mtp.model.cache import KVCache
from mlx_gemma_mtp.model.packing import packing_of
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
        self._player = player
        self._depth = depth
        self._budget = budget
        self._overlaps = limits.overlap and rounds_may_overlap(target.config)
        self._has_drafter = has_drafter
        self._copies = Acceptance() if copies else None  # of all rows
        self._limited = Acceptance()  # of drafts of all rows with a constraint
        self.prefixes = Prefixes(target.config, exactness, budget, prefix_cache, turn)
        self._rows = Rows(target, suppressed, exactness.max_batch, limits, budget, self.prefixes)
        self._masks = Masks(target.config.vocab_size, suppressed)
        self._shapes: set[tuple[object, ...]] = set()  # a round is compiled for each
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

    @property
    def _constrained(self) -> bool:
        """True if the tokens of a row must be read before the next ones are limited."""
        return any(request.constrained for request in self.active)

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
        del self.target, self._player

    def load(self, target: Target, player: RoundPlayer) -> None:
        """Take the models back."""
        self.target, self._player, self.loaded = target, player, True
        self._shapes.clear()

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
        masks = self._masks.first([None if one.ended else one for one in requests])
        if any(request.constrained for request in requests):
            settings = settings._replace(masks=masks)
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
        would wait for the host: see `_runs_ahead`.
        A constraint needs the tokens before it and the drafts on the host: then both are read, the
        drafts while the target verifies them.
        settled: no request is about to get a row, so spare rows may go.
        """
        self.free_ended()
        if settled and self._rows.may_shrink():
            self.land()
            self._rows.shrink()
        if self._constrained or not self.limits.overlap:
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

    def _dispatch_drafts(self) -> Guess | None:
        """Start the first half of a round; None if no row is left to play it."""
        plan = self._plan()
        shape = plan.division.shape
        assert shape.num_positions <= self.limits.max_draft_tokens + 1
        rows, held = self._rows, self._rows.cache.capacity("full_attention")
        capacity = max(held, rows.capacity(rows.longest + shape.num_positions))
        constrained = self._constrained
        copied = any(plan.copied) and not constrained
        compiled = (shape, copied, constrained, capacity, rows.settings.steps)
        is_new = capacity > held or compiled not in self._shapes
        if is_new:
            self.land()  # so that no round's time includes the compiling and copying
            if not self.active or not rows.grow(capacity):
                return None
        start = time.perf_counter()
        self._shapes.add(compiled)
        settings = rows.settings
        if constrained and shape.num_steps:
            drafting = zip(plan.division.drafts, plan.copied, strict=True)
            own = [0 if is_copied else count for count, is_copied in drafting]
            settings = settings._replace(masks=self._masks.first(self._limited_rows(own, 1)))
        drafts = self._player.draft(rows.cache, rows.newest, settings, shape.num_steps)
        mx.async_eval(drafts)
        follows = self._flight is not None
        return Guess(plan, drafts, follows, start if is_new else None)

    def _runs_ahead(self, guess: Guess) -> bool:
        """True if the verify pass of these drafts is dispatched before the round before is read.

        That is where reading first was measured to be slower, on an H200: in rounds without steps
        of the drafter (plain ones: 16% for 26B-A4B at batch 8), and with CUDA in all rounds of a
        single row (7% for 31B with 3 drafts), whose drafts end before the host has dispatched the
        pass. At batch 4 and 8 with drafts it made no difference. Never if it would copy buffers.
        """
        quick = device.backend() == "cuda" and len(self._rows.each) == 1
        return self._overlaps and (guess.plan.division.shape.num_steps == 0 or quick)

    def _lay_out_verify(self, guess: Guess) -> Verify:
        """Lay out the second half of a round, which takes the host a while, and run nothing yet.

        With constraints its pass is dispatched, and what they allow is found while it runs.
        """
        rows, cache = self._rows, self._rows.cache
        full = rows.settings.full or self._full
        settings, self._full = rows.settings._replace(full=full), False
        if self._flight is not None:  # the request may end in it, then this cache is needed
            cache = KVCache(self.target.config, cache.buffers)
        division, shape = guess.plan.division, guess.plan.division.shape
        stretches, copies = self._lay_out_copies(guess.plan.copied)
        playing = zip(rows.each, division.drafts, strict=True)
        most = [drafts if row else -1 for row, drafts in playing]
        packing = packing_of(division.counts, shape.num_positions, shape.width)
        drafts, missing = guess.drafts, shape.num_positions - 1 - shape.num_steps
        if missing:
            drafts = mx.pad(drafts, [(0, 0), (0, missing)])
        allow: tuple[Any, ...] = ()
        if self._constrained:
            if copies is not None:
                drafts = with_copies(drafts, copies, rows.newest.token, cache.offset)
            mx.async_eval(drafts)  # apart from the pass, for which their reader need not wait
            limited = self._limited_rows(most, 0)
            copies, allow = None, (partial(self._masks.allowed, limited, drafts, most),)
        layout = Layout(mx.array(most, mx.int32), packing, copies)
        played = self._player.verify(cache, rows.newest, settings, layout, drafts, *allow)
        return Verify(Flight(played, list(rows.each), guess, stretches), cache)

    def _limited_rows(self, drafts: Sequence[int], least: int) -> list[Request | None]:
        """Return the requests of rows with a constraint and at least so many drafts; else None."""
        rows = zip(self._rows.each, drafts, strict=True)
        return [
            row.request if row and row.request.constrained and count >= least else None
            for row, count in rows
        ]

    def _lay_out_copies(self, copied: list[bool]) -> tuple[list[Stretch | None], Copies | None]:
        """Return where the drafts of these rows are copied from, on the host and on the device.

        For two rounds, because the tokens of the one in flight are not known.
        """
        count, rows = 2 * (self.limits.max_draft_tokens + 1), self._rows.each
        if not any(copied):
            return [None] * len(rows), None
        stretches = [
            row.stretch(count) if row and one else None
            for row, one in zip(rows, copied, strict=True)
        ]
        known = [one.tokens if one else [] for one in stretches]
        tokens = [each + [-1] * (count - len(each)) for each in known]
        start = [one.start if one else -1 for one in stretches]
        return stretches, Copies(mx.array(tokens, mx.int32), mx.array(start, mx.int32))

    def _dispatch_verify(self, verify: Verify) -> None:
        """Start the second half of a round."""
        flight, self._rows.cache = verify
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
