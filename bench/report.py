"""A record as text: the same cells for the terminal, Markdown and CSV. Doesn't print it."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Literal, NamedTuple

from mlx_gemma_mtp import show

from .conclusions import accepts, best, duels, finding, reasons, verdict
from .record import OURS, Case, Record, Spread, by_drafts, is_drafted

Part = Literal["verdict", "short", "all"]

NOTHING = "–"
SHARED_BATCHES = (1, 2, 4, 8)

# The numbers of a case: their names in JSON and CSV, their heads in tables, and their decimals.
NUMBERS = {
    "tokens_per_second": ("tok/s", 1),
    "speedup": ("x plain", 2),
    "round_ms": ("round", 2),
    "allowed_tokens_per_second": ("allowed", 1),
    "allowed_share": ("share", 3),
    "allowed_round_gb": ("GB", 3),
    "first_token_ms": ("first", 1),
    "token_gap_ms_p50": ("p50", 2),
    "token_gap_ms_p95": ("p95", 2),
    "token_gap_ms_max": ("max", 2),
    "prefill_tokens_per_second": ("prefill", 1),
    "peak_gb": ("peak GB", 2),
    "draft_ms": ("draft", 2),
    "verify_ms": ("verify", 2),
    "host_ms": ("host", 2),
    "drafted_per_round": ("drafted", 2),
    "acceptance_rate": ("rate", 3),
    "acceptance_length": ("tokens", 2),
}
HEADS = {name: head for name, (head, _) in NUMBERS.items()} | {"num_draft_tokens": "drafts"}
HEADS |= {"tokens_per_second_range": "low–high", "speedup_range": "low–high"}

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
    "Allowed by the memory bandwidth: GB per round, tok/s, and the share reached": (
        *("allowed_round_gb", "allowed_tokens_per_second", "allowed_share"),
    ),
}
ACCEPTANCE = ("task", "num_draft_tokens", "acceptance_rate", "acceptance_length")
MORE = "More: --details. Keep a run: --out FILE. Show it again: --from FILE."


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


def cells(case: Case) -> dict[str, str]:
    """Every number of a case by its name in CSV; "" if it wasn't measured."""
    found = {
        "engine": case.engine,
        "task": case.task,
        "batch": str(case.batch),
        "num_draft_tokens": str(case.num_draft_tokens),
        "prompt_tokens": " ".join(map(str, case.prompt_tokens)),
    }
    for name, (_, digits) in NUMBERS.items():
        value = getattr(case, name)
        if isinstance(value, Spread):
            found[f"{name}_low"] = f"{value.low:.{digits}f}"
            found[f"{name}_high"] = f"{value.high:.{digits}f}"
            value = value.median
        found[name] = "" if value is None else f"{value:.{digits}f}"
    for at, rate in enumerate(case.acceptance_by_position or [], 1):
        found[f"acceptance_at_{at}"] = f"{rate:.3f}"
    found["accepted_histogram"] = "/".join(map(str, case.accepted_histogram or []))
    return found


def text(record: Record, part: Part, *, markdown: bool = False, width: int | None = None) -> str:
    """The verdict; or with what it rests on, and again at the end. width: of plain text."""

    def lines(items: Sequence[str]) -> str:
        return show.wrapped("\n".join(f"- {one}" if markdown else one for one in items), width)

    found, details = show.wrapped(verdict(record), width), part == "all"
    if part == "verdict":
        return "\n\n".join(filter(None, [lines(warnings(record)), found]))
    shown = summaries(record) + (tables(record) if details else [])
    parts = [
        found,
        lines([*heading(record, details=details), *warnings(record)]),
        *(table.markdown() if markdown else table.text(width) for table in shown),
        lines(reasons(record)),
        "" if details or markdown else show.wrapped(MORE, width),
        found,
    ]
    return "\n\n".join(filter(None, parts))


def warnings(record: Record) -> list[str]:
    """What makes the figures worth less, a line each."""
    found = [f"warning: {one}" for one in (*record.stamp.warnings, *record.warnings)]
    return found if record.complete else [*found, "warning: the run ended early"]


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
            _cell(one.theirs, "engine"),
            *(_cell(case, name) for case in (one.theirs, one.ours) for name in names),
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
    row = [name, _cell(plain, "tokens_per_second")]
    row += [_cell(drafted, one) for one in ("num_draft_tokens", "tokens_per_second")]
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
        column = [_cell(case, name) for case in cases]
        if {*column} - {NOTHING} and not (name == "engine" and {*column} == {"ours"}):
            columns[name] = column
    rows = [list(row) for row in zip(*columns.values(), strict=True)]
    heads = [HEADS.get(name, name.replace("acceptance_at_", "p")) for name in columns]
    return Table(title, heads, rows, left=len({"engine", "task"} & {*columns}))


