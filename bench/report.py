"""A record as text: the verdict, what it rests on, and the tables. Doesn't print it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from mlx_gemma_mtp import show

from .conclusions import accepts, reasons, verdict
from .record import OURS, WITHOUT, Record
from .tables import summaries, tables

Part = Literal["verdict", "short", "all"]

MORE = "More: --details. Keep a run: --out FILE. Show it again: --from FILE."


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
    if {*record.engines} - {OURS, *WITHOUT.values()}:
        lines.append("peak GB includes the copies of weights that the other engines need")
    return lines
