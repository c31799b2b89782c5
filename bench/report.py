"""A record as tables: the same cells for the terminal, Markdown and CSV.

Doesn't print, and draws no conclusions.
"""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import NamedTuple

from .record import OURS, Case, Record, Spread, by_drafts, is_drafted

NOTHING = "–"
SHARED_BATCHES = (1, 2, 4, 8)

# Every number of a case: its name in CSV, its decimals, and its value in the unit of the name.
Value = Callable[[Case], float | Spread | None]
NUMBERS: list[tuple[str, int, Value]] = [
    ("tokens_per_second", 1, lambda c: c.tokens_per_second),
    ("speedup", 2, lambda c: c.speedup),
    ("round_ms", 2, lambda c: c.round_ms),
    ("allowed_tokens_per_second", 1, lambda c: c.allowed and c.allowed.tokens_per_second),
    ("allowed_share_percent", 1, lambda c: c.allowed and 100 * c.allowed.share),
    ("allowed_round_gb", 3, lambda c: c.allowed and c.allowed.round_bytes / 1e9),
    ("first_token_ms", 1, lambda c: c.first_token_ms),
    ("token_gap_ms_mean", 2, lambda c: c.token_gap_ms and c.token_gap_ms["mean"]),
    ("token_gap_ms_p50", 2, lambda c: c.token_gap_ms and c.token_gap_ms["p50"]),
    ("token_gap_ms_p95", 2, lambda c: c.token_gap_ms and c.token_gap_ms["p95"]),
    ("token_gap_ms_max", 2, lambda c: c.token_gap_ms and c.token_gap_ms["max"]),
    ("prefill_tokens_per_second", 1, lambda c: c.prefill_tokens_per_second),
    ("peak_gb", 2, lambda c: c.peak_bytes and c.peak_bytes / 1e9),
    ("draft_ms", 2, lambda c: c.split and c.split.draft_ms),
    ("verify_ms", 2, lambda c: c.split and c.split.verify_ms),
    ("host_ms", 2, lambda c: c.split and c.split.host_ms),
    ("in_step_ms", 2, lambda c: c.split and c.split.total_ms),
    ("drafted_per_round", 2, lambda c: c.drafted_per_round),
    ("acceptance_rate", 3, lambda c: c.acceptance and c.acceptance.rate),
    ("acceptance_length", 2, lambda c: c.acceptance and c.acceptance.length),
]

# The columns of a table: head, and what is in a cell, by the names of the CSV.
Columns = list[tuple[str, str]]
SETTING: Columns = [
    ("engine", "{engine}"),
    ("batch", "{batch}"),
    ("drafts", "{num_draft_tokens}"),
]
SPEED: Columns = [
    *SETTING,
    ("tok/s", "{tokens_per_second}"),
    ("low–high", "{tokens_per_second_low}–{tokens_per_second_high}"),
    ("x plain", "{speedup}"),
    ("low–high", "{speedup_low}–{speedup_high}"),
    ("ms/round", "{round_ms}"),
    ("allowed", "{allowed_tokens_per_second}"),
    ("share %", "{allowed_share_percent}"),
]
LATENCY: Columns = [
    *SETTING,
    ("first token", "{first_token_ms}"),
    ("gap mean", "{token_gap_ms_mean}"),
    ("p50", "{token_gap_ms_p50}"),
    ("p95", "{token_gap_ms_p95}"),
    ("max", "{token_gap_ms_max}"),
    ("prefill tok/s", "{prefill_tokens_per_second}"),
    ("peak GB", "{peak_gb}"),
]
SPLIT: Columns = [
    *SETTING[1:],
    ("draft", "{draft_ms}"),
    ("verify", "{verify_ms}"),
    ("host", "{host_ms}"),
    ("sum", "{in_step_ms}"),
    ("overlapped", "{round_ms}"),
]
ACCEPTANCE: Columns = [
    ("task", "{task}"),
    ("drafts", "{num_draft_tokens}"),
    ("rate", "{acceptance_rate}"),
    ("tokens/round", "{acceptance_length}"),
]


