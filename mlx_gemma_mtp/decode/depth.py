"""How many tokens the next round drafts: the number of most expected tokens per second.

Two estimates meet here: what a round of K drafts takes (`Costs`) and what it yields
(`Acceptance`, one per row). K = 0, plain decoding, competes like any other, so drafting ends where
it does not pay. Plain Python: knows nothing of the device, of clocks, files or requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from mlx_gemma_mtp.decode.acceptance import Acceptance
from mlx_gemma_mtp.decode.costs import KNOWN, Cost, Costs

MOST = 8  # drafts that "auto" goes up to; no published drafter gains beyond

KEEP_GAIN = 1.01  # a K is left only for one better than this,
NEW_GAIN = 1.015  # and better than this as well for one that is not compiled
MOST_NEW_GAIN = 1.05  # or up to this, where its gain would take longer than
COMPILED_ROUNDS = 200  # rounds to make up for the compilation
TRIAL_ROUNDS = 8  # rounds after which a trial without enough clean timings ends,
TRIAL_PAUSE = 256  # and rounds from its begin to the next one of that K

PROBE_SHARE = 0.006  # of all time: what probes may lose
PROBE_GAIN = 1.02  # what a probed K could gain, if all that is unknown turned out well
PATIENCE = 3  # probes' losses saved up before the first; then lucky ones follow at once
SAVED_ROUNDS = 8  # rounds' time that may be saved up otherwise
SPACING = 6  # rounds between two probes, unless the last one was lucky
LUCK = 1.005  # a lucky probe raised the tokens expected of its K by this


class _View(NamedTuple):
    """What is known of every K now: lists go by K."""

    rows: Sequence[Acceptance]
    tokens: list[float]
    costs: list[Cost]
    known: list[int]
    options: list[int]  # the K to choose from

    def speed(self, k: int) -> float:
        """Tokens per second."""
        return self.tokens[k] / self.costs[k].expected

    def hope(self, k: int, best: int, *, doubted: bool) -> float:
        """Tokens per second if the drafts that the best K does not verify come true.

        doubted: and if a known cost is as low as it may be.
        """
        tokens = sum(row.expected_tokens(k, certain_after=best) for row in self.rows)
        cost = self.costs[k]
        return tokens / (cost.least if doubted or k not in self.known else cost.expected)


@dataclass
class _Standing:
    """Where the choice stands for one batch size. Times are in its rounds."""

    round: int = 0
    best: int = 0
    compiled: set[int] = field(default_factory=set)
    compiling: float = 0.0  # seconds it took last
    trial: int | None = None
    tried: dict[int, int] = field(default_factory=dict)  # when the last trial of K began
    probed: dict[int, int] = field(default_factory=dict)  # when the last probe of K was made
    probe: int | None = None  # the last one,
    tokens: float = 0.0  # and what was expected of it


class Depth:
    """Chooses K for every round. One for an engine, where rows come and go.

    Normally that is the K of most expected tokens per second. Besides,
    - a K that promises to be it, but whose cost is only guessed, gets a few rounds: a trial. Then
      the cost is known, so there are at most MOST of them for a batch size.
    - a K that could be it, if all that is unknown turned out well, gets a round now and then: a
      probe. What it is expected to lose is paid from PROBE_SHARE of the time, saved up before.
      On either side of the best it is the one that should lose least, as a rule the nearest.
    """

    def __init__(self, costs: Costs | None = None, pool: Acceptance | None = None) -> None:
        self._costs = costs or Costs()
        self._pool = pool or Acceptance()
        self._standings: dict[int, _Standing] = {}
        self._saved = 0.0  # seconds

    def row(self, pinned: int | None = None) -> Acceptance:
        """The acceptance of a new row: tell it with `seen` what every round showed.

        pinned: the row's own number of drafts; None for a row that takes what is chosen.
        """
        return Acceptance(self._pool, pinned)

    def round_took(self, batch: int, num_draft_tokens: int, seconds: float) -> None:
        """A round took so long, and nothing but the round: no compilation, no prefill, no wait."""
        self._costs.add(batch, num_draft_tokens, seconds)
        self._standing(batch).compiled.add(num_draft_tokens)

    @property
    def plain_tokens_per_second(self) -> float | None:
        """What one text alone gets without drafts; None where that was not measured."""
        seconds = self._costs.measured(1, 0)
        return None if seconds is None else 1 / seconds

    def plain_at(self, batch: int) -> bool:
        """Does no known number of drafts beat none? False where too little was measured."""
        known = self._costs.known(batch)
        if len(known) < 2:
            return False
        of = self._costs.estimates(batch, known[-1])
        return not max(known, key=lambda k: self._pool.expected_tokens(k) / of[k].expected)

    def round_compiled(self, batch: int, num_draft_tokens: int, seconds: float) -> None:
        """Before a round could be played, it took so long to compile it.

        Whoever reports it spares compilations: probes of known costs pay for theirs, and a K that
        is compiled is not left for a slightly better one that is not. Where a K is compiled again
        the buffers have changed, and all others would be as well.
        """
        here = self._standing(batch)
        if num_draft_tokens in here.compiled:
            here.compiled.clear()
        here.compiled.add(num_draft_tokens)
        here.compiling = seconds
        if num_draft_tokens not in (here.best, here.trial):
            self._saved -= seconds

    def choose(self, batch: int, rows: Sequence[Acceptance]) -> int:
        """K for the next round of a batch of this size, in which `rows` are active.

        At least what the largest pinned row takes. Call it once a round; what the last one or two
        rounds showed may come in later.
        """
        least = max((row.pinned for row in rows if row.pinned is not None), default=0)
        if all(row.pinned is not None for row in rows):
            return least
        here = self._standing(batch)
        here.round += 1
        return self._choose(batch, rows, least, here)

    def _standing(self, batch: int) -> _Standing:
        return self._standings.setdefault(batch, _Standing())

    def _choose(self, batch: int, rows: Sequence[Acceptance], least: int, here: _Standing) -> int:
        most = max(least, MOST)
        known = [k for k in self._costs.known(batch) if k <= most]
        if not known or known[-1] < least:
            return least
        if here.trial is not None:
            going = here.round < here.tried[here.trial] + TRIAL_ROUNDS
            if going and here.trial >= least and here.trial not in known:
                return here.trial
            here.trial = None

        pause = here.round - TRIAL_PAUSE
        view = _View(
            rows,
            tokens=[sum(row.expected_tokens(k) for row in rows) for k in range(most + 1)],
            costs=self._costs.estimates(batch, most),
            known=known,
            options=[
                k for k in range(least, most + 1) if k in known or here.tried.get(k, pause) <= pause
            ],
        )
        compiling = here.compiling / (COMPILED_ROUNDS * view.costs[least].expected)
        new_gain = min(max(NEW_GAIN, 1 + compiling), MOST_NEW_GAIN)

        def merit(k: int) -> float:
            gain = KEEP_GAIN if k == here.best else 1 if k in here.compiled else 1 / new_gain
            return gain * view.speed(k)

        k = max(view.options, key=merit)
        if k in known:
            here.best = k
            k = self._probe(view, here)
        if k not in known:
            here.trial = k
            here.tried[k] = here.round
        return k

    def _probe(self, view: _View, here: _Standing) -> int:
        """The K of a probe that is due and paid for, or else the best."""
        best = here.best
        seconds, speed = view.costs[best].expected, view.speed(best)

        def cheapest(side: list[int]) -> int:
            """Of those that could win the one that should lose least; the nearest of equals.

            The cost of a known one is doubted only where none could win otherwise.
            """
            for doubted in (False, True):
                able = [k for k in side if view.hope(k, best, doubted=doubted) > PROBE_GAIN * speed]
                if able:
                    return max(able, key=view.speed)
            return best

        above = cheapest([k for k in view.options if k > best])
        below = cheapest([k for k in reversed(view.options) if k < best])
        k = min({above, below} - {best}, key=lambda k: here.probed.get(k, 0), default=best)
        if k in view.known:
            loss = view.costs[k].expected - view.tokens[k] / speed
        else:
            loss = KNOWN * (view.costs[k].least - view.tokens[k] / speed)
        loss = max(loss, 0.0)
        most = max(PATIENCE * loss, SAVED_ROUNDS * seconds)
        self._saved = min(self._saved + PROBE_SHARE * seconds, most)
        self._saved = max(self._saved, -most)
        if k == best:
            return best
        if k == here.probe and view.tokens[k] > LUCK * here.tokens:
            due = self._saved >= loss
        else:
            rested = here.probe is None or here.round >= here.probed[here.probe] + SPACING
            due = rested and self._saved >= PATIENCE * loss
        if not due:
            return best
        self._saved -= loss
        here.probe, here.tokens = k, view.tokens[k]
        here.probed[k] = here.round
        return k

    def to_json(self) -> dict[str, Any]:
        """What the next run can begin with."""
        return {"costs": self._costs.to_json(), "acceptance": self._pool.rates}

    @classmethod
    def from_json(cls, saved: Any) -> Depth:
        """Begin with what an earlier run found.

        Raises KeyError, ValueError, TypeError, AttributeError or ArithmeticError for what `to_json`
        did not make.
        """
        return cls(Costs.from_json(saved["costs"]), Acceptance.from_json(saved["acceptance"]))
