"""How many tokens the next round drafts: the number of most expected tokens per second.

Two estimates meet here: what a round of K drafts takes (`Costs`) and what it yields
(`Acceptance`, one per row). K = 0, plain decoding, competes like any other, so drafting stops when
it does not pay. Plain Python: knows nothing of the device, of clocks, files or requests.

Speed lost against the best fixed K known afterwards, in percent: mean (worst 5%) of 48 simulated
runs of 2,000 rounds each. Baseline: medians of the last 9 timings, a neighbour probed now and then.
Medians: those in place of the pace of `Costs`. Full: a Kalman filter with covariances.

                          baseline     medians      full         this
    steady                 2.9 (29)     1.4 (3)     1.4 (4)     1.4 (4)
    drifting               3.4 (21)     2.6 (7)     1.6 (5)     1.5 (4)
    noisy, 20%             2.3 (7)      2.9 (8)     2.3 (6)     2.7 (9)
    restless pace          2.7 (7)      2.6 (7)     1.9 (9)     1.6 (3)
    costs jump by 1.5x     1.5 (7)      2.2 (14)    1.7 (14)    1.4 (9)
    costs with steps      11.4 (70)     4.9 (49)    4.7 (49)    5.9 (50)
    texts change          -0.5 (38)    -6.6 (5)    -7.0 (2)    -6.8 (2)
    behind plain, if best  1.6 (5)      2.8 (11)    1.8 (9)     1.4 (3)

Steps hide the best K behind worse ones. In 48 more runs there, full lost 3.4 and a variant of this
with another forgetting 4.0.

The table is older than the probes of K that were never timed. With and without them, in runs of
2,000 rounds: 216 on 24 Macs as `mgm estimate` predicts them, 160 on other machines for each row.

                          without      with
    Macs                   2.5 (16)     2.3 (11)
    steady                 1.6 (3)      1.6 (3)
    drifting               1.7 (5)      1.9 (7)
    costs jump by 1.5x     1.3 (4)      1.3 (4)
    restless pace          1.7 (5)      1.8 (4)

On the Macs what is left is mostly 26B-A4B with eight rows, where 7 drafts are the best behind four
worse K (11 to 13 percent), and 31B with four rows (up to 8): it was up to 24.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mlx_gemma_mtp.decode.acceptance import Acceptance
from mlx_gemma_mtp.decode.costs import KNOWN, Cost, Costs
from mlx_gemma_mtp.decode.division import Chances, Division, Exact, Shape
from mlx_gemma_mtp.decode.table import PassClass, PassTable

MOST = 8  # drafts that "auto" goes up to; no published drafter gains beyond

GAIN = 1.01  # the best K is left only for one this much faster
TRIAL_ROUNDS = 8  # a trial without enough timings ends after this many rounds,
TRIAL_PAUSE = 256  # and that K gets the next one this many rounds after its start
PROBE_SHARE = 0.01  # of all time: what probes may lose
HIDDEN_SHARE = 0.0025  # the same for K that were never timed, which a known one may hide
PROBE_ROUNDS = 2  # the engine plays a K that differs from the last one twice, to time it
SAVED_ROUNDS = 8  # rounds' time that may be saved up for probes
SPACING = 6  # rounds from a probe to the next, however little it loses
COLD_ROUNDS = 64  # after a start from nothing; then K = 0, timed first of all, is timed again


@dataclass
class _State:
    """What was chosen for one batch size, by its own count of rounds."""

    round: int = 0
    best: int = 0
    cold_until: int = 0  # the round from which on the machine counts as warm; 0: it does
    trial: int = 0  # the K of the last trial
    tried: dict[int, int] = field(default_factory=dict)  # when a K last had a trial or a probe
    saved: float = 0.0  # seconds, for the next probe of a K that was never timed


class Depth:
    """Chooses K for every round. One for an engine, where rows come and go.

    Normally that is the K of most expected tokens per second. Besides,
    - a K that promises to be it, but whose cost is only guessed, gets a few rounds: a trial. Then
      its cost is known.
    - a K that could be it, if everything unknown turned out well, gets a round now and then: a
      probe. What it is expected to lose is paid from PROBE_SHARE of the time, saved up before.
      While drafts pay, a K that was never timed gets probes from a share of its own: the best K may
      be behind one that is known to be worse.
    - K = 0, timed while the machine was cold, gets one more trial when it is warm. In simulated
      runs whose first rounds were up to 3x as slow, plain decoding otherwise seemed 46% too slow
      (median), and choices were 5.6% behind the best K, not 1.7% (mean).
    """

    def __init__(
        self,
        costs: Costs | None = None,
        pool: Acceptance | None = None,
        *,
        table: PassTable | None = None,
        exact: Exact = "auto",
    ) -> None:
        self.table = table
        self.pass_class: PassClass | None = None
        self._exact = exact
        self._costs = costs or Costs()
        self._pool = pool or Acceptance()
        self._states: dict[int, _State] = {}
        self._saved = 0.0  # seconds

    def row(self, pinned: int | None = None) -> Acceptance:
        """Return the acceptance of a new row; report every round to it with `seen`.

        pinned: the row's own number of drafts; None for a row that takes what is chosen.
        """
        return Acceptance(self._pool, pinned)

    def round_took(self, shape: Shape, seconds: float) -> None:
        """Record the duration of a round, without compilation, prefill or waiting."""
        self._costs.add(shape.batch, shape.num_positions - 1, seconds)

    def round_compiled(self, shape: Shape, seconds: float) -> None:
        """Record how long the compilation of a round took: probes pay for theirs."""
        if shape.num_positions - 1 != self._state(shape.batch).best:
            self._saved -= seconds

    @property
    def plain_tokens_per_second(self) -> float | None:
        """Tokens per second without drafts at batch 1; None until measured."""
        seconds = self._costs.measured(1, 0)
        return None if seconds is None else 1 / seconds

    def plain_at(self, batch: int) -> bool:
        """True if no measured K > 0 beats plain decoding; False if too little was measured."""
        known = self._costs.known(batch)
        speeds = {k: self._pool.expected_tokens(k) / cost.expected for k, cost in known.items()}
        return len(speeds) > 1 and max(speeds, key=speeds.__getitem__) == 0

    def choose(self, rows: Sequence[Chances | None]) -> Division:
        """Return how the next round of these rows is divided; None is a free row.

        Call it once a round; what the last one or two rounds showed may come in later.
        """
        active = [row for row in rows if row is not None]
        k = self._choose(len(rows), active)
        drafts = tuple(
            -1 if row is None else min(k if row.pinned is None else row.pinned, len(row.reached))
            for row in rows
        )
        tokens, most = sum(drafts) + len(drafts), max(drafts)
        drafted = (k for row, k in zip(rows, drafts, strict=True) if row and not row.copied)
        steps = max(drafted, default=0)
        return Division(drafts, Shape(len(rows), steps, most + 1, tokens, tokens))

    def _choose(self, batch: int, rows: Sequence[Chances]) -> int:
        least = max((row.pinned for row in rows if row.pinned is not None), default=0)
        if all(row.pinned is not None for row in rows):
            return least
        state, most = self._state(batch), max(least, MOST)
        state.round += 1
        known = [k for k in self._costs.known(batch) if k <= most]
        if not known or known[-1] < least:
            state.cold_until = state.round + COLD_ROUNDS
            return least
        if 0 < state.cold_until <= state.round:
            state.cold_until = 0
            if state.best > 0 == least:  # else it was timed all the while, or cannot be
                self._costs.forget(batch, 0)
                known = [k for k in known if k]
                state.trial, state.tried[0] = 0, state.round
        trial, start = state.trial, state.tried.get(state.trial, -TRIAL_ROUNDS)
        if trial >= least and trial not in known and state.round < start + TRIAL_ROUNDS:
            return trial

        paused = state.round - TRIAL_PAUSE
        options = [
            k for k in range(least, most + 1) if k in known or state.tried.get(k, paused) <= paused
        ]
        tokens = [
            sum(1 + sum(row.reached[: k if row.pinned is None else row.pinned]) for row in rows)
            for k in range(most + 1)
        ]
        costs = self._costs.estimates(batch, most)

        def merit(k: int) -> float:
            return tokens[k] / costs[k].expected * (GAIN if k == state.best else 1)

        k = max(options, key=merit)
        if k in known:
            state.best = k
            k = self._probe(state, known, options, tokens, costs)
        if k not in known:
            state.trial = k
        if k != state.best:
            state.tried[k] = state.round
        return k

    def _state(self, batch: int) -> _State:
        return self._states.setdefault(batch, _State())

    def _probe(
        self,
        state: _State,
        known: list[int],
        options: list[int],
        tokens: list[float],
        costs: list[Cost],
    ) -> int:
        """Return the K of a probe that is due and paid for, or else the best."""
        best, seconds = state.best, costs[state.best].expected
        speed = tokens[best] / seconds
        per_draft = tokens[best] - tokens[best - 1] if best else tokens[0]

        def hoped(k: int) -> float:
            """The speed of K if it were cheap and all drafts beyond the best K accepted."""
            most = tokens[k] if k < best else tokens[best] + per_draft * (k - best)
            return most / costs[k].least

        def loss_of(k: int) -> float:
            rounds = PROBE_ROUNDS if k in known else PROBE_ROUNDS + KNOWN
            return max(0.0, rounds * (costs[k].expected - tokens[k] / speed))

        able = [k for k in options if k != best and hoped(k) > GAIN * speed]
        rested = state.round >= max(state.tried.values(), default=0) + SPACING
        if best and (hidden := [k for k in able if k not in known]):
            probe = min(hidden, key=lambda k: abs(k - best))  # the nearest
            loss = loss_of(probe)
            state.saved = min(state.saved + HIDDEN_SHARE * seconds, loss)
            if rested and state.saved >= loss:
                state.saved = 0.0
                return probe
        sides = [k for k in able if k < best], [k for k in able if k > best]
        # On either side of the best K the one that should lose least, as a rule the nearest.
        nearest = [max(side, key=lambda k: tokens[k] / costs[k].expected) for side in sides if side]
        probe = min(nearest, key=lambda k: state.tried.get(k, 0), default=best)
        loss = loss_of(probe)
        most = max(loss, SAVED_ROUNDS * seconds)
        self._saved = max(min(self._saved + PROBE_SHARE * seconds, most), -most)
        if probe == best or self._saved < loss or not rested:
            return best
        self._saved -= loss
        return probe

    def to_json(self) -> dict[str, Any]:
        """Return what the next run can start from."""
        table = self.table and self.table.to_json()
        return {"costs": self._costs.to_json(), "acceptance": self._pool.rates, "table": table}

    @classmethod
    def from_json(cls, saved: Any, exact: Exact = "auto") -> Depth:
        """Start from what an earlier run found.

        Raises KeyError, ValueError, TypeError, AttributeError or ArithmeticError for anything that
        `to_json` did not make.
        """
        table = saved.get("table")
        return cls(
            Costs.from_json(saved["costs"]),
            Acceptance.from_json(saved["acceptance"]),
            table=None if table is None else PassTable.from_json(table),
            exact=exact,
        )
