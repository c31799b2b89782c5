"""How the next round is divided: as yields the most expected tokens per second.

Two estimates meet here: what a round takes (`Costs`) and what it yields (`Chances` of each row).
A round without drafts, plain decoding, competes like any other, so drafting stops when it does not
pay. Plain Python: knows nothing of the device, of clocks, files or requests.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from mlx_gemma_mtp.decode.acceptance import Acceptance
from mlx_gemma_mtp.decode.costs import MEASURED, WIDTHS, Costs
from mlx_gemma_mtp.decode.division import Chances, Division, Exact, Option, Shape, Slots
from mlx_gemma_mtp.decode.table import PassClass, PassTable

MOST = 8  # drafts that "auto" goes up to; no published drafter gains beyond
MOST_ROWS = 8  # that a class of passes should reach
POSITIONS = (2, 4, 8, 16)  # of each row if copies need more than the drafter's: few shapes

GAIN = 1.01  # the best shape is left only for one this much faster
EXACT_GAIN = 1.02  # what "auto" pays for passes that agree
HOLD = 3  # rounds of a new shape: the first is compiled, and two are timed together
PROBE_SHARE = 0.01  # of all rounds: what probes may lose
MOST_SAVED = 8.0  # rounds that may be saved up for probes
SPACING = 6  # rounds from a probe to the next, however little it loses
LUCK = 1.0  # deviations by which a probe hopes that a shape is cheaper


class _Offer(NamedTuple):
    """A possible round."""

    option: Option
    shape: Shape
    exact: bool
    seconds: float

    @property
    def speed(self) -> float:
        return self.option.tokens / self.seconds


@dataclass
class _State:
    """What was chosen for one batch size, by its own count of rounds."""

    division: Division | None = None  # the last one
    best: Shape | None = None
    held: int = 0  # rounds for which the division stays
    round: int = 0
    probed: int = 0  # the round of the last probe
    turn: int = 0  # of probes
    saved: float = 0.0  # rounds, for probes


class Depth:
    """Divides every round. One for an engine, where rows come and go.

    Normally it takes the shape of most expected tokens per second. Besides,
    - a shape that could be it, if its uncertain cost turned out well, gets a few rounds,
    - and so does a division that could be it, if further drafts of a row were accepted: rows take
      turns.
    What such a probe is expected to lose is paid from PROBE_SHARE of the rounds, saved up before.

    exact: whether to stay in `pass_class`.
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
        self._states: dict[int, _State] = {}
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
        self._states.clear()

    @property
    def pass_class(self) -> PassClass | None:
        """The passes that agree, and that rounds stay in; None if there are none, or by choice."""
        if self.table is None or self._exact is False:
            return None
        return self.table.best_class(MOST_ROWS)

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
        if shape != state.best:
            state.saved -= seconds / self._costs.seconds(shape)

    @property
    def plain_tokens_per_second(self) -> float | None:
        """Tokens per second without drafts at batch 1; None until measured."""
        plain = self._plain(1)
        timings = self._costs.timings(1)[plain.width]
        return None if timings < MEASURED else 1 / self._costs.seconds(plain)

    def plain_at(self, batch: int) -> bool:
        """True if no drafts are expected to beat plain decoding; False if too little was timed."""
        if len(self._costs.timings(batch)) < 2:
            return False
        offers = self._offers(batch, Slots([Chances(self._pool.reached)] * batch, MOST))
        return not max(offers, key=lambda offer: offer.speed).option.count

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
        slots = Slots(rows, MOST)
        offers = self._offers(len(rows), slots)
        best = max(offers, key=lambda offer: self._merit(offer, state.best))
        state.best = best.shape
        if probe := self._probe(state, rows, offers, best):
            slots, best = probe
        division = Division(slots.divide(best.option), best.shape, best.exact)
        state.held = 0 if last is not None and last.shape == division.shape else HOLD - 1
        state.division = division
        return division

    def _state(self, batch: int) -> _State:
        return self._states.setdefault(batch, _State())

    def _plain(self, batch: int) -> Shape:
        offers = self._offers(batch, Slots([Chances([])] * batch, MOST))
        return max(offers, key=lambda offer: self._merit(offer, None)).shape

    def _merit(self, offer: _Offer, best: Shape | None) -> float:
        merit = offer.speed * (GAIN if offer.shape == best else 1)
        return merit * (EXACT_GAIN if offer.exact else 1)

    def _offers(self, batch: int, slots: Slots) -> list[_Offer]:
        """Return the rounds to choose from; with all that a row may take, only a grid of them."""
        found = self._all_offers(batch, slots)
        if self._exact is True and any(offer.exact for offer in found):
            return [offer for offer in found if offer.exact]
        return found

    def _all_offers(self, batch: int, slots: Slots) -> list[_Offer]:
        step = self._costs.step_seconds(batch)
        passes: dict[int, list[tuple[int, bool, float]]] = {}
        kept = self.pass_class
        offers = []
        for option in slots.options():
            num_tokens = slots.num_tokens + option.count
            if option.count and num_tokens not in WIDTHS:
                continue
            if num_tokens not in passes:
                passes[num_tokens] = [
                    (width, exact, self._costs.seconds(Shape(batch, 0, 1, num_tokens, width)))
                    for width, exact in self._widths(num_tokens)
                ]
            positions = 1 + option.num_steps
            if option.deepest >= positions:
                positions = next(count for count in POSITIONS if count > option.deepest)
            for width, exact, seconds in passes[num_tokens]:
                padded = positions
                if exact and kept:
                    if positions > kept.most_positions:
                        continue
                    padded = max(positions, kept.least_positions)
                shape = Shape(batch, option.num_steps, padded, num_tokens, width)
                offers.append(_Offer(option, shape, exact, seconds + option.num_steps * step))
        return offers

    def _widths(self, num_tokens: int) -> list[tuple[int, bool]]:
        """Return the widths of a pass that may pay, and whether it is in the class in use."""
        if self.table is None:
            return [(num_tokens, False)]
        found = [(self.table.cheapest(num_tokens, 1), False)]
        if (kept := self.pass_class) and num_tokens <= kept.most_width:
            width = self.table.cheapest(num_tokens, kept.least_width, kept.most_width)
            found.append((width, True))
        return found

    def _probe(
        self,
        state: _State,
        rows: Sequence[Chances | None],
        offers: Iterable[_Offer],
        best: _Offer,
    ) -> tuple[Slots, _Offer] | None:
        """Return a round that is due, may turn out well and is paid for, and its slots."""
        if state.round < state.probed + SPACING or state.saved <= 0:
            return None
        slots = Slots(rows, MOST)
        if state.turn % 2:
            probe = self._lucky(offers, best)
        else:
            slots, probe = self._hopeful(state, rows, best)
        if probe is None:
            state.turn += 1
            return None
        ratio = probe.seconds / best.seconds - probe.option.tokens / best.option.tokens
        loss = HOLD * max(0.0, ratio)
        if loss > state.saved:
            return None
        state.turn += 1
        state.saved -= loss
        state.probed = state.round
        return slots, probe

    def _lucky(self, offers: Iterable[_Offer], best: _Offer) -> _Offer | None:
        """Return the offer that would be the best by most if costs turned out well."""
        offers = list(offers)
        doubt = self._costs.doubt(
            best.shape.batch, [offer.shape.width for offer in offers], best.shape.width
        )
        merits = [
            offer.speed * math.exp(LUCK * each) for offer, each in zip(offers, doubt, strict=True)
        ]
        at = max(range(len(offers)), key=merits.__getitem__)
        return offers[at] if merits[at] > GAIN * best.speed else None

    def _hopeful(
        self, state: _State, rows: Sequence[Chances | None], best: _Offer
    ) -> tuple[Slots, _Offer | None]:
        """Return what would lose least if all drafts of a row were accepted from here on."""
        slots = Slots(rows, MOST)
        drafts = slots.divide(best.option)
        index = state.turn // 2 % len(rows)
        row = rows[index]
        if row is None or row.pinned is not None or len(row.reached) <= drafts[index]:
            return slots, None
        count = drafts[index]
        last = row.reached[count - 1] if count else 1.0
        hoped = [*row.reached[:count], *[last] * (len(row.reached) - count)]
        slots = Slots(rows, MOST, {index: hoped})
        able = [
            offer
            for offer in self._offers(len(rows), slots)
            if offer.option.hoped / offer.seconds > GAIN * best.speed
        ]
        able.sort(key=lambda offer: offer.seconds * best.speed - offer.option.tokens)
        for offer in able:
            if slots.divide(offer.option)[index] > count:
                return slots, offer
        return slots, None

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
    return all(
        count == -1
        if row is None
        else count == min(row.pinned, len(row.reached))
        if row.pinned is not None
        else 0 <= count <= len(row.reached)
        for row, count in zip(rows, division.drafts, strict=True)
    )
