"""The rounds that there are to choose from, with their expected tokens and seconds.

Few numbers of tokens, each at its cheapest width; padded into the class of passes whose bits agree.
Knows what a round yields and costs, not which one is wanted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from mlx_gemma_mtp.decode.costs import WIDTHS, Costs
from mlx_gemma_mtp.decode.division import Chances, Division, Exact, Floats, Shape, Slots
from mlx_gemma_mtp.decode.params import MAX_DRAFT_TOKENS
from mlx_gemma_mtp.decode.table import PassClass

MOST_ROWS = 8  # that a class of passes should reach
POSITIONS = (2, 4, 8, 16)  # of a row if copies need more than the drafter's: few shapes


class Pass(NamedTuple):
    """A pass of the target. exact: it is in the class in use."""

    num_tokens: int
    width: int
    exact: bool


class Options(NamedTuple):
    """Rounds, and what is expected of them: [steps + 1, passes].

    No tokens: there is no such round. hoped: tokens if hopes come true.
    """

    slots: Slots
    passes: list[Pass]
    tokens: Floats
    hoped: Floats
    seconds: Floats

    def best(self, merits: Floats) -> Option:
        """Return the one of most merit."""
        return self.at(int(merits.argmax()))

    def at(self, index: int) -> Option:
        """Return the one at this place of the flattened arrays."""
        steps, at = divmod(index, len(self.passes))
        tokens, seconds = float(self.tokens[steps, at]), float(self.seconds[steps, at])
        return Option(self.slots, self.passes[at], steps, tokens, seconds)

    def exact(self) -> Options:
        """Return only those in the class in use."""
        return self._only([one.exact for one in self.passes])

    def plain(self) -> Options:
        """Return only those with the fewest drafts: none, unless rows are pinned."""
        return self._only([one.num_tokens == self.slots.num_tokens for one in self.passes])

    def _only(self, kept: list[bool]) -> Options:
        return self._replace(tokens=self.tokens * kept, hoped=self.hoped * kept)


class Option(NamedTuple):
    """One of them."""

    slots: Slots
    target: Pass
    num_steps: int
    tokens: float
    seconds: float

    @property
    def speed(self) -> float:
        """Expected tokens per second."""
        return self.tokens / self.seconds

    @property
    def drafts(self) -> tuple[int, ...]:
        """Of each row; -1 for a free one."""
        return self.slots.divide(self.target.num_tokens - self.slots.num_tokens, self.num_steps)


class Choices:
    """Finds the options for rows.

    most: drafts of a row that the drafter makes; copies may be more. exact: True leaves only passes
    of `pass_class`, where rows fit into it. pass_class: the passes that agree; None if there are
    none, or exact is False.
    """

    def __init__(self, costs: Costs, exact: Exact, most: int) -> None:
        self.costs = costs
        self.pass_class: PassClass | None = None
        if costs.table is not None and exact is not False:
            self.pass_class = costs.table.best_class(MOST_ROWS)
        self._exact = exact
        # Passes are alike then only if nothing but their tokens is computed.
        self._unpadded = costs.table is None or (exact is True and self.pass_class is None)
        self._most = most
        self._passes: dict[tuple[int, int, bool], list[Pass]] = {}

    def of(
        self, rows: Sequence[Chances | None], hopes: dict[int, Sequence[float]] | None = None
    ) -> Options:
        """Return the options of rows; None is a free one. hopes: as of `Slots`."""
        kept = self.pass_class
        most = MAX_DRAFT_TOKENS if kept is None else kept.most_positions - 1
        slots = Slots(rows, min(self._most, most), most, hopes)
        exact = kept is not None and slots.deepest <= most and slots.num_tokens <= kept.most_width
        if self._exact is True and kept is not None and not exact:
            free = [row and Chances(row.reached[: row.pinned], None, row.copied) for row in rows]
            fewer = Slots(free, min(self._most, most), most, hopes)
            if fewer.num_tokens <= kept.most_width:  # pinned rows give up drafts
                slots, exact = fewer, True
        passes = self._passes_of(slots.num_tokens, len(slots), exact)
        counts = [one.num_tokens - slots.num_tokens for one in passes]
        tokens = slots.expected(counts)
        hoped = slots.expected(counts, hoped=True) if hopes else tokens
        shapes = tuple((one.num_tokens, one.width) for one in passes)
        seconds = self.costs.seconds(len(rows), shapes, len(tokens) - 1)
        return Options(slots, passes, tokens, hoped, seconds)

    def division(self, option: Option) -> Division:
        """Return the division that an option stands for.

        T is the drafter's steps and one; more only for copies, and for the class in use.
        """
        drafts, (num_tokens, width, exact) = option.drafts, option.target
        positions = 1 + max(option.num_steps, *drafts)
        if positions > 1 + option.num_steps:
            positions = next(count for count in POSITIONS if count >= positions)
        if exact and self.pass_class:
            positions = min(
                max(positions, self.pass_class.least_positions), self.pass_class.most_positions
            )
        shape = Shape(len(drafts), option.num_steps, positions, num_tokens, width)
        return Division(drafts, shape, exact)

    def _passes_of(self, least: int, more: int, exact: bool) -> list[Pass]:
        """Return passes over a number of tokens, and over some numbers up to so many more."""
        if (found := self._passes.get((least, more, exact))) is not None:
            return found
        numbers = {least, *(count for count in WIDTHS if least < count <= least + more)}
        numbers.add(min(least + more, max(least, WIDTHS[-1])))
        kept, table = self.pass_class, self.costs.table
        found = []
        for number in sorted(numbers):
            if exact and kept and table and number <= kept.most_width:
                width = table.cheapest(number, kept.least_width, kept.most_width)
                found.append(Pass(number, width, True))
            if not (exact and self._exact is True):
                width = number if self._unpadded or not table else table.cheapest(number, 1)
                found.append(Pass(number, width, False))
        self._passes[least, more, exact] = found
        return found
