"""Cases that may be compared with each other: their accepts are of the same kind.

Accepts that are drawn may be drawn at several rates in one run, and batches measured in several
runs. Knows nothing of how any are shown.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from .record import ALL, MIXED, OURS, Case, Record


@dataclass(frozen=True)
class Group:
    """label: what tells it from the record's other groups; "" for what was really accepted."""

    label: str
    cases: list[Case]
    summaries: list[Case]  # those over all tasks, or of the only one

    @property
    def batches(self) -> list[int]:
        """Numbers of rows, rising."""
        return sorted({case.batch for case in self.summaries})

    @property
    def peers(self) -> list[str]:
        """Other engines, in the order in which they were measured."""
        return [name for name in dict.fromkeys(c.engine for c in self.cases) if name != OURS]

    def at(self, batch: int, engine: str = OURS) -> list[Case]:
        """Over all tasks, with so many rows, by number of drafts; auto comes last."""
        found = [c for c in self.summaries if (c.batch, c.engine) == (batch, engine)]
        return sorted(found, key=by_drafts)

    def plain(self, batch: int, engine: str = OURS) -> Case | None:
        """Without drafts."""
        return next((case for case in self.at(batch, engine) if case.drafts == 0), None)

    def fastest(self, batch: int, engine: str = OURS) -> Case | None:
        """Of most tokens per second."""
        return max(self.at(batch, engine), key=_rate, default=None)

    def fastest_drafted(self, batch: int) -> Case | None:
        """Of most tokens per second among those with a fixed number of drafts above 0."""
        return max(filter(is_drafted, self.at(batch)), key=_rate, default=None)

    def of_tasks(self, batch: int) -> list[Case]:
        """Each task by itself, with so many rows, task by task in the order measured."""
        ours = [c for c in self.cases if (c.batch, c.engine) == (batch, OURS)]
        order = list(dict.fromkeys(c.task for c in ours if c.task not in (ALL, MIXED)))
        alone = [case for case in ours if case.task in order]
        return sorted(alone, key=lambda case: (order.index(case.task), by_drafts(case)))


def groups(record: Record) -> list[Group]:
    """At least one, of no cases where nothing was measured."""
    cases: dict[str, list[Case]] = {}
    for case in record.cases:
        label = "" if case.accept is None else f"accepts drawn at {_rates(case.accept)}"
        cases.setdefault(label, []).append(case)
    found = [Group(key, some, [*filter(record.is_summary, some)]) for key, some in cases.items()]
    return found or [Group("", [], [])]


def joined(records: Sequence[Record]) -> list[Record]:
    """With the cases of runs that differ in nothing but their batches in one, the first of them.

    What several of them measured counts as in the last.
    """
    found: dict[str, Record] = {}
    for record in records:
        settings = {key: value for key, value in record.settings.items() if key != "batches"}
        machine = (record.stamp.device, record.stamp.versions)
        key = json.dumps([asdict(record.subject), settings, machine])
        first = found.setdefault(key, replace(record, cases=[]))
        measured = [_place(case) for case in record.cases]
        earlier = [case for case in first.cases if _place(case) not in measured]
        found[key] = replace(first, cases=earlier + record.cases)
    return list(found.values())


def by_drafts(case: Case) -> float:
    """A key to sort by: numbers, then auto."""
    return float("inf") if case.drafts == "auto" else case.drafts


def is_drafted(case: Case) -> bool:
    """Has it a fixed number of drafts above 0?"""
    return case.drafts != "auto" and case.drafts > 0


def _rate(case: Case) -> float:
    return case.decode_tokens_per_second.median


def _rates(accept: list[float]) -> str:
    return ", ".join(map(str, accept))


def _place(case: Case) -> tuple[int, list[float] | None]:
    return case.batch, case.accept
