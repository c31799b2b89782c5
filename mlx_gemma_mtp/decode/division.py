"""How one pass of the target is divided among the rows of a batch.

The drafts most likely to be accepted come first, whatever row they are of. Knows no costs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Literal, NamedTuple

# Passes that give a token the same bits: if they cost little, always, or not sought.
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


class Option(NamedTuple):
    """Drafts for the next round: the likeliest ones, and those of pinned rows.

    count: without those of pinned rows. num_steps: of the drafter. deepest: the most of one row.
    tokens: what is expected of the round; hoped: the same with the chances that were hoped for.
    """

    count: int
    num_steps: int
    deepest: int
    tokens: float
    hoped: float


class Slots:
    """All drafts that rows may take, the likeliest first. A row's own are in order.

    most: drafts of a row that the drafter makes. hopes: chances that order the drafts of a row in
    place of its own.
    """

    def __init__(
        self,
        rows: Sequence[Chances | None],
        most: int,
        hopes: dict[int, Sequence[float]] | None = None,
    ) -> None:
        self._pinned = [0 if row else -1 for row in rows]
        self._slots: list[_Slot] = []
        steps = deepest = 0
        tokens = 0.0
        for index, row in enumerate(rows):
            if row is None:
                continue
            tokens += 1
            if row.pinned is None:
                hoped = (hopes or {}).get(index, row.reached)
                for at, hope in enumerate(hoped[: None if row.copied else most]):
                    slot = _Slot(-hope, at + 1, index, not row.copied, row.reached[at])
                    self._slots.append(slot)
                continue
            self._pinned[index] = count = min(row.pinned, len(row.reached))
            tokens += sum(row.reached[:count])
            deepest = max(deepest, count)
            if not row.copied:
                steps = max(steps, count)
        self._slots.sort()
        self._least = Option(0, steps, deepest, tokens, tokens)
        self.num_tokens = sum(self._pinned) + len(rows)

    def options(self) -> Iterator[Option]:
        """Yield every number of drafts, with every number of steps that the last of them needs."""
        yield self._least
        least = self._least.num_steps
        most = max((slot.at for slot in self._slots if slot.drafted), default=least)
        for steps in range(least, max(least, most) + 1):
            _, needed, deepest, tokens, hoped = self._least
            for count, slot in enumerate(self._within(steps), 1):
                tokens += slot.chance
                hoped -= slot.order
                deepest = max(deepest, slot.at)
                if slot.drafted:
                    needed = max(needed, slot.at)
                if needed == steps:
                    yield Option(count, steps, deepest, tokens, hoped)

    def divide(self, option: Option) -> tuple[int, ...]:
        """Return the drafts of each row; -1 for a free one."""
        drafts = list(self._pinned)
        for slot in islice(self._within(option.num_steps), option.count):
            drafts[slot.row] += 1
        return tuple(drafts)

    def _within(self, steps: int) -> Iterator[_Slot]:
        return (slot for slot in self._slots if slot.at <= steps or not slot.drafted)


class _Slot(NamedTuple):
    """A draft at a place of a row, from 1. order: minus the chance that it is ordered by."""

    order: float
    at: int
    row: int
    drafted: bool
    chance: float
