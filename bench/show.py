"""A record as people read it: tables for the terminal, Markdown, CSV, and one row to share.

All take their numbers from `columns`, so they are the same everywhere. Knows nothing of measuring.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from csv import DictWriter

from .columns import case_row, number, rows
from .conclusions import best, conclusions
from .group import Group, groups
from .record import Record, setting
from .sections import NOTHING, Section, acceptance_cases, sections

LEFT = ("engine", "task", "device", "model")  # the rest are numbers, aligned at the right
WIDTH = 100
SHARED_BATCHES = (1, 2, 4, 8)


def table(record: Record) -> str:
    """For a terminal, within WIDTH columns as far as names allow."""
    parts = [_wrapped(_head(record))]
    parts += [f"{_wrapped([section.title])}\n{_aligned(section)}" for section in sections(record)]
    return "\n\n".join([*parts, _wrapped(_end(record))]).rstrip() + "\n"


def markdown(record: Record) -> str:
    """The same in Markdown."""
    parts = ["\n".join(f"- {line}" for line in _head(record))]
    parts += [f"**{section.title}**\n\n{_piped(section)}" for section in sections(record)]
    parts += ["\n".join(f"- {line}" for line in _end(record))]
    return "\n\n".join(parts).rstrip() + "\n"


def csv(records: Sequence[Record]) -> str:
    """A row for every case of a run, with every number, then one for every second turn."""
    found = [row for record in records for row in rows(record)]
    names = dict.fromkeys(name for row in found for name in row)
    text = io.StringIO()
    writer = DictWriter(text, list(names), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(found)
    return text.getvalue()


def share_header() -> str:
    """The two lines that stand once above rows of `share`."""
    heads = ["device", "mlx, mlx-gemma-mtp", "model"]
    heads += [f"batch {batch}, tok/s: plain → best" for batch in SHARED_BATCHES]
    return _piped(Section("", [*heads, "acceptance rate", "measured"], []))


def share(record: Record) -> str:
    """A run as one row of a Markdown table, ready to paste."""
    stamp, group = record.stamp, groups(record)[0]
    mlx, own = (stamp.versions.get(name, NOTHING) for name in ("mlx", "mlx_gemma_mtp"))
    cells = [f"{stamp.device}, {stamp.system}", f"{mlx}, {own}"]
    cells.append(", ".join(filter(None, [str(record.subject), group.label])))
    cells += [_plain_and_best(record, group, batch) for batch in SHARED_BATCHES]
    accepted = [case_row(record, case) for case in acceptance_cases(group)[:1]]
    cells.append("".join("{acceptance_rate} (drafts: {drafts})".format(**row) for row in accepted))
    return _line([*cells, stamp.time])


def _plain_and_best(record: Record, group: Group, batch: int) -> str:
    plain, chosen = group.plain(batch), best(group, batch)
    before = case_row(record, plain)["decode_tokens_per_second"] if plain else NOTHING
    if chosen is None or chosen is plain:
        return before
    row = case_row(record, chosen)
    gain = f"{row['speedup']} x, " if row["speedup"] else ""
    return f"{before} → {row['decode_tokens_per_second']} ({gain}{setting(chosen.drafts)})"


def _head(record: Record) -> list[str]:
    stamp, subject = record.stamp, record.subject
    sizes = f"{number(subject.target_bytes / 1e9, 2)} GB"
    drafter = subject.drafter_bytes
    sizes += ", no drafter" if drafter is None else f" and {number(drafter / 1e9, 2)} GB of drafter"
    lengths = [length for case in record.cases for length in case.prompt_tokens]
    lines = [
        f"{subject}; {sizes}",
        f"{stamp.device}, {stamp.backend}, {stamp.system}; power: {stamp.power}; {stamp.time}",
        ", ".join(f"{name} {version}" for name, version in stamp.versions.items()),
        f"bandwidth measured in this run: "
        f"{number(record.bandwidth_bytes_per_second / 1e9, 1)} GB/s",
    ]
    if lengths:
        turns = max(len(case.samples) for case in record.cases)
        longest = "" if min(lengths) == max(lengths) else f" to {max(lengths)}"
        lines.append(
            f"prompts of {min(lengths)}{longest} tokens; median, low and high of {turns} "
            f"turn{'s' * (turns > 1)}; drafts per round, 0 is plain"
        )
    if subject.random:
        rates = "; ".join(group.label for group in groups(record) if group.label)
        lines.append(f"random weights, so accepts are drawn, not earned: {rates or NOTHING}")
    if any(group.peers for group in groups(record)):
        lines.append("peak GB holds the copies of weights that the other engines need, too")
    if not record.complete:
        lines.append("not complete: it ended before all that was asked for had been measured")
    return [*lines, *(f"warning: {text}" for text in (*stamp.warnings, *record.warnings))]


def _end(record: Record) -> list[str]:
    advice = [] if record.recommendation is None else [record.recommendation]
    return [*conclusions(record), *advice]


def _wrapped(lines: list[str]) -> str:
    return "\n".join(textwrap.fill(line, WIDTH, subsequent_indent="  ") for line in lines)


def _aligned(section: Section) -> str:
    lines = [section.heads, *section.cells]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if head in LEFT else cell.rjust(width)
            for head, cell, width in zip(section.heads, line, widths, strict=True)
        ).rstrip()
        for line in lines
    )


def _piped(section: Section) -> str:
    marks = ["---" if head in LEFT else "---:" for head in section.heads]
    return "\n".join(map(_line, [section.heads, marks, *section.cells]))


def _line(cells: list[str]) -> str:
    plain = (" ".join(cell.split()).replace("|", "\\|") or NOTHING for cell in cells)
    return f"| {' | '.join(plain)} |"
