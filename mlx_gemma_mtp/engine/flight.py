"""A round under way: what was chosen for it, dispatched and laid out, until its tokens are read.

Plain values. Knows nothing of how they are chosen.
"""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx

from mlx_gemma_mtp.decode.division import Chances, Division
from mlx_gemma_mtp.decode.round import Round
from mlx_gemma_mtp.engine.row import Row, Stretch
from mlx_gemma_mtp.model.cache import KVCache


class Plan(NamedTuple):
    """How a round is divided, and what each row was expected to gain."""

    division: Division
    chances: list[Chances | None]

    @property
    def copied(self) -> list[bool]:
        """Of each row, whether its drafts are copies."""
        rows = zip(self.chances, self.division.drafts, strict=True)
        return [drafts > 0 and chances is not None and chances.copied for chances, drafts in rows]


class Guess(NamedTuple):
    """The first half of a round: its drafts, dispatched before the round before them is read.

    follows: that round was in flight, so the device did not wait. compiled_from: when this half was
    dispatched, if it is the first of its shape.
    """

    plan: Plan
    drafts: mx.array  # int32 [B, num_steps]
    follows: bool
    compiled_from: float | None


class Flight(NamedTuple):
    """A round whose both halves are dispatched, and that is not read yet.

    stretches: where the drafts of a row were copied from, if the row was there.
    """

    round: Round
    rows: list[Row | None]
    guess: Guess
    stretches: list[Stretch | None]

    def coming(self, index: int) -> int:
        """How many tokens it should give to this row; 0 if the row does not play it."""
        plan = self.guess.plan
        chances, drafts = plan.chances[index], plan.division.drafts[index]
        return 0 if chances is None or drafts < 0 else 1 + int(sum(chances.reached[:drafts]))


class Verify(NamedTuple):
    """The second half of a round, not dispatched yet, and the cache as it will be then."""

    flight: Flight
    cache: KVCache
