"""Are the texts the same with the drafter as without it, and in a batch as alone?

Where two part, the target tells how nearly the two tokens tie there, see `margin`. Knows nothing
of speed, nor of the command line.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple

from mlx_gemma_mtp.check import Side, parting
from mlx_gemma_mtp.decode.params import SamplingParams
from mlx_gemma_mtp.engine.engine import Engine
from mlx_gemma_mtp.engine.pair import OpenPair
from mlx_gemma_mtp.engine.results import Completion
from mlx_gemma_mtp.engine.worker import mlx_worker
from mlx_gemma_mtp.errors import ModelNotFoundError, UsageError
from mlx_gemma_mtp.files.weights import dtype_name

from .margin import NEAR_ULPS, Margin, is_exact, margin
from .record import Drafts

SCHEMA = 1  # changes where a key goes or means something else
TEMPERATURES = (0.0, 1.0)


class Parted(NamedTuple):
    """Two texts part after `position` tokens. No margin where one ends and the other goes on."""

    position: int
    found: Side
    wanted: Side
    margin: Margin | None

    @property
    def verdict(self) -> str:
        """What it is."""
        return "near tie" if self.margin and self.margin.near_tie else "fault"

    def to_json(self) -> dict[str, Any]:
        """A margin is null where there is none, and where it is infinite."""
        size, bound = self.margin or (None, None)
        return {
            "position": self.position,
            "found": self.found._asdict(),
            "wanted": self.wanted._asdict(),
            "margin": size if size is None or math.isfinite(size) else None,
            "bound": bound,
            "verdict": self.verdict,
        }

    def __str__(self) -> str:
        words = f"after {self.position} tokens {self.found} in place of {self.wanted}"
        if self.margin is None:
            return f"{words}: {self.verdict}"
        size, bound = self.margin
        return f"{words}: {self.verdict}, margin {size:.2g}, bound {bound:.2g}"


class Compared(NamedTuple):
    """One text beside the one that it must be, at its temperature and with its seed.

    drafts: how many it was written with per round. It must be the one that is written without, in
    the same batch; where drafts is 0, the one that its prompt gets alone. tokens: how many are the
    same. drafted: of all rounds together.
    """

    temperature: float
    batch: int
    row: int
    drafts: Drafts
    tokens: int
    drafted: int
    parted: Parted | None

    @property
    def group(self) -> str:
        """All rows of these settings, in words."""
        ways = {0: "no drafts, beside each alone", "auto": "drafts auto"}
        way = ways.get(self.drafts, f"drafts {self.drafts}")
        return f"temperature {self.temperature:g}, batch {self.batch}, {way}"

    def to_json(self) -> dict[str, Any]:
        """The fields, and whether the texts are the same."""
        parted = self.parted and self.parted.to_json()
        return self._asdict() | {"identical": parted is None, "parted": parted}


@dataclass
class CheckReport:
    """Every pair of texts that was compared, and the bound of a near tie, in words.

    complete: all that was asked for was compared.
    """

    bound: str
    compared: list[Compared] = field(default_factory=list)
    complete: bool = False

    @classmethod
    def of(cls, pair: OpenPair) -> CheckReport:
        """An empty one."""
        return cls(_bound(pair))

    @property
    def faults(self) -> list[Compared]:
        """Those that part where nothing excuses it: there should be none."""
        return [one for one in self.compared if one.parted and one.parted.verdict == "fault"]

    def to_json(self) -> dict[str, Any]:
        """As JSON takes it, "schema" first."""
        return {
            "schema": SCHEMA,
            "bound": self.bound,
            "complete": self.complete,
            "faults": len(self.faults),
            "compared": [one.to_json() for one in self.compared],
        }

    def lines(self) -> list[str]:
        """For people: the bound, a line for every setting, below it one for every parting, and
        the summary."""
        found = [self.bound]
        for _, group in groupby(self.compared, lambda one: one.group):
            rows = list(group)
            found.append(_line(rows))
            found += [f"  row {one.row}: {one.parted}" for one in rows if one.parted]
        return [*found, self.summary()]

    def summary(self) -> str:
        """One line for all; with faults, it tells of the first."""
        return self._verdict() + ("" if self.complete else "; not all were compared")

    def _verdict(self) -> str:
        total, same = len(self.compared), sum(one.parted is None for one in self.compared)
        if not self.faults:
            ties = f", {total - same} part at a near tie" if same < total else ""
            return f"{same} of {total} texts are the same{ties}"
        first = self.faults[0]
        return (
            f"{len(self.faults)} of {total} texts are not what they must be; "
            f"the first: {first.group}, row {first.row}, {first.parted}"
        )


class _Request(NamedTuple):
    """A text to be written, with any number of drafts: the same text."""

    prompt: tuple[int, ...]
    params: SamplingParams


def check(
    engine: Engine,
    pair: OpenPair,
    prompts: Callable[[int], Sequence[Sequence[int]]],
    report: CheckReport,
    *,
    batches: Sequence[int],
    drafts: Sequence[Drafts],
    max_tokens: int,
    seed: int,
    tell: Callable[[str], None],
) -> None:
    """Write texts without drafts, in every batch and alone, and with; compare them.

    pair: what the engine is made of. prompts: gives so many different prompts, as token ids.
    report: what was compared goes there.
    drafts: per round; 0 among them is passed over. Row i is written with seed + i, past the ends
    of turns, so that all rows go on side by side. top_k and top_p are the model's own. tell: gets
    a line for every step.

    Raises ModelNotFoundError without a drafter, UsageError without a number of drafts, and what
    ends a request.
    """
    if not engine.has_drafter:
        raise ModelNotFoundError("there is nothing to compare without a drafter: name one")
    asked = [count for count in drafts if count != 0]
    if not asked:
        raise UsageError("there is nothing to compare without drafts: ask for 1 or more, or auto")
    compared = report.compared
    for temperature in TEMPERATURES:
        params = SamplingParams(max_tokens=max_tokens, temperature=temperature, ignore_eos=True)
        alone: dict[_Request, Completion] = {}
        for batch in batches:
            requests = [
                _Request(tuple(prompt), replace(params, seed=(seed + row) % 2**32))
                for row, prompt in enumerate(prompts(batch))
            ]
            tell(f"temperature {temperature:g}, batch {batch}: each text alone")
            for one in requests:
                if one not in alone:
                    alone[one] = _write(engine, [one], 0)[0]
            wanted = [alone[one] for one in requests]
            for count in asked if batch == 1 else [0, *asked]:
                found = _write(engine, requests, count)
                for row, sides in enumerate(zip(found, wanted, strict=True)):
                    same, parted = _compare(pair, requests[row], *sides)
                    drafted = found[row].stats.drafted
                    compared.append(Compared(temperature, batch, row, count, same, drafted, parted))
                tell(_line(compared[-len(requests) :]))
                if count == 0:
                    wanted = found
    report.complete = True


def _write(engine: Engine, requests: Sequence[_Request], drafts: Drafts) -> list[Completion]:
    prompts = [list(one.prompt) for one in requests]
    params = [replace(one.params, num_draft_tokens=drafts) for one in requests]
    return engine.generate(prompts, params)


def _compare(
    pair: OpenPair, request: _Request, found: Completion, wanted: Completion
) -> tuple[int, Parted | None]:
    """How many tokens are the same, and where the two part, if they do."""
    parts = parting(found.tokens, wanted.tokens)
    if parts is None:
        return len(found.tokens), None
    one, other = parts.found[:1], parts.wanted[:1]
    tie: Margin | None = None
    if one and other:
        ids = [*request.prompt, *found.tokens[: parts.position]]
        params = request.params.resolved(pair.defaults)
        suppressed = pair.defaults.get("suppress_tokens") or []
        tokens = (one[0], other[0])
        tie = mlx_worker().run(partial(margin, pair.target, ids, tokens, params, suppressed))
    return parts.position, Parted(parts.position, _side(pair, one), _side(pair, other), tie)


def _side(pair: OpenPair, tokens: list[int]) -> Side:
    if not tokens:
        return Side(None, None)
    return Side(tokens[0], pair.text.decode(tokens) if pair.text else None)


def _bound(pair: OpenPair) -> str:
    dtype = dtype_name(pair.target.dtype)
    if is_exact(pair.target):
        return f"{dtype} throughout: nothing may part"
    return (
        f"activations in {dtype}: a near tie is a margin of at most {NEAR_ULPS} units in the last "
        "place of the larger logit, divided by the temperature where it is not 0"
    )


def _line(rows: Sequence[Compared]) -> str:
    same = sum(one.parted is None for one in rows)
    tokens = sum(one.tokens for one in rows)
    drafted = f", {sum(one.drafted for one in rows):,} drafted" if rows[0].drafts else ""
    return f"{rows[0].group}: {same} of {len(rows)} the same, {tokens:,} tokens{drafted}"
