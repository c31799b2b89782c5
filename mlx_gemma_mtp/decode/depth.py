"""How the next round is divided: as yields the most expected tokens per second.

Two estimates meet here: what a round takes (`Costs`) and what it yields (`Chances` of each row).
A round without drafts, plain decoding, competes like any other, so drafting stops when it does not
pay. Plain Python: knows nothing of the device, of clocks, files or requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from mlx_gemma_mtp.decode.acceptance import Acceptance
from mlx_gemma_mtp.decode.costs import MEASURED, WIDTHS, Costs
from mlx_gemma_mtp.decode.division import Chances, Division, Exact, Floats, Shape, Slots
from mlx_gemma_mtp.decode.params import MAX_DRAFT_TOKENS
from mlx_gemma_mtp.decode.table import PassClass, PassTable

MOST = 8  # drafts that "auto" goes up to; no published drafter gains beyond
MOST_ROWS = 8  # that a class of passes should reach
POSITIONS = (2, 4, 8, 16)  # of a row if copies need more than the drafter's: few shapes

GAIN = 1.01  # the best round is left only for one this much faster
EXACT_GAIN = 1.02  # what "auto" pays for passes that agree
HOLD = 3  # rounds of a new shape: the first is compiled, and two are timed together
PROBE_SHARE = 0.01  # of all rounds: what probes may lose
MOST_SAVED = 8.0  # rounds that may be saved up for probes
SPACING = 6  # rounds from a probe to the next, however little it loses
LUCK = 1.0  # deviations by which a probe hopes that a cost is lower


class _Pass(NamedTuple):
    """A pass of the target. exact: it is in the class in use."""

    num_tokens: int
    width: int
    exact: bool


class _Rounds(NamedTuple):
    """Rounds to choose from, and what is expected of them: [steps + 1, passes].

    No tokens: there is no such round. hoped: tokens if hopes come true.
    """

    slots: Slots
    passes: list[_Pass]
    tokens: Floats
    hoped: Floats
    seconds: Floats

    def pick(self, steps: int, at: int) -> _Choice:
        """Return one of them."""
        tokens, seconds = float(self.tokens[steps, at]), float(self.seconds[steps, at])
        return _Choice(self.slots, self.passes[at], steps, tokens, seconds)


class _Choice(NamedTuple):
    """A round, and what is expected of it."""

    slots: Slots
    one: _Pass
    num_steps: int
    tokens: float
    seconds: float

    @property
    def drafts(self) -> tuple[int, ...]:
        """Of each row; -1 for a free one."""
        return self.slots.divide(self.one.num_tokens - self.slots.num_tokens, self.num_steps)


@dataclass
class _State:
    """What was chosen for one batch size, by its own count of rounds."""

    division: Division | None = None  # the last one
    best: tuple[_Pass, int] | None = None  # and the steps
    held: int = 0  # rounds for which the division stays
    round: int = 0
    probed: int = 0  # the round of the last probe
    turn: int = 0  # of probes
    saved: float = 0.0  # rounds, for probes


class Depth:
    """Divides every round. One for an engine, where rows come and go.

    Normally it takes the round of most expected tokens per second. Besides,
    - one that would be it if its uncertain cost turned out well gets a few rounds,
    - and so does one that would be it if further drafts of a row were accepted; rows take turns.
    What such a probe is expected to lose is paid from PROBE_SHARE of the rounds, saved up before.

    exact: whether passes stay in `pass_class`; "auto": where that costs less than EXACT_GAIN.
    pass_class: passes that agree; None if there are none, or exact is False.
    """

    def __init__(
        self,
        costs: Costs | None = None,
        pool: Acceptance | None = None,
        *,
        table: PassTable | None = None,
        exact: Exact = "auto",
    ) -> None:
        self._pool = pool or Acceptance()
        self._exact = exact
        self.table = table
        if costs is not None:
            self._costs = costs

    @property
    def table(self) -> PassTable | None:
        """What a probe measured. A new one replaces what was learned of costs."""
        return self._costs.table

    @table.setter
    def table(self, table: PassTable | None) -> None:
        self._costs = Costs(table)
        self._states: dict[int, _State] = {}
        self._passes: dict[tuple[int, int, bool], list[_Pass]] = {}
        self.pass_class: PassClass | None = None
        if table is not None and self._exact is not False:
            self.pass_class = table.best_class(MOST_ROWS)

    def row(self, pinned: int | None = None) -> Acceptance:
        """Return the acceptance of a new row; report every round to it with `seen`.

        pinned: the row's own number of drafts; None for a row that takes what is chosen.
        """
        return Acceptance(self._pool, pinned)

    def round_took(self, shape: Shape, seconds: float) -> None:
        """Record the duration of a round, without compilation, prefill or waiting."""
        self._costs.add(shape, seconds)

    def round_compiled(self, shape: Shape, seconds: float) -> None:
        """Record how long the compilation of a round took: probes pay for theirs."""
        state = self._state(shape.batch)
        one = shape.num_tokens, shape.width
        if state.best and (*state.best[0][:2], state.best[1]) != (*one, shape.num_steps):
            took = self._costs.seconds(shape.batch, (one,), shape.num_steps)[-1, 0]
            state.saved -= seconds / took

    @property
    def plain_tokens_per_second(self) -> float | None:
        """Tokens per second without drafts at batch 1; None until measured."""
        plain = self._best(self._rounds([Chances([])]))
        if self._costs.timings(1)[plain.one.width] < MEASURED:
            return None
        return 1 / plain.seconds

    def plain_at(self, batch: int) -> bool:
        """True if no drafts are expected to beat plain decoding; False if too little was timed."""
        if len(self._costs.timings(batch)) < 2:
            return False
        rows = [Chances(self._pool.reached)] * batch
        return not self._best(self._rounds(rows)).num_steps

    def choose(self, rows: Sequence[Chances | None]) -> Division:
        """Return how the next round of these rows is divided; None is a free row, not all are.

        Call it once a round; what the last one or two rounds showed may come in later.
        """
        state = self._state(len(rows))
        state.round += 1
        state.saved = min(state.saved + PROBE_SHARE, MOST_SAVED)
        last = state.division
        if last is not None and state.held and _fits(last, rows):
            state.held -= 1
            return last
        rounds = self._rounds(rows)
        best = self._best(rounds, state.best)
        state.best = best.one, best.num_steps
        division = self._division(self._probe(state, rows, rounds, best) or best)
        state.held = 0 if last is not None and last.shape == division.shape else HOLD - 1
        state.division = division
        return division

    def _state(self, batch: int) -> _State:
        return self._states.setdefault(batch, _State())

    def _rounds(
        self, rows: Sequence[Chances | None], hopes: dict[int, list[float]] | None = None
    ) -> _Rounds:
        """Return what there is to choose from."""
        kept = self.pass_class
        most = MAX_DRAFT_TOKENS if kept is None else kept.most_positions - 1
        slots = Slots(rows, min(MOST, most), most, hopes)
        exact = kept is not None and slots.deepest <= most and slots.num_tokens <= kept.most_width
        if self._exact is True and kept is not None and not exact:
            capped = [row and Chances(row.reached[: row.pinned], None, row.copied) for row in rows]
            fewer = Slots(capped, min(MOST, most), most, hopes)
            if fewer.num_tokens <= kept.most_width:  # plain decoding fits: drafts are given up
                slots, exact = fewer, True
        passes = self._passes_of(slots.num_tokens, len(slots), exact)
        counts = [one.num_tokens - slots.num_tokens for one in passes]
        tokens = slots.expected(counts)
        hoped = slots.expected(counts, hoped=True) if hopes else tokens
        shapes = tuple((one.num_tokens, one.width) for one in passes)
        seconds = self._costs.seconds(len(rows), shapes, len(tokens) - 1)
        return _Rounds(slots, passes, tokens, hoped, seconds)

    def _passes_of(self, least: int, more: int, exact: bool) -> list[_Pass]:
        """Return the passes over a number of tokens, and over up to so many more: few of them."""
        if (found := self._passes.get((least, more, exact))) is not None:
            return found
        numbers = {least, *(count for count in WIDTHS if least < count <= least + more)}
        numbers.add(min(least + more, max(least, WIDTHS[-1])))
        kept, table = self.pass_class, self.table
        found = []
        for number in sorted(numbers):
            if exact and kept and table and number <= kept.most_width:
                width = table.cheapest(number, kept.least_width, kept.most_width)
                found.append(_Pass(number, width, True))
            if not (exact and self._exact is True):
                width = number if table is None else table.cheapest(number, 1)
                found.append(_Pass(number, width, False))
        self._passes[least, more, exact] = found
        return found

    def _best(self, rounds: _Rounds, last: tuple[_Pass, int] | None = None) -> _Choice:
        """Return the round of most tokens per second, or the last one if it is nearly that."""
        merits = rounds.tokens / rounds.seconds
        merits *= [EXACT_GAIN if one.exact else 1.0 for one in rounds.passes]
        if last and last[0] in rounds.passes and last[1] < len(merits):
            merits[last[1], rounds.passes.index(last[0])] *= GAIN
        steps, at = divmod(int(merits.argmax()), merits.shape[1])
        return rounds.pick(steps, at)

    def _division(self, chosen: _Choice) -> Division:
        drafts, (num_tokens, width, exact) = chosen.drafts, chosen.one
        positions = 1 + max(chosen.num_steps, *drafts)
        if positions > 1 + chosen.num_steps:
            positions = next(count for count in POSITIONS if count >= positions)
        if exact and self.pass_class:
            positions = max(positions, self.pass_class.least_positions)
        shape = Shape(len(drafts), chosen.num_steps, positions, num_tokens, width)
        return Division(drafts, shape, exact)

    def _probe(
        self, state: _State, rows: Sequence[Chances | None], rounds: _Rounds, best: _Choice
    ) -> _Choice | None:
        """Return a round that is due, may turn out to be the best, and is paid for."""
        if state.round < state.probed + SPACING or state.saved <= 0:
            return None
        if state.turn % 2:
            probe = self._cheaper(rounds, best)
        else:
            probe = self._likelier(rows, best, state.turn // 2 % len(rows))
        loss = 0.0
        if probe is not None:
            loss = HOLD * max(0, probe.seconds / best.seconds - probe.tokens / best.tokens)
            if loss > state.saved:
                return None
            state.probed = state.round
        state.saved -= loss
        state.turn += 1
        return probe

    def _cheaper(self, rounds: _Rounds, best: _Choice) -> _Choice | None:
        """Return what is the best if the costs that are uncertain are low."""
        batch, widths = rounds.slots.batch, tuple(one.width for one in rounds.passes)
        luck = np.exp(LUCK * self._costs.doubt(batch, widths, best.one.width))
        merits = rounds.tokens / rounds.seconds * luck
        steps, at = divmod(int(merits.argmax()), merits.shape[1])
        better = merits[steps, at] > GAIN * best.tokens / best.seconds
        return rounds.pick(steps, at) if better else None

    def _likelier(
        self, rows: Sequence[Chances | None], best: _Choice, index: int
    ) -> _Choice | None:
        """Return what loses least and is the best if all further drafts of a row are accepted."""
        row, count = rows[index], best.drafts[index]
        if row is None or row.pinned is not None or count >= len(row.reached):
            return None
        last = row.reached[count - 1] if count else 1.0
        hopes = [*row.reached[:count], *[last] * (len(row.reached) - count)]
        rounds = self._rounds(rows, {index: hopes})
        speed = best.tokens / best.seconds
        losses = rounds.seconds * speed - rounds.tokens
        losses[rounds.hoped <= GAIN * speed * rounds.seconds] = np.inf
        for each in losses.argsort(axis=None)[: np.isfinite(losses).sum()]:
            probe = rounds.pick(*divmod(int(each), losses.shape[1]))
            if probe.drafts[index] > count:
                return probe
        return None

    def to_json(self) -> dict[str, Any]:
        """Return what the next run can start from."""
        table = None if self.table is None else self.table.to_json()
        return {"costs": self._costs.to_json(), "acceptance": self._pool.rates, "table": table}

    @classmethod
    def from_json(cls, saved: Any, exact: Exact = "auto") -> Depth:
        """Start from what an earlier run found.

        Raises KeyError, ValueError, TypeError, AttributeError or ArithmeticError for anything that
        `to_json` did not make.
        """
        found = saved["table"]
        table = None if found is None else PassTable.from_json(found)
        costs, pool = saved["costs"], Acceptance.from_json(saved["acceptance"])
        return cls(Costs.from_json(costs, table), pool, table=table, exact=exact)


def _fits(division: Division, rows: Sequence[Chances | None]) -> bool:
    """True if these rows can take as many drafts, and pinned ones want them."""
    for row, count in zip(rows, division.drafts, strict=True):
        if row is None or count < 0:
            if row or count >= 0:
                return False
        elif count > len(row.reached) or row.pinned not in (None, count):
            return False
    return True