def _cell(case: Case | None, name: str) -> str:
    if case is None:
        return NOTHING
    row = cells(case)
    if name in ("tokens_per_second_range", "speedup_range"):
        low, high = (row.get(name.replace("range", end)) for end in ("low", "high"))
        return f"{low}–{high}" if low else NOTHING
    if name == "engine":  # without its version
        return "ours" if case.engine == OURS else case.engine.split()[0]
    return row.get(name) or NOTHING


def _by_task(record: Record, name: str) -> Table:
    """One number at the smallest batch: a row for each task, a column for each setting."""
    cases = sorted(record.by_task(min(record.batches, default=1)), key=by_drafts)
    tasks = list(dict.fromkeys(case.task for case in record.cases if case in cases))
    counts = list(dict.fromkeys(str(case.num_draft_tokens) for case in cases))
    found = {(case.task, str(case.num_draft_tokens)): _cell(case, name) for case in cases}
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


def csv_text(records: Sequence[Record]) -> str:
    """Every number of every case, with what identifies its run."""
    found = []
    for record in records:
        run = {
            "model": record.subject.name,
            "dtype": record.subject.dtype,
            "bits": record.subject.bits or "",
            "device": record.stamp.device,
            "time": record.stamp.time,
            "bandwidth_gb_per_second": f"{record.bandwidth_bytes_per_second / 1e9:.1f}",
            "accept": " ".join(map(str, record.plan.accept or [])),
        }
        found += [run | cells(case) for case in record.cases]
    lines = io.StringIO()
    names = dict.fromkeys(name for row in found for name in row)
    writer = csv.DictWriter(lines, list(names), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(found)
    return lines.getvalue()


def share_table(records: Sequence[Record]) -> Table:
    """A row for each run, to paste where others can compare."""
    header = ["device", "mlx, mlx-gemma-mtp", "model"]
    header += [f"batch {batch}, tok/s: plain → best" for batch in SHARED_BATCHES]
    rows = []
    for record in records:
        stamp, accepted = record.stamp, acceptance_cases(record)[:1]
        rate = [f"{_cell(case, 'acceptance_rate')} ({case.setting})" for case in accepted]
        row = [f"{stamp.device}, {stamp.system}"]
        row += [f"{stamp.versions['mlx']}, {stamp.versions['mlx_gemma_mtp']}", str(record.subject)]
        row += [_plain_and_best(record, batch) for batch in SHARED_BATCHES]
        rows.append([*row, *(rate or [NOTHING]), stamp.time])
    return Table("", [*header, "acceptance rate", "measured"], rows, left=3)


def _plain_and_best(record: Record, batch: int) -> str:
    one, before = finding(record.at(batch)), _cell(record.plain(batch), "tokens_per_second")
    if one is None or not one.gains:
        return before
    gain = f"{one.gain.median:.2f}x, {one.drafted.setting}"
    return f"{before} → {_cell(one.drafted, 'tokens_per_second')} ({gain})"


def heading(record: Record, *, details: bool) -> list[str]:
    """Lines about the model, the machine and the run."""
    stamp, subject, repeat = record.stamp, record.subject, record.plan.repeat
    turns = "one turn" if repeat == 1 else f"median (low–high) of {repeat} turns"
    if not details:
        return [f"{subject}, on {stamp.device} ({stamp.backend}); {turns}"]
    size, drafter = f"{subject.target_bytes / 1e9:.2f} GB", subject.drafter_bytes
    size += ", no drafter" if drafter is None else f", drafter {drafter / 1e9:.2f} GB"
    lengths = [length for case in record.cases for length in case.prompt_tokens] or [0]
    lines = [
        f"{subject}; {size}",
        f"{stamp.device}, {stamp.backend}, {stamp.system}; power: {stamp.power}; {stamp.time}",
        ", ".join(f"{name} {version}" for name, version in stamp.versions.items()),
        f"memory bandwidth, measured: {record.bandwidth_bytes_per_second / 1e9:.1f} GB/s",
        f"prompts of {min(lengths)} to {max(lengths)} tokens; {turns}; drafts are per round, "
        "0 is plain decoding",
    ]
    if drawn := accepts(record):
        lines.append(f"accepts are drawn at {drawn}")
    if len(record.engines) > 1:
        lines.append("peak GB includes the copies of weights that the other engines need")
    return lines
