"""The numbers of a case as strings by name: what tables show, and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from .conclusions import accepts
from .record import OURS, Case, Record, Spread

NOTHING = "–"

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
    "tokens_per_pass": ("tokens a pass", 2),
    "copied_per_round": ("copied", 2),
    "copied_acceptance_rate": ("copies' rate", 3),
    "acceptance_rate": ("rate", 3),
    "acceptance_length": ("tokens", 2),
}
HEADS = {name: head for name, (head, _) in NUMBERS.items()} | {"num_draft_tokens": "drafts"}
HEADS |= {"drafted_by_row": "by row"}
HEADS |= {"tokens_per_second_range": "low–high", "speedup_range": "low–high"}


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
    found["drafted_by_row"] = "/".join(f"{drafts:.1f}" for drafts in case.drafted_by_row or [])
    found["accepted_histogram"] = "/".join(map(str, case.accepted_histogram or []))
    return found


def cell(case: Case | None, name: str) -> str:
    """Return one cell of a table; NOTHING if it wasn't measured."""
    if case is None:
        return NOTHING
    row = cells(case)
    if name in ("tokens_per_second_range", "speedup_range"):
        low, high = (row.get(name.replace("range", end)) for end in ("low", "high"))
        return f"{low}–{high}" if low else NOTHING
    if name == "engine":  # without its version
        return "ours" if case.engine == OURS else case.engine.split()[0]
    return row.get(name) or NOTHING


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
            "accept": accepts(record),
        }
        found += [run | cells(case) for case in record.cases]
    lines = io.StringIO()
    names = dict.fromkeys(name for row in found for name in row)
    writer = csv.DictWriter(lines, list(names), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(found)
    return lines.getvalue()
