"""How one pass of the target is divided among the rows of a batch. Plain data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

# Passes that give a token the same bits: wherever they cost little, always, or never sought.
Exact = Literal["auto", True, False]


class Chances(NamedTuple):
    """What one row may gain from drafts in the next pass.

    reached[i]: the chance that drafts 0 .. i are all accepted. The row takes no more drafts than it
    has chances. pinned: it takes exactly this many. copied: its drafts need no drafter.
    """

    reached: Sequence[float]
    pinned: int | None = None
    copied: bool = False


class Shape(NamedTuple):
    """What the cost of a round depends on; it is compiled once for each.

    batch: B. num_steps: of the drafter. num_positions: T, of each row in attention and the cache.
    num_tokens: N, of all rows, which the experts compute. width: with padding, what all other
    linear layers compute.
    """

    batch: int
    num_steps: int
    num_positions: int
    num_tokens: int
    width: int


class Division(NamedTuple):
    """A round of B rows: how many drafts of each are verified.

    drafts[b] is -1 if row b is left out, because it is free. exact: the pass gives every token the
    same bits as any other pass of the class (`PassTable.classes`) that is in use.
    """

    drafts: tuple[int, ...]
    shape: Shape
    exact: bool = False

    @property
    def counts(self) -> list[int]:
        """Tokens of each row in the pass: its newest one and its drafts."""
        return [count + 1 for count in self.drafts]
