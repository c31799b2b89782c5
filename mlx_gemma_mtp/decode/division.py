"""How one pass of the target is divided among the rows of a batch.

The drafts most likely to be accepted come first, whatever row they are of. Knows no costs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate, islice
from typing import Literal, NamedTuple

import numpy as np

Floats = np.ndarray[tuple[int, ...], np.dtype[np.float64]]

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


class Slots:
    """All drafts that rows may take, the likeliest first; a row's own stay in order.

    most: drafts that the drafter makes for a row. most_copied: drafts of any row. hopes: chances
    to order the drafts of a row by, in place of its own.
    num_tokens, num_steps, deepest, tokens: without any of these drafts, that is, of newest tokens
    and pinned rows: N, steps of the drafter, the most drafts of a row, tokens expected.
    """

    def __init__(
        self,
        rows: Sequence[Chances | None],
        most: int,
        most_copied: int,
        hopes: dict[int, Sequence[float]] | None = None,
    ) -> None:
        self.batch = len(rows)
        self._drafts = [0 if row else -1 for row in rows]
        self._slots: list[_Slot] = []
        self.num_steps = self.deepest = 0
        self.tokens = 0.0
        for index, row in enumerate(rows):
            if row is None:
                continue
            self.tokens += 1
            if row.pinned is None:
                hoped = (hopes or {}).get(index, row.reached)
                for at, hope in enumerate(hoped[: most_copied if row.copied else most]):
                    needs = 0 if row.copied else at + 1
                    self._slots.append(_Slot(-hope, at, index, needs, row.reached[at]))
                continue
            self._drafts[index] = count = min(row.pinned, len(row.reached))
            self.tokens += sum(row.reached[:count])
            self.deepest = max(self.deepest, count)
            if not row.copied:
                self.num_steps = max(self.num_steps, count)
        self._slots.sort()
        self.num_tokens = sum(self._drafts) + len(rows)
        self.most_steps = max((slot.needs for slot in self._slots), default=0)

    def __len__(self) -> int:
        return len(self._slots)

    def expected(self, counts: Sequence[int], *, hoped: bool = False) -> Floats:
        """Return the tokens of rounds with this many drafts, by their steps: [S + 1, counts].

        It is 0 where there are not that many drafts.
        """
        expected = np.zeros((max(self.num_steps, self.most_steps) + 1, len(counts)))
        for steps in range(self.num_steps, len(expected)):
            gains = (-slot.order if hoped else slot.chance for slot in self._within(steps))
            sums = list(accumulate(gains, initial=self.tokens))
            expected[steps] = [sums[count] if count < len(sums) else 0 for count in counts]
        return expected

    def divide(self, count: int, num_steps: int) -> tuple[int, ...]:
        """Return the drafts of each row, this many beyond the pinned; -1 for a free row."""
        drafts = list(self._drafts)
        for slot in islice(self._within(num_steps), count):
            drafts[slot.row] += 1
        return tuple(drafts)

    def _within(self, steps: int) -> Iterator[_Slot]:
        return (slot for slot in self._slots if slot.needs <= steps)


class _Slot(NamedTuple):
    """A draft of a row. order: minus the chance that it is ordered by. needs: steps."""

    order: float
    at: int
    row: int
    needs: int
    chance: float