class Table(NamedTuple):
    """left: how many columns are aligned to the left."""

    title: str
    header: list[str]
    rows: list[list[str]]
    left: int


def cells(case: Case) -> dict[str, str]:
    """Every number of a case by its name in CSV; "" if it wasn't measured."""
    found = {
        "engine": case.engine,
        "task": case.task,
        "batch": str(case.batch),
        "num_draft_tokens": str(case.num_draft_tokens),
        "prompt_tokens": " ".join(map(str, case.prompt_tokens)),
    }
    for name, digits, value in NUMBERS:
        measured = value(case)
        if isinstance(measured, Spread):
            found[name] = number(measured.median, digits)
            found[f"{name}_low"] = number(measured.low, digits)
            found[f"{name}_high"] = number(measured.high, digits)
        else:
            found[name] = number(measured, digits)
    if case.acceptance is not None:
        for at, rate in enumerate(case.acceptance.by_position or [], 1):
            found[f"acceptance_at_{at}"] = number(rate, 3)
        for at, rounds in enumerate(case.acceptance.histogram):
            found[f"rounds_accepting_{at}"] = str(rounds)
    return found


def number(value: float | None, digits: int) -> str:
    """Rounded; "" for None."""
    return "" if value is None else f"{value:.{digits}f}"


def tables(record: Record) -> list[Table]:
    """All tables that have rows."""
    everyone = [
        case
        for batch in record.batches
        for engine in record.engines
        for case in record.at(batch, engine)
    ]
    ours, accepted = [c for c in everyone if c.engine == OURS], acceptance_cases(record)
    deepest = max((len(c.acceptance.histogram) for c in accepted if c.acceptance), default=1)
    places = [(f"p{at}", f"{{acceptance_at_{at}}}") for at in range(1, deepest)]
    places.append(("rounds", "/".join(f"{{rounds_accepting_{at}}}" for at in range(deepest))))
    found = [
        _table("Tokens per second of all rows; allowed: by the bandwidth", SPEED, everyone),
        _table(
            "Latency, ms: first token, and between tokens (tokens of a round arrive together)",
            LATENCY,
            everyone,
        ),
        _table(
            "Time per round, ms: each step alone, their sum, and as really run (overlapped)",
            SPLIT,
            [case for case in ours if case.split],
        ),
        _table(
            "Acceptance: overall, by position, and rounds that accepted 0, 1, 2, ... drafts",
            ACCEPTANCE + places,
            accepted,
        ),
        _by_task(record, "By task and drafts: tok/s", "tokens_per_second"),
        _by_task(record, "By task and drafts: x plain", "speedup"),
    ]
    return [table for table in found if table.rows]


def _table(title: str, columns: Columns, cases: Sequence[Case]) -> Table:
    """Without empty columns, and without our name if there is no other engine."""
    found = []
    for head, template in columns:
        filled = [template.format_map(defaultdict(str, cells(case))) for case in cases]
        column = [cell.strip("–/") for cell in filled]
        if any(column) and not (head == "engine" and {*column} == {OURS}):
            found.append((head, [cell or NOTHING for cell in column]))
    header = [head for head, _ in found]
    rows = [list(row) for row in zip(*(column for _, column in found), strict=True)]
    return Table(title, header, rows, left=int(header[:1] in (["engine"], ["task"])))


def _by_task(record: Record, title: str, name: str) -> Table:
    """One number at the smallest batch: a row for each task, a column for each setting."""
    cases = record.by_task(min(record.batches, default=1))
    tasks = list(dict.fromkeys(case.task for case in cases))
    counts = list(dict.fromkeys(case.num_draft_tokens for case in sorted(cases, key=by_drafts)))
    found = {(case.task, case.num_draft_tokens): cells(case)[name] or NOTHING for case in cases}
    rows = [[task, *(found.get((task, count), NOTHING) for count in counts)] for task in tasks]
    return Table(title, ["task", *map(str, counts)], rows if len(tasks) > 1 else [], left=1)


