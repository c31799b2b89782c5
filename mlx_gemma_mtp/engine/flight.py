"""A round under way: what was chosen for it, dispatched and laid out, until its tokens are read.

Plain values. Knows nothing of how they are chosen.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import mlx.core as mx

from mlx_gemma_mtp.decode.division import Chances, Division
from mlx_gemma_mtp.decode.round import Round
from mlx_gemma_mtp.engine.masks import Blank
from mlx_gemma_mtp.engine.results import TokenLogprobs
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
    """The first half of a round: its drafts, laid out or dispatched.

    limited: by constraints. mask: blank for what the first draft of each row may be; None if it may
    be any, or without steps. follows: the round before was in flight, so the device did not wait.
    compiled_from: when this half was laid out, if it is the first of its shape.
    """

    plan: Plan
    drafts: mx.array  # int32 [B, num_steps]
    limited: bool
    mask: Blank | None
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


class Landed(NamedTuple):
    """A round as the host reads it; waits for the device."""

    tokens: list[list[int]]
    accepted: list[int]
    chosen: list[list[float]] | None  # these as in `Logprobs`
    top_ids: list[list[list[int]]]
    top: list[list[list[float]]]

    @classmethod
    def of(cls, played: Round) -> Landed:
        """Read a round."""
        tokens, accepted, found = played.tokens, played.accepted, played.logprobs
        read: Any = (None, [], []) if found is None else (part.tolist() for part in found)
        return cls(cast(Any, tokens.tolist()), cast(Any, accepted.tolist()), *read)

    def taken(self, index: int) -> list[int]:
        """Return the new tokens of a row."""
        return self.tokens[index][: self.accepted[index] + 1]

    def logprobs(self, index: int, count: int | None) -> list[TokenLogprobs] | None:
        """Return those of the new tokens of a row, with `count` most likely ones; None: nothing."""
        if self.chosen is None or count is None:
            return None
        each = zip(self.taken(index), self.chosen[index], strict=False)
        found = []
        for at, (token, own) in enumerate(each):
            pairs = zip(self.top_ids[index][at], self.top[index][at], strict=True)
            found.append(TokenLogprobs(token, own, tuple(reversed([*pairs]))[:count]))
        return found


class Blanks(NamedTuple):
    """What constraints leave of a round, not known yet, and the drafts that it depends on."""

    masks: Blank  # uint32 [B, T, W], the tokens that may follow each position
    max_accepted: Blank  # int32 [B], the drafts of each row that may stand
    copied: Blank  # int32 [B, T - 1], drafts in place of the drafter's; -1 leaves those
    drafts: mx.array  # int32 [B, T - 1], with the copies


class Verify(NamedTuple):
    """The second half of a round, not dispatched yet, and the cache as it will be then.

    full: its tokens are chosen on the full path. blanks: None without constraints.
    """

    flight: Flight
    cache: KVCache
    full: bool
    blanks: Blanks | None
