"""The tables of a record: summaries, those of --details, and rows to share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from mlx_gemma_mtp import show

from .cells import HEADS, NOTHING, cell, cells
from .conclusions import best, duels, finding
from .record import Case, Record, Spread, by_drafts, is_drafted

SHARED_BATCHES = (1, 2, 4, 8)

# The tables with a row for each summary: their titles, and their columns after SETTING.
SETTING = ("engine", "batch", "num_draft_tokens")
TABLES = {
    "Tokens per second of all rows": (
        *("tokens_per_second", "tokens_per_second_range", "speedup", "speedup_range"),
    ),
    "Latency, ms: first token, and between tokens (tokens of a round arrive together)": (
        *("first_token_ms", "token_gap_ms_p50", "token_gap_ms_p95", "token_gap_ms_max"),
        *("prefill_tokens_per_second", "peak_gb"),
    ),
    "Time per round, ms: as really run (overlapped), and each step alone": (
        *("round_ms", "draft_ms", "verify_ms", "host_ms"),
    ),
    "Drafts per round: of each row, on average, and copies; what a pass verifies; acceptance": (
        *("drafted_by_row", "drafted_per_round", "copied_per_round", "copied_acceptance_rate"),
        *("tokens_per_pass", "acceptance_rate", "acceptance_length"),
    ),
    "Allowed by the memory bandwidth: GB per round, tok/s, and the share reached": (
        *("allowed_round_gb", "allowed_tokens_per_second", "allowed_share"),
    ),
}
ACCEPTANCE = ("engine", "task", "num_draft_tokens", "acceptance_rate", "acceptance_length")


class Table(NamedTuple):
    """left: how many columns are aligned to the left."""

    title: str
    header: list[str]
    rows: list[list[str]]
    left: int = 1

    def text(self, width: int | None) -> str:
        """The title and the table, in at most `width` columns."""
        drawn = show.table(self.header, self.rows, left=self.left, width=width)
        return f"{show.wrapped(self.title, width)}\n{drawn}"

    def markdown(self) -> str:
        """The title in bold, if it has one, and the table."""
        title = f"**{self.title}**\n\n" * bool(self.title)
        return title + show.table(self.header, self.rows, markdown=True, left=self.left)


def summaries(record: Record) -> list[Table]:
    """By batch plain decoding and the best with drafts, by task too; and the peers."""
    rows = []
    for batch in record.batches:
        chosen = best(record.at(batch))
        rows.append(_summary(f"batch {batch}", record.plain(batch), chosen))
        by_task = [case for case in record.by_task(batch) if not record.is_summary(case)]
        for task in dict.fromkeys(case.task for case in by_task):
            found = {case.num_draft_tokens: case for case in by_task if case.task == task}
            drafted = found.get(chosen.num_draft_tokens) if chosen else None
            rows.append(_summary(f"  {task}", found.get(0), drafted))
    names = ("tokens_per_second", "num_draft_tokens")
    peers = [
        [
            str(one.ours.batch),
            cell(one.theirs, "engine"),
            *(cell(case, name) for case in (one.theirs, one.ours) for name in names),
            _times(one.times),
        ]
        for one in duels(record)
    ]
    title = (
        "Tokens per second of all rows: plain, and with the best number of drafts. In brackets: "
        "the gain of single turns"
    )
    header = ["", "plain", "drafts", "tok/s", "gain", "accepted"]
    theirs = "Other engines, and how much faster ours is. In brackets: in single turns"
    heads = ["batch", "engine", "tok/s", "drafts", "ours", "drafts", "gain"]
    both = [Table(title, header, rows), Table(theirs, heads, peers, left=2)]
    return [table for table in both if table.rows]


def _summary(name: str, plain: Case | None, drafted: Case | None) -> list[str]:
    row = [name, cell(plain, "tokens_per_second")]
    row += [cell(drafted, one) for one in ("num_draft_tokens", "tokens_per_second")]
    row.append(_times(drafted.speedup) if drafted and drafted.speedup else NOTHING)
    rate = drafted and drafted.acceptance_rate
    return [*row, NOTHING if rate is None else f"{rate:.0%}"]


def _times(spread: Spread) -> str:
    return f"{spread.median:.2f}x ({spread.low:.2f}–{spread.high:.2f})"


def tables(record: Record) -> list[Table]:
    """All tables of --details that have rows."""
    everyone = [
        case
        for batch in record.batches
        for engine in record.engines
        for case in record.at(batch, engine)
    ]
    found = []
    for title, names in TABLES.items():
        measured = [case for case in everyone if cells(case)[names[0]]]
        found.append(_table(title, (*SETTING, *names), measured))
    accepted = acceptance_cases(record)
    deepest = max((len(case.acceptance_by_position or []) for case in accepted), default=0)
    places = [f"acceptance_at_{at}" for at in range(1, deepest + 1)]
    title = "Acceptance: rate, tokens per round of a row, and by position (p1, p2, …)"
    found.append(_table(title, [*ACCEPTANCE, *places], accepted))
    found += [_by_task(record, name) for name in ("tokens_per_second", "speedup")]
    return [table for table in found if table.rows]


def _table(title: str, names: Sequence[str], cases: Sequence[Case]) -> Table:
    """Without empty columns, and without our name if there is no other engine."""
    columns = {}
    for name in names:
        column = [cell(case, name) for case in cases]
        if {*column} - {NOTHING} and not (name == "engine" and {*column} == {"ours"}):
            columns[name] = column
    rows = [list(row) for row in zip(*columns.values(), strict=True)]
    heads = [HEADS.get(name, name.replace("acceptance_at_", "p")) for name in columns]
    return Table(title, heads, rows, left=len({"engine", "task"} & {*columns}))


def _by_task(record: Record, name: str) -> Table:
    """One number at the smallest batch: a row for each task, a column for each setting."""
    cases = sorted(record.by_task(min(record.batches, default=1)), key=by_drafts)
    tasks = list(dict.fromkeys(case.task for case in record.cases if case in cases))
    counts = list(dict.fromkeys(str(case.num_draft_tokens) for case in cases))
    found = {(case.task, str(case.num_draft_tokens)): cell(case, name) for case in cases}
    rows = [[task, *(found.get((task, count), NOTHING) for count in counts)] for task in tasks]
    title = f"By task and drafts: {HEADS[name]}"
    return Table(title, ["task", *counts], rows if len(tasks) > 1 else [])


def acceptance_cases(record: Record) -> list[Case]:
    """At the smallest batch with drafts those with the most: over all tasks first, then by task."""
    known = [case for case in record.cases if case.acceptance_rate is not None]
    known = [case for case in known if case.batch == min(one.batch for one in known)]
    most = max((by_drafts(case) for case in known if is_drafted(case)), default=float("inf"))
    found = [case for case in known if by_drafts(case) == most]
    return sorted(found, key=lambda case: not record.is_summary(case))


def share_table(records: Sequence[Record]) -> Table:
    """A row for each run, to paste where others can compare."""
    header = ["device", "mlx, mlx-gemma-mtp", "model"]
    header += [f"batch {batch}, tok/s: plain → best" for batch in SHARED_BATCHES]
    rows = []
    for record in records:
        stamp, accepted = record.stamp, acceptance_cases(record)[:1]
        rate = [f"{cell(case, 'acceptance_rate')} ({case.setting})" for case in accepted]
        row = [f"{stamp.device}, {stamp.system}"]
        row += [f"{stamp.versions['mlx']}, {stamp.versions['mlx_gemma_mtp']}", str(record.subject)]
        row += [_plain_and_best(record, batch) for batch in SHARED_BATCHES]
        measured = record.table.in_words().items() if record.table else ()
        passes = "; ".join(f"{name}: {figures}" for name, figures in measured)
        rows.append([*row, *(rate or [NOTHING]), passes or NOTHING, stamp.time])
    return Table("", [*header, "acceptance rate", "passes", "measured"], rows, left=3)


def _plain_and_best(record: Record, batch: int) -> str:
    one, before = finding(record.at(batch)), cell(record.plain(batch), "tokens_per_second")
    if one is None or not one.gains:
        return before
    gain = f"{one.gain.median:.2f}x, {one.drafted.setting}"
    return f"{before} → {cell(one.drafted, 'tokens_per_second')} ({gain})"
