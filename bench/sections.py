"""Which numbers of a benchmark stand in which table. Knows nothing of how a table is written."""

from __future__ import annotations

from typing import NamedTuple

from .columns import Row, case_row, num_positions, turn_row
from .group import Group, by_drafts, groups, is_drafted
from .record import OURS, Case, Record

NOTHING = "–"

# A column of a table: its head, and what stands in a cell, from the names in `columns`.
View = tuple[str, str]

SPEED: list[View] = [
    ("batch", "{batch}"),
    ("engine", "{engine}"),
    ("drafts", "{drafts}"),
    ("tok/s", "{decode_tokens_per_second}"),
    ("low–high", "{decode_tokens_per_second_low}–{decode_tokens_per_second_high}"),
    ("x plain", "{speedup}"),
    ("low–high", "{speedup_low}–{speedup_high}"),
    ("ms/round", "{round_ms}"),
    ("allowed", "{floor_tokens_per_second}"),
    ("share %", "{floor_share_percent}"),
]
WAITS: list[View] = [
    *SPEED[:3],
    ("first token", "{first_token_ms}"),
    ("gap mean", "{token_gap_ms_mean}"),
    ("p50", "{token_gap_ms_p50}"),
    ("p95", "{token_gap_ms_p95}"),
    ("max", "{token_gap_ms_max}"),
    ("prefill tok/s", "{prefill_tokens_per_second}"),
    ("peak GB", "{peak_gb}"),
]
SPLIT: list[View] = [
    ("batch", "{batch}"),
    ("drafts", "{drafts}"),
    ("draft", "{draft_ms}"),
    ("verify", "{verify_ms}"),
    ("host", "{host_ms}"),
    ("sum", "{in_step_ms}"),
    ("overlapping", "{round_ms}"),
    ("experts/layer", "{distinct_experts}"),
]
ACCEPTANCE: list[View] = [
    ("task", "{task}"),
    ("drafts", "{drafts}"),
    ("rate", "{acceptance_rate}"),
    ("tokens/round", "{acceptance_length}"),
]
TURNS: list[View] = [
    ("task", "{task}"),
    ("prompt tokens", "{prompt_tokens}"),
    ("reused", "{reused_tokens}"),
    ("whole ms", "{first_token_ms}"),
    ("low–high", "{first_token_ms_low}–{first_token_ms_high}"),
    ("reusing ms", "{reused_first_token_ms}"),
    ("low–high", "{reused_first_token_ms_low}–{reused_first_token_ms_high}"),
]


class Section(NamedTuple):
    """A table under its title."""

    title: str
    heads: list[str]
    cells: list[list[str]]


def sections(record: Record) -> list[Section]:
    """The tables, without those of which nothing was measured."""
    found = []
    speed = (
        "Tokens per second of all rows; x: of its own plain, turn by turn; allowed: by bandwidth"
    )
    waits = (
        "What one waits for, ms: the first token, and from token to token; a round's come at once"
    )
    split = "Where a round's time goes, ms: measured apart, in step; and overlapping, as it runs"
    accepted = "Acceptance: in all, by position, and rounds that accepted 0, 1, 2 …"
    for group in groups(record):
        tail = f"; {group.label}" if group.label else ""
        ours = [case for batch in group.batches for case in group.at(batch)]
        all_engines = [
            case
            for batch in group.batches
            for engine in (OURS, *group.peers)
            for case in group.at(batch, engine)
        ]
        found += [
            _section(f"{speed}{tail}", SPEED, _rows(record, all_engines)),
            _section(f"{waits}{tail}", WAITS, _rows(record, all_engines)),
            _section(
                f"{split}{tail}",
                SPLIT,
                _rows(record, [case for case in ours if case.split or case.distinct_experts]),
            ),
            _section(
                f"{accepted}{tail}",
                [*ACCEPTANCE, *_positions(record)],
                _rows(record, acceptance_cases(group)),
            ),
            _by_task(record, group, f"By task and drafts: tok/s{tail}", "decode_tokens_per_second"),
            _by_task(record, group, f"By task and drafts: x plain{tail}", "speedup"),
        ]
    turns = [turn_row(record, turn) for turn in record.turns]
    found.append(_section("The first token of a second turn", TURNS, turns))
    return [section for section in found if section.cells]


def _rows(record: Record, cases: list[Case]) -> list[Row]:
    return [case_row(record, case) for case in cases]


def _section(title: str, views: list[View], found: list[Row]) -> Section:
    """Without columns in which no row has a number, and without our name where it stands alone."""
    columns = []
    for head, template in views:
        cells = [template.format(**row).strip("–/") for row in found]
        ours_alone = head == "engine" and {*cells} == {OURS}
        if any(cells) and not ours_alone:
            columns.append((head, [cell or NOTHING for cell in cells]))
    return Section(
        title,
        [head for head, _ in columns],
        [list(cells) for cells in zip(*(cells for _, cells in columns), strict=True)],
    )


def _positions(record: Record) -> list[View]:
    count = num_positions(record)
    by_position = [(f"p{place}", f"{{acceptance_at_{place}}}") for place in range(1, count + 1)]
    accepted = "/".join(f"{{rounds_accepting_{place}}}" for place in range(count + 1))
    return [*by_position, ("rounds", accepted)]


def acceptance_cases(group: Group) -> list[Case]:
    """Of the smallest batch those of most drafts: over all tasks first, then task by task."""
    known = [case for case in group.cases if case.acceptance_rate is not None]
    first = min((case.batch for case in known), default=1)
    known = [case for case in known if (case.batch, case.engine) == (first, OURS)]
    fixed = [case.drafts for case in known if is_drafted(case)]
    most = max(fixed, key=float) if fixed else "auto"
    found = [case for case in known if case.drafts == most]
    return sorted(found, key=lambda case: case not in group.summaries)


def _by_task(record: Record, group: Group, title: str, name: str) -> Section:
    """This number at the smallest batch: tasks downwards, drafts to the right."""
    cases = group.of_tasks(min(group.batches, default=1))
    tasks = list(dict.fromkeys(case.task for case in cases))
    settings = list(dict.fromkeys(case.drafts for case in sorted(cases, key=by_drafts)))
    found = {(case.task, case.drafts): case_row(record, case)[name] or NOTHING for case in cases}
    cells = [[task, *(found.get((task, s), NOTHING) for s in settings)] for task in tasks]
    return Section(title, ["task", *map(str, settings)], cells if len(tasks) > 1 else [])
