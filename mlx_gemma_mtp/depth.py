"""How many tokens the next round drafts: the number of most expected tokens per second.

Two estimates meet here: what a round of K drafts takes (`Costs`) and what it yields
(`Acceptance`, one per row). K = 0, plain decoding, competes like any other, so drafting ends where
it does not pay. Plain Python: knows nothing of the device, of clocks, files or requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mlx_gemma_mtp.acceptance import Acceptance
from mlx_gemma_mtp.costs import KNOWN, Cost, Costs

MOST = 8  # drafts that "auto" goes up to; no published drafter gains beyond

KEEP_GAIN = 1.01  # a K is left only for one better than this,
NEW_GAIN = 1.015  # and better than this as well for one not yet used here: each is compiled
TRIAL_ROUNDS = 8  # rounds after which a trial without enough clean timings ends
TRIAL_PAUSE = 256  # rounds until that K may be tried again

PROBE_SHARE = 0.006  # of all time: what probes may lose
PROBE_GAIN = 1.02  # what a probed K could gain, if all that is unknown turned out well
PATIENCE = 3  # probes' losses saved up before the first; then lucky ones follow at once
SAVED_ROUNDS = 8  # rounds' time that may be saved up otherwise
LUCK = 1.005  # share by which a lucky probe raised the tokens expected of its K
SPACING = 6  # rounds between two probes, unless the last one was lucky


@dataclass
class _Standing:
    """Where the choice stands for one batch size."""

    round: int = 0
    best: int | None = None
    used: set[int] = field(default_factory=set)
    trial: int | None = None
    tried: dict[int, int] = field(default_factory=dict)  # K: round its last trial began
    probed: dict[int, int] = field(default_factory=dict)  # K: round of its last probe
    probe: int | None = None  # the last one
    hope: float = 0.0  # tokens expected of it then


class Depth:
    """Chooses K for every round. One for an engine, where rows come and go.

    Normally the K of most expected tokens per second, of those whose cost is known. Besides,
    - a K that promises to be the best, but whose cost is only guessed, gets a few rounds: a trial.
      Then its cost is known, so there are few of them.
    - a K that could be the best if all that is unknown turned out well gets a round now and then:
      a probe. What it is expected to lose is paid from PROBE_SHARE of the time, saved up before.
    """

    def __init__(self, costs: Costs | None = None, pool: Acceptance | None = None) -> None:
        self._costs = costs or Costs()
        self._pool = pool or Acceptance()
        self._standings: dict[int, _Standing] = {}
        self._saved = 0.0  # seconds

    def row(self, pinned: int | None = None) -> Acceptance:
        """The acceptance of a new row, to be told what every round showed.

        pinned: the row's own number of drafts; None for a row that takes what is chosen.
        """
        return Acceptance(self._pool, pinned)

    def round_took(self, batch: int, num_draft_tokens: int, seconds: float) -> None:
        """A round took so long, and nothing but the round: no compilation, no prefill, no wait."""
        self._costs.add(batch, num_draft_tokens, seconds)

    def choose(self, batch: int, rows: Sequence[Acceptance]) -> int:
        """K for the next round of a batch of this size, of which `rows` are active.

        At least what the largest pinned row takes. Call it once a round; what the last one or two
        rounds showed may come in later.
        """
        low = max((row.pinned for row in rows if row.pinned is not None), default=0)
        if all(row.pinned is not None for row in rows):
            return low
        here = self._standings.setdefault(batch, _Standing())
        here.round += 1
        k = self._choose(batch, rows, low, here)
        here.used.add(k)
        return k

    def _choose(self, batch: int, rows: Sequence[Acceptance], low: int, here: _Standing) -> int:
        known = self._costs.known(batch)
        if not any(k >= low for k in known):
            return low
        if here.trial is not None and here.trial >= low and here.trial not in known:
            if here.round < here.tried[here.trial] + TRIAL_ROUNDS:
                return here.trial
        here.trial = None

        most = max(low, MOST)
        costs = self._costs.estimates(batch, most)
        tokens = [sum(row.expected_tokens(k) for row in rows) for k in range(most + 1)]

        def merit(k: int) -> float:
            gain = KEEP_GAIN if k == here.best else 1 if k in here.used else 1 / NEW_GAIN
            return gain * tokens[k] / costs[k].expected

        pause = here.round - TRIAL_PAUSE
        options = [
            k for k in range(low, most + 1) if k in known or here.tried.get(k, pause) <= pause
        ]
        choice = max(options, key=merit)
        if choice in known:
            here.best = choice
            choice = self._probe(rows, options, known, tokens, costs, here)
        if choice not in known:
            here.trial = choice
            here.tried[choice] = here.round
        return choice

    def _probe(
        self,
        rows: Sequence[Acceptance],
        options: list[int],
        known: list[int],
        tokens: list[float],
        costs: list[Cost],
        here: _Standing,
    ) -> int:
        """A K worth a probe now, or else the best."""
        best = here.best
        seconds = costs[best].expected
        speed = tokens[best] / seconds

        def could_win(k: int) -> bool:
            hope = sum(row.expected_tokens(k, certain_after=best) for row in rows)
            return hope / costs[k].least > PROBE_GAIN * speed

        above = next((k for k in options if k > best and could_win(k)), best)
        below = next((k for k in reversed(options) if k < best and could_win(k)), best)
        k = min({above, below} - {best}, key=lambda k: here.probed.get(k, 0), default=best)
        rounds, cost = (1, costs[k].expected) if k in known else (KNOWN, costs[k].least)
        loss = rounds * max(0.0, cost - tokens[k] / speed)
        most = max(PATIENCE * loss, SAVED_ROUNDS * seconds)
        self._saved = min(self._saved + PROBE_SHARE * seconds, most)
        due = here.round >= here.probed.get(here.probe, 0) + SPACING
        lucky = k == here.probe and tokens[k] > here.hope * LUCK
        if k == best or self._saved < loss * (1 if lucky else PATIENCE) or not (lucky or due):
            return best
        self._saved -= loss
        here.probe, here.hope = k, tokens[k]
        here.probed[k] = here.round
        return k

    def to_json(self) -> dict[str, Any]:
        """What is worth remembering for the next run: for `from_json`."""
        return {"costs": self._costs.to_json(), "acceptance": self._pool.rates}

    @classmethod
    def from_json(cls, saved: Any) -> Depth:
        """Go on with what an earlier run found.

        Raises KeyError, ValueError, TypeError or AttributeError for what `to_json` did not make.
        """
        return cls(Costs.from_json(saved["costs"]), Acceptance.from_json(saved["acceptance"]))
