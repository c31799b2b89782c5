"""Lays out the rounds of some rows: what the device will do, without dispatching it.

If a row has a constraint, masks and what follows from them stay blank until the tokens and drafts
that they depend on are on the host. Knows nothing of how many drafts pay, or of what becomes of
tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import mlx.core as mx
import numpy as np

from mlx_gemma_mtp.decode.player import RoundPlayer
from mlx_gemma_mtp.decode.round import Copies, Layout
from mlx_gemma_mtp.engine.flight import Blanks, Flight, Guess, Plan, Verify
from mlx_gemma_mtp.engine.masks import Blank, Masks
from mlx_gemma_mtp.engine.request import Request
from mlx_gemma_mtp.engine.row import Stretch
from mlx_gemma_mtp.engine.rows import Rows
from mlx_gemma_mtp.memory import Limits
from mlx_gemma_mtp.model.cache import KVCache
from mlx_gemma_mtp.model.packing import packing_of


class RoundBuilder:
    """Lays out rounds of these rows for one player."""

    def __init__(self, rows: Rows, player: RoundPlayer, masks: Masks, limits: Limits) -> None:
        self._rows = rows
        self._player = player
        self._masks = masks
        self._limits = limits
        # Tokens of a copy, for two rounds: those of the one in flight may not be known.
        self._num_copied = 2 * (limits.max_draft_tokens + 1)
        self._shapes: set[tuple[object, ...]] = set()  # a round is compiled for each

    def capacity(self, plan: Plan) -> int:
        """Return the slots of a full-attention layer in the next round."""
        rows, num_positions = self._rows, plan.division.shape.num_positions
        assert num_positions <= self._limits.max_draft_tokens + 1
        return max(self._held, rows.capacity(rows.longest + num_positions))

    def is_new(self, plan: Plan) -> bool:
        """True if this round is compiled, or the cache must grow for it."""
        return self.capacity(plan) > self._held or self._key(plan) not in self._shapes

    def guess(self, plan: Plan, *, follows: bool, compiled_from: float | None) -> Guess:
        """Lay out the first half of a round; the cache has room for it."""
        self._shapes.add(self._key(plan))
        rows, settings, mask = self._rows, self._rows.settings, None
        limited, num_steps = rows.constrained, plan.division.shape.num_steps
        if limited and num_steps:
            mask = self._masks.blank(len(rows.each), 1)
            settings = settings._replace(masks=mask.array)
        drafts = self._player.draft(rows.cache, rows.newest, settings, num_steps)
        return Guess(plan, drafts, limited, mask, follows, compiled_from)

    def verify(self, guess: Guess, *, full: bool) -> Verify:
        """Lay out the second half of a round, in a cache of its own. full: see `decode.round`."""
        rows, shape, blanks = self._rows, guess.plan.division.shape, None
        full = rows.settings.full or full
        settings = rows.settings._replace(full=full)
        cache = KVCache(rows.cache.config, rows.cache.buffers)
        packing = packing_of(guess.plan.division.counts, shape.num_positions, shape.width)
        drafts, missing = guess.drafts, shape.num_positions - 1 - shape.num_steps
        if missing:
            drafts = mx.pad(drafts, [(0, 0), (0, missing)])
        if guess.limited:
            blanks = self._blanks(drafts)
            settings = settings._replace(masks=blanks.masks.array)
            drafts, layout = blanks.drafts, Layout(blanks.max_accepted.array, packing)
            stretches: list[Stretch | None] = [None] * len(rows.each)
        else:
            stretches = self._stretches(guess.plan)
            most = mx.array(self._most(guess.plan), mx.int32)
            layout = Layout(most, packing, self._copies(stretches))
        played = self._player.verify(cache, rows.newest, settings, layout, drafts)
        return Verify(Flight(played, list(rows.each), guess, stretches), cache, full, blanks)

    def limit_drafts(self, guess: Guess, plan: Plan) -> None:
        """Write what the first drafts may be, after the round before was read.

        plan: divides the round as that of the guess does.
        """
        if guess.mask is not None:
            drafting = zip(plan.division.drafts, plan.copied, strict=True)
            own = [0 if is_copied else count for count, is_copied in drafting]
            self._masks.write(guess.mask, self._limited(own, 1))

    def fill_copies(self, verify: Verify, plan: Plan) -> Verify:
        """Write the drafts that are copied or forced, after the round before was read.

        plan: divides the round as that of the guess does. Returns the round with it, whose pass may
        start.
        """
        flight, blanks, stretches = verify.flight, verify.blanks, list[Stretch | None]()
        assert blanks is not None
        places = blanks.copied.content
        places[:] = -1
        rows = zip(places, self._rows.each, plan.division.drafts, plan.copied, strict=True)
        for place, row, count, is_copied in rows:
            forced = row.forced(count) if row and count > 0 else []
            whole = row.stretch(count + 1) if row and (is_copied or len(forced) == count) else None
            known = whole.tokens[1:] if whole else forced
            place[: len(known)] = known
            stretches.append(whole)
        guess = flight.guess._replace(plan=plan)
        return verify._replace(flight=flight._replace(guess=guess, stretches=stretches))

    def fill_verify(self, verify: Verify) -> None:
        """Wait for the drafts, and write what constraints allow of them: the rest of the round."""
        plan, blanks = verify.flight.guess.plan, verify.blanks
        assert blanks is not None
        most, texts = self._most(plan), [list[int]()] * len(self._rows.each)
        if blanks.drafts.size:
            texts = cast(list[list[int]], blanks.drafts.tolist())
        texts = [text[: max(0, count)] for text, count in zip(texts, most, strict=True)]
        allowed = self._masks.write(blanks.masks, self._limited(most, 0), texts)
        blanks.max_accepted.content[:] = np.minimum(most, allowed)

    @property
    def _held(self) -> int:
        return self._rows.cache.capacity("full_attention")

    def _key(self, plan: Plan) -> tuple[object, ...]:
        """What a round is compiled for."""
        constrained = self._rows.constrained
        copied = any(plan.copied) and not constrained
        steps = self._rows.settings.steps
        return plan.division.shape, copied, constrained, self.capacity(plan), steps

    def _most(self, plan: Plan) -> list[int]:
        """Return the drafts of each row, -1 if there is no row."""
        rows = zip(self._rows.each, plan.division.drafts, strict=True)
        return [drafts if row else -1 for row, drafts in rows]

    def _limited(self, drafts: Sequence[int], least: int) -> list[Request | None]:
        """Return the requests of rows with a constraint and `least` drafts or more; else None."""
        rows = zip(self._rows.each, drafts, strict=True)
        return [
            row.request if row and row.request.constrained and count >= least else None
            for row, count in rows
        ]

    def _blanks(self, drafts: mx.array) -> Blanks:
        """Return blanks for a pass over these drafts [B, T - 1]."""
        batch, num_drafts = drafts.shape
        copied = Blank.of(drafts.shape, np.int32)
        if num_drafts:
            drafts = mx.where(copied.array < 0, drafts, copied.array)
        masks = self._masks.blank(batch, num_drafts + 1)
        return Blanks(masks, Blank.of((batch,), np.int32), copied, drafts)

    def _stretches(self, plan: Plan) -> list[Stretch | None]:
        """Return where the drafts of these rows are copied from."""
        count = self._num_copied
        rows = zip(self._rows.each, plan.copied, strict=True)
        return [row.stretch(count) if row and is_copied else None for row, is_copied in rows]

    def _copies(self, stretches: Sequence[Stretch | None]) -> Copies | None:
        """Return these on the device; None if there are none."""
        if not any(stretches):
            return None
        known = [one.tokens if one else [] for one in stretches]
        tokens = [each + [-1] * (self._num_copied - len(each)) for each in known]
        start = [one.start if one else -1 for one in stretches]
        return Copies(mx.array(tokens, mx.int32), mx.array(start, mx.int32))
