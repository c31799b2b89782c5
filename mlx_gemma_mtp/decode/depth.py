"""How the next round is divided: as yields the most expected tokens per second.

Two estimates meet here: what a round takes (`Costs`) and what it yields (`Chances` of each row).
A round without drafts, plain decoding, competes like any other, so drafting stops when it does not
pay. Knows nothing of the device, of clocks, files or requests.

Speed lost against the best division known afterwards, in percent, mean (worst) of simulated runs of
800 rounds each, learning included: on 8 Macs as `mgm estimate` predicts them, with 1 to 8 rows. The
table is off by 7 % in every entry, and of a shorter context (`tests/helpers/gains.py play`).

                                    with a table   without
    120 runs, rows alike               1.7 (5.0)   2.6 (11.6)
    24 runs, rows that differ          2.2 (4.7)   3.2 (5.1)
    all, behind plain decoding       worst   3.0       3.7
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlx_gemma_mtp.decode.acceptance import Acceptance
from mlx_gemma_mtp.decode.costs import Costs
from mlx_gemma_mtp.decode.division import Chances, Division, Exact, Shape
from mlx_gemma_mtp.decode.options import Choices, Option, Options, Pass
from mlx_gemma_mtp.decode.params import MAX_DRAFT_TOKENS
from mlx_gemma_mtp.decode.table import PassClass, PassTable

MOST = 8  # drafts that "auto" goes up to; no published drafter gains beyond

GAIN = 1.01  # the best round is left only for one this much faster
EXACT_GAIN = 1.02  # what "auto" pays for passes that agree
HOLD = 3  # rounds of a new shape: the first is compiled, and two are timed together
PROBE_SHARE = 0.01  # of all rounds: what probes may lose
MOST_SAVED = 8.0  # rounds that may be saved up for probes
PROBE_DRAFTS = 2  # that a row tries beyond what it has
KNOWN = 40.0  # verified drafts after which "auto" no longer leaves the class to try any
SPACING = 6  # rounds from a probe to the next, however little it loses
LUCK = 2.0  # deviations by which a probe hopes that a cost is lower


@dataclass
class _State:
    """What was chosen for one batch size, by its own count of rounds."""

    division: Division | None = None  # the last one
    best: tuple[Pass, int] | None = None  # and the steps
    held: int = 0  # rounds for which the division stays
    round: int = 0
    probed: int = 0  # the round of the last probe
    turn: int = 0  # of probes
    saved: float = 4.0  # rounds, for probes


class Depth:
    """Divides every round. One for an engine, where rows come and go.

    Normally it takes the round of most expected tokens per second. Besides,
    - one that would be it if its uncertain cost turned out well gets a few rounds,
    - so does one that would be it if further drafts of a row were accepted; rows take turns,
    - and so does plain decoding after the machine changed: busy, it makes drafts look cheap.
    What such a probe is expected to lose is paid from PROBE_SHARE of the rounds, saved up before;
    for plain decoding also afterwards.

    exact: whether passes stay in `pass_class`; "auto": where that costs less than EXACT_GAIN. Where
    the class has no room for drafts, "auto" leaves it a few times to see how they do at all, and
    once to time a width that may be worth it.
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
        self._use(costs or Costs(table))

    def _use(self, costs: Costs) -> None:
        self._rounds = Choices(costs, self._exact, MOST)
        self._states: dict[int, _State] = {}

    @property
    def table(self) -> PassTable | None:
        """What a probe measured. A new one replaces what was learned of costs."""
        return self._rounds.costs.table

    @table.setter
    def table(self, table: PassTable | None) -> None:
        self._use(Costs(table))

    @property
    def pass_class(self) -> PassClass | None:
        """The passes that agree with each other; None if there are none, or exact is False."""
        return self._rounds.pass_class

    def row(self) -> Acceptance:
        """Return the acceptance of a new row; report every round to it with `seen`."""
        return Acceptance(self._pool)

    def round_took(self, shape: Shape, seconds: float) -> None:
        """Record the duration of a round, without compilation, prefill or waiting."""
        self._rounds.costs.add(shape, seconds)

    def round_compiled(self, shape: Shape, seconds: float) -> None:
        """Record how long the compilation of a round took: probes pay for theirs."""
        state = self._state(shape.batch)
        one = shape.num_tokens, shape.width
        if state.best and (*state.best[0][:2], state.best[1]) != (*one, shape.num_steps):
            took = self._rounds.costs.seconds(shape.batch, (one,), shape.num_steps)[-1, 0]
            state.saved = max(state.saved - float(seconds / took), -MOST_SAVED)

    @property
    def plain_tokens_per_second(self) -> float | None:
        """Tokens per second without drafts at batch 1; None until measured."""
        if not self._rounds.costs.measured_plain(1):
            return None
        return self._best(self._rounds.of([Chances([])])).speed

    @property
    def num_timed(self) -> int:
        """How many shapes of passes were timed, in this run or an earlier one."""
        return self._rounds.costs.num_timed

    def plain_at(self, batch: int) -> bool:
        """True if no drafts are expected to beat plain decoding; False if too little was timed."""
        if len(self._rounds.costs.timed(batch)) < 2:
            return False
        rows = [Chances(self._pool.reached)] * batch
        return not self._best(self._rounds.of(rows)).num_steps

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
        options = self._rounds.of(rows)
        best = self._best(options, state.best)
        state.best = best.target, best.num_steps
        division = self._rounds.division(self._probe(state, rows, options, best) or best)
        state.held = 0 if last is not None and last.shape == division.shape else HOLD - 1
        state.division = division
        return division

    def _state(self, batch: int) -> _State:
        return self._states.setdefault(batch, _State())

    def _best(self, options: Options, last: tuple[Pass, int] | None = None) -> Option:
        """Return the round of most tokens per second, or the last one if it is nearly that."""
        merits = options.tokens / options.seconds
        merits *= [EXACT_GAIN if one.exact else 1.0 for one in options.passes]
        if last and last[0] in options.passes and last[1] < len(merits):
            merits[last[1], options.passes.index(last[0])] *= GAIN
        return options.best(merits)

    def _probe(
        self, state: _State, rows: Sequence[Chances | None], options: Options, best: Option
    ) -> Option | None:
        """Return a round that is due, may turn out to be the best, and is paid for."""
        if state.round < state.probed + SPACING or state.saved <= 0:
            return None
        due = self._rounds.costs.plain_due(len(rows)) and not options.slots.deepest
        probe: Option | None
        if due:
            probe = self._best((options.exact() if best.target.exact else options).plain())
        elif state.turn % 2:
            probe = self._cheaper(options, best)
        else:
            probe = self._likelier(rows, best, state.turn // 2 % len(rows))
        loss = 0.0
        if probe is not None:
            loss = HOLD * max(0, probe.seconds / best.seconds - probe.tokens / best.tokens)
            if loss > state.saved and not due:
                state.turn += loss > MOST_SAVED  # it can never be paid: another's turn
                return None
            state.probed = state.round
        state.saved -= loss
        state.turn += 1
        return probe

    def _cheaper(self, options: Options, best: Option) -> Option | None:
        """Return what is the best if the costs that are uncertain are low."""
        batch, widths = options.slots.batch, tuple(one.width for one in options.passes)
        doubts = LUCK * self._rounds.costs.doubt(batch, widths, best.target.width)
        if not self._rounds.costs.measured_plain(batch):  # a slip must not rule out plain decoding
            doubts *= [2.0 if one.num_tokens <= batch else 1.0 for one in options.passes]
        luck = np.exp(doubts)
        merits = options.tokens / options.seconds * luck
        if best.target.exact:  # the class is left to time a width once
            timed = self._rounds.costs.timed(batch)
            merits *= [one.exact or one.width not in timed for one in options.passes]
        probe = options.best(merits)
        return probe if merits.max() > GAIN * best.speed else None

    def _likelier(self, rows: Sequence[Chances | None], best: Option, index: int) -> Option | None:
        """Return the round that loses least of those with more drafts of a row.

        None if it would change nothing that all further drafts of all rows were accepted.
        """
        drafts, row = best.drafts, rows[index]
        if row is None or row.pinned is not None or len(row.reached) <= drafts[index]:
            return None
        every = {at: _hopes(row, drafts[at], MAX_DRAFT_TOKENS) for at, row in _unpinned(rows)}
        hoped = self._rounds.of(rows, every)
        options = self._rounds.of(rows, {index: _hopes(row, drafts[index], PROBE_DRAFTS)})
        gain = GAIN * (EXACT_GAIN if best.target.exact else 1)
        if (hoped.hoped <= gain * best.speed * hoped.seconds).all():
            return None
        # No probe makes an output another one, unless it is the only way to know of any drafts.
        kinds = [options.exact()] if best.target.exact else [options]
        if best.target.exact and self._pool.verified < KNOWN:
            kinds.append(options)
        for some in kinds:
            losses = some.seconds * best.speed - some.tokens
            losses[some.tokens == 0] = np.inf
            for each in losses.argsort(axis=None)[: np.isfinite(losses).sum()]:
                probe = some.at(int(each))
                if probe.drafts[index] > drafts[index]:
                    return probe
        return None

    def to_json(self) -> dict[str, Any]:
        """Return what the next run can start from."""
        table = None if self.table is None else self.table.to_json()
        return {
            "costs": self._rounds.costs.to_json(),
            "acceptance": self._pool.rates,
            "table": table,
        }

    @classmethod
    def from_json(cls, saved: Any, exact: Exact = "auto") -> Depth:
        """Start from what an earlier run found.

        Raises KeyError, ValueError, TypeError, AttributeError or ArithmeticError for anything that
        `to_json` did not make.
        """
        found = saved["table"]
        table = None if found is None else PassTable.from_json(found)
        costs, pool = saved["costs"], Acceptance.from_json(saved["acceptance"])
        return cls(Costs.from_json(costs, table), pool, exact=exact)


def _fits(division: Division, rows: Sequence[Chances | None]) -> bool:
    """True if these rows can take as many drafts, and pinned ones want them."""
    for row, count in zip(rows, division.drafts, strict=True):
        if row is None or count < 0:
            if row is not None or count >= 0:
                return False
            continue
        most = len(row.reached) if row.copied else min(len(row.reached), division.shape.num_steps)
        if count > most or row.pinned not in (None, count):
            return False
    return True


def _unpinned(rows: Sequence[Chances | None]) -> list[tuple[int, Chances]]:
    return [(at, row) for at, row in enumerate(rows) if row is not None and row.pinned is None]


def _hopes(row: Chances, count: int, more: int) -> Sequence[float]:
    """Return the chances of a row if so many drafts after the first `count` are accepted."""
    last = row.reached[count - 1] if count else 1.0
    hoped = len(row.reached[count : count + more])
    return [*row.reached[:count], *[last] * hoped, *row.reached[count + hoped :]]
