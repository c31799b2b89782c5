"""The columns of a benchmark: every number of a case under one name, formatted once.

A name carries its unit, and is the key of the JSON where that has the same one. CSV is these
columns; tables and Markdown take their cells from them. Knows nothing of which are shown where.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from .record import Case, Record, Spread, Turn

Row: TypeAlias = dict[str, str]  # "" where there is no such number

CASE, TURN = "case", "second turn"  # what a row of the CSV is
GAPS = ("mean", "p50", "p95", "max")


def rows(record: Record) -> list[Row]:
    """Every case, then every second turn."""
    return [
        *(case_row(record, case) for case in record.cases),
        *(turn_row(record, turn) for turn in record.turns),
    ]


def case_row(record: Record, case: Case) -> Row:
    """All numbers of a case. Every case of the record has the same columns."""
    split, floor, peak, gaps = case.split, case.floor, case.peak_bytes, case.token_gap_ms or {}
    return {
        **_run(record, CASE),
        "engine": case.engine,
        "task": case.task,
        "batch": str(case.batch),
        "drafts": str(case.drafts),
        "accept": "" if case.accept is None else " ".join(map(str, case.accept)),
        "prompt_tokens": " ".join(map(str, case.prompt_tokens)),
        **_spread("decode_tokens_per_second", case.decode_tokens_per_second, 1),
        **_spread("speedup", case.speedup, 2),
        **_spread("round_ms", case.round_ms, 2),
        "floor_tokens_per_second": number(floor and floor.tokens_per_second, 1),
        "floor_share_percent": number(floor and 100 * floor.share, 1),
        "floor_round_gb": number(floor and floor.round_bytes / 1e9, 3),
        **_spread("first_token_ms", case.first_token_ms, 1),
        **{f"token_gap_ms_{key}": number(gaps.get(key), 2) for key in GAPS},
        **_spread("prefill_tokens_per_second", case.prefill_tokens_per_second, 1),
        "peak_gb": number(peak and peak / 1e9, 2),
        "draft_ms": number(split and split.draft_ms, 2),
        "verify_ms": number(split and split.verify_ms, 2),
        "host_ms": number(split and split.host_ms, 2),
        "in_step_ms": number(split and sum(split), 2),
        "distinct_experts": number(case.distinct_experts, 1),
        "drafted_per_round": number(case.drafted_per_round, 2),
        "acceptance_rate": number(case.acceptance_rate, 3),
        "acceptance_length": number(case.acceptance_length, 2),
        **_numbered("acceptance_at", 1, case.acceptance_by_position, num_positions(record), 3),
        **_numbered("rounds_accepting", 0, case.accepted_histogram, num_positions(record) + 1, 0),
    }


def turn_row(record: Record, turn: Turn) -> Row:
    """All numbers of a second turn."""
    return {
        **_run(record, TURN),
        "task": turn.task,
        "prompt_tokens": str(turn.prompt_tokens),
        "reused_tokens": str(turn.reused_tokens),
        **_spread("first_token_ms", turn.first_token_ms, 1),
        **_spread("reused_first_token_ms", turn.reused_first_token_ms, 1),
    }


def num_positions(record: Record) -> int:
    """The most draft positions that any case has numbers of."""
    return max(
        (
            max(len(case.acceptance_by_position or []), len(case.accepted_histogram or []) - 1)
            for case in record.cases
        ),
        default=0,
    )


def number(value: float | None, digits: int) -> str:
    """With so many digits after the point; "" for None."""
    return "" if value is None else f"{value:.{digits}f}"


def _run(record: Record, what: str) -> Row:
    """What all rows of a run share, so that those of several runs can stand in one file."""
    return {
        "model": record.subject.name,
        "dtype": record.subject.dtype,
        "bits": record.subject.bits or "",
        "device": record.stamp.device,
        "time": record.stamp.time,
        "bandwidth_gb_per_second": number(record.bandwidth_bytes_per_second / 1e9, 1),
        "what": what,
    }


def _spread(name: str, spread: Spread | None, digits: int) -> Row:
    return {
        name: number(spread and spread.median, digits),
        f"{name}_low": number(spread and spread.low, digits),
        f"{name}_high": number(spread and spread.high, digits),
    }


def _numbered(
    name: str, first: int, values: Sequence[float] | None, count: int, digits: int
) -> Row:
    given = [number(value, digits) for value in values or []]
    given += [""] * (count - len(given))
    return {f"{name}_{place}": text for place, text in enumerate(given, first)}
