"""A record as tables: the same cells for the terminal, Markdown and CSV. Doesn't print them."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import NamedTuple

from mlx_gemma_mtp import show

from .record import OURS, Case, Record, Spread, by_drafts, is_drafted

NOTHING = "–"
SHARED_BATCHES = (1, 2, 4, 8)

# The numbers of a case: their names in JSON and CSV, their heads in tables, and their decimals.
NUMBERS = {
    "tokens_per_second": ("tok/s", 1),
    "speedup": ("x plain", 2),
    "round_ms": ("ms/round", 2),
    "allowed_tokens_per_second": ("allowed", 1),
    "allowed_share": ("share", 3),
    "allowed_round_gb": ("GB/round", 3),
    "first_token_ms": ("first token", 1),
    "token_gap_ms_p50": ("p50", 2),
    "token_gap_ms_p95": ("p95", 2),
    "token_gap_ms_max": ("max", 2),
    "prefill_tokens_per_second": ("prefill tok/s", 1),
    "peak_gb": ("peak GB", 2),
    "draft_ms": ("draft", 2),
    "verify_ms": ("verify", 2),
    "host_ms": ("host", 2),
    "drafted_per_round": ("drafted", 2),
    "acceptance_rate": ("rate", 3),
    "acceptance_length": ("tokens/round", 2),
}
HEADS = {name: head for name, (head, _) in NUMBERS.items()}
HEADS |= {"num_draft_tokens": "drafts", "accepted_histogram": "rounds"}
HEADS |= {"tokens_per_second_range": "low–high", "speedup_range": "low–high"}

# The tables with a row for each summary: their titles, and their columns after SETTING.
SETTING = ("engine", "batch", "num_draft_tokens")
TABLES = {
    "Tokens per second of all rows; allowed: by the bandwidth": (
        *("tokens_per_second", "tokens_per_second_range", "speedup", "speedup_range", "round_ms"),
        *("allowed_tokens_per_second", "allowed_share"),
    ),
    "Latency, ms: first token, and between tokens (tokens of a round arrive together)": (
        *("first_token_ms", "token_gap_ms_p50", "token_gap_ms_p95", "token_gap_ms_max"),
        *("prefill_tokens_per_second", "peak_gb"),
    ),
    "Time per round, ms: each step alone, and a round as really run (overlapped)": (
        *("draft_ms", "verify_ms", "host_ms", "round_ms"),
    ),
}
ACCEPTANCE = ("task", "num_draft_tokens", "acceptance_rate", "acceptance_length")


class Table(NamedTuple):
    """left: how many columns are aligned to the left."""

    title: str
    header: list[str]
    rows: list[list[str]]
    left: int

    def text(self, *, markdown: bool = False) -> str:
        """The title, if it has one, and the table."""
        title = f"**{self.title}**\n\n" if markdown else f"{self.title}\n"
        drawn = show.table(self.header, self.rows, markdown=markdown, left=self.left)
        return title * bool(self.title) + drawn


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


def tables(record: Record) -> list[Table]:
    """All tables that have rows."""
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
    deepest = max((len(case.accepted_histogram or [0]) for case in accepted), default=1)
    places = [f"acceptance_at_{at}" for at in range(1, deepest)]
    title = "Acceptance: overall, by position (p1, p2, ...), and rounds that accepted 0/1/2/..."
    found.append(_table(title, [*ACCEPTANCE, *places, "accepted_histogram"], accepted))
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


def _cell(case: Case, name: str) -> str:
    row = cells(case)
    if name.endswith("_range"):
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
    return Table(title, ["task", *counts], rows if len(tasks) > 1 else [], left=1)


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
    text = io.StringIO()
    names = dict.fromkeys(name for row in found for name in row)
    writer = csv.DictWriter(text, list(names), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(found)
    return text.getvalue()


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
    plain, best = record.plain(batch), record.best(batch)
    before = _cell(plain, "tokens_per_second") if plain else NOTHING
    if best is None or best is plain:
        return before
    gain = f"{_cell(best, 'speedup')}x, " if best.speedup else ""
    return f"{before} → {_cell(best, 'tokens_per_second')} ({gain}{best.setting})"


def heading(record: Record) -> list[str]:
    """Lines about the model, the machine and the run."""
    stamp, subject = record.stamp, record.subject
    size, drafter = f"{subject.target_bytes / 1e9:.2f} GB", subject.drafter_bytes
    size += ", no drafter" if drafter is None else f", drafter {drafter / 1e9:.2f} GB"
    lengths = [length for case in record.cases for length in case.prompt_tokens] or [0]
    lines = [
        f"{subject}; {size}",
        f"{stamp.device}, {stamp.backend}, {stamp.system}; power: {stamp.power}; {stamp.time}",
        ", ".join(f"{name} {version}" for name, version in stamp.versions.items()),
        f"memory bandwidth, measured: {record.bandwidth_bytes_per_second / 1e9:.1f} GB/s",
        f"prompts of {min(lengths)} to {max(lengths)} tokens; median, low–high of "
        f"{record.plan.repeat} turns; drafts are per round, 0 is plain decoding",
    ]
    if record.plan.accept is not None:
        lines.append(f"accepts are drawn at {', '.join(map(str, record.plan.accept))}")
    if len(record.engines) > 1:
        lines.append("peak GB includes the copies of weights that the other engines need")
    if not record.complete:
        lines.append("not complete: the run ended early")
    return [*lines, *(f"warning: {text}" for text in (*stamp.warnings, *record.warnings))]