def acceptance_cases(record: Record) -> list[Case]:
    """At the smallest batch with drafts those with the most: over all tasks first, then by task."""
    known = [case for case in record.cases if case.acceptance is not None]
    first = min((case.batch for case in known), default=1)
    known = [case for case in known if case.batch == first]
    most = max((c for c in known if is_drafted(c)), key=by_drafts, default=None)
    wanted = "auto" if most is None else most.num_draft_tokens
    found = [case for case in known if case.num_draft_tokens == wanted]
    return sorted(found, key=lambda case: not record.is_summary(case))


def share_table(records: Sequence[Record]) -> Table:
    """A row for each run, to paste where others can compare."""
    header = ["device", "mlx, mlx-gemma-mtp", "model"]
    header += [f"batch {batch}, tok/s: plain → best" for batch in SHARED_BATCHES]
    header += ["acceptance rate", "measured"]
    rows = []
    for record in records:
        stamp, accepted = record.stamp, acceptance_cases(record)[:1]
        versions = [stamp.versions.get(name, NOTHING) for name in ("mlx", "mlx_gemma_mtp")]
        row = [f"{stamp.device}, {stamp.system}", ", ".join(versions), str(record.subject)]
        row += [_plain_and_best(record, batch) for batch in SHARED_BATCHES]
        rate = [f"{cells(case)['acceptance_rate']} ({case.setting})" for case in accepted]
        rows.append([*row, *(rate or [NOTHING]), stamp.time])
    return Table("", header, rows, left=3)


def _plain_and_best(record: Record, batch: int) -> str:
    plain, best = record.plain(batch), record.best(batch)
    before = cells(plain)["tokens_per_second"] if plain else NOTHING
    if best is None or best is plain:
        return before
    row = cells(best)
    gain = f"{row['speedup']}x, " if row["speedup"] else ""
    return f"{before} → {row['tokens_per_second']} ({gain}{best.setting})"


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
            "bandwidth_gb_per_second": number(record.bandwidth_bytes_per_second / 1e9, 1),
            "accept": " ".join(map(str, record.plan.accept or [])),
        }
        found += [run | cells(case) for case in record.cases]
    text = io.StringIO()
    names = list(dict.fromkeys(name for row in found for name in row))
    writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(found)
    return text.getvalue()


def heading(record: Record) -> list[str]:
    """Lines about the model, the machine and the run."""
    stamp, subject, plan = record.stamp, record.subject, record.plan
    size = f"{subject.target_bytes / 1e9:.2f} GB"
    if subject.drafter_bytes is not None:
        size += f", drafter {subject.drafter_bytes / 1e9:.2f} GB"
    lengths = [length for case in record.cases for length in case.prompt_tokens] or [0]
    prompt = f"{min(lengths)} to {max(lengths)}" if len({*lengths}) > 1 else str(lengths[0])
    lines = [
        f"{subject}; {size}{'' if subject.drafter_bytes else ', no drafter'}",
        f"{stamp.device}, {stamp.backend}, {stamp.system}; power: {stamp.power}; {stamp.time}",
        ", ".join(f"{name} {version}" for name, version in stamp.versions.items()),
        f"memory bandwidth, measured: {record.bandwidth_bytes_per_second / 1e9:.1f} GB/s",
        f"prompts of {prompt} tokens; {plan.repeat} turns (median, low–high); drafts per round",
    ]
    if plan.accept is not None:
        lines.append(f"accepts are drawn: a chance of {', '.join(map(str, plan.accept))}")
    if len(record.engines) > 1:
        lines.append("peak GB includes the copies of weights that the other engines need")
    if not record.complete:
        lines.append("not complete: the run ended early")
    return [*lines, *(f"warning: {text}" for text in (*stamp.warnings, *record.warnings))]
