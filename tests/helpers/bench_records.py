"""Hand-made records of the benchmark, and what is shown of them."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
from mlx_gemma_mtp.bench import record as records
from mlx_gemma_mtp.bench import report
from mlx_gemma_mtp.bench.record import ALL, MIXED, OURS, Case, NumDrafts, Record, Spread, Window
from mlx_gemma_mtp.bench.stamp import Stamp

PEER = "mlx-vlm 0.7.10"
TASKS = {"chat": 0.62, "code": 0.84, "creative": 0.4}  # and the chance of each draft
PLAIN_MS, DRAFT_MS, HOST_MS = 20.0, 1.5, 0.5
STAMP = Stamp(
    time="2026-01-02T03:04:05+00:00",
    device="Apple M4 Max",
    backend="metal",
    system="macOS 26.1",
    memory_bytes=64 << 30,
    gpu_memory_bytes=None,
    versions={"python": "3.11.2", "mlx": "0.32.4", "mlx_gemma_mtp": "0.1.0"},
    environment={},
    power="battery 83%",
    load=0.1,
    warnings=["the machine runs on battery"],
)


def spread(middle: float) -> Spread:
    """2% to either side."""
    return Spread(middle, middle * 0.98, middle * 1.02)


def a_case(task: str, batch: int, count: NumDrafts, *, rate: float, slope: float) -> Case:
    """A case whose pass over T tokens costs 1 + slope x (T - 1) passes over one."""
    depth = 2 if count == "auto" else count
    reached = [rate ** (place + 1) for place in range(depth)]
    verify = PLAIN_MS * (1 + slope * depth)
    round_ms = verify + DRAFT_MS * depth + HOST_MS
    speed = batch * 1e3 * (1 + sum(reached)) / round_ms
    found = Case(
        OURS,
        task,
        batch,
        count,
        [75, 512][:batch],
        [Window(160, 16, 160 / turn, 99, 0.1) for turn in (speed, speed * 0.98, speed * 1.02)],
        tokens_per_second=spread(speed),
        round_ms=spread(round_ms),
        prefill_tokens_per_second=spread(1234.5),
        speedup=spread(speed * (PLAIN_MS + HOST_MS) / batch / 1e3),
        first_token_ms=spread(300.4 + 7.3 * depth + 11.1 * batch),
        token_gap_ms_p50=12.34,
        token_gap_ms_p95=56.78,
        token_gap_ms_max=91.23,
        peak_gb=16.34,
        allowed_round_gb=15.1,
        allowed_tokens_per_second=speed * 1.37,
        allowed_share=1 / 1.37,
    )
    if count != "auto":
        found = replace(found, draft_ms=DRAFT_MS * depth, verify_ms=verify, host_ms=HOST_MS)
    if not depth:
        return found
    return replace(
        found,
        acceptance_rate=sum(reached) / depth,
        acceptance_length=1 + sum(reached),
        acceptance_by_position=reached,
        accepted_histogram=[37, *range(11, 11 + depth)],
        drafted_per_round=float(depth),
        drafted_by_row=[depth + 0.5 - row % 2 for row in range(batch)],
        tokens_per_pass=batch * (depth + 1.0),
        copied_per_round=0.75 if count == "auto" else None,
        copied_acceptance_rate=0.9 if count == "auto" else None,
    )


def a_record(slope: float = 0.05) -> Record:
    """Three tasks at batch 1, mixed at batch 4, plain and with drafts, next to a peer."""
    counts: list[NumDrafts] = [0, 1, 3, "auto"]
    cases = [
        a_case(task, 1, count, rate=rate, slope=slope)
        for task, rate in [*TASKS.items(), (ALL, 0.6)]
        for count in counts
    ]
    cases += [a_case(MIXED, 4, count, rate=0.6, slope=slope) for count in counts]
    for task, batch in [(ALL, 1), (MIXED, 4)]:
        for count in (0, 3):
            theirs = a_case(task, batch, count, rate=0.6, slope=1.3 * slope + 0.2)
            nothing = dict.fromkeys([f.name for f in fields(Case) if "allowed" in f.name])
            nothing |= dict.fromkeys(["draft_ms", "verify_ms", "host_ms", "acceptance_rate"])
            cases.append(replace(theirs, engine=PEER, **nothing))  # type: ignore[arg-type]
    return Record(
        "mgm bench --model gemma-4",
        STAMP,
        records.Subject("gemma-4-E4B-it", "bfloat16", "4", 6_010_000_000, 157_000_000, 0, False),
        records.Plan([1, 4], counts, 64, repeat=3, tasks=list(TASKS)),
        401.3e9,
        cases,
        warnings=["the battery ran down"],
        complete=True,
    )


PAYS, PAYS_NOT = a_record(), a_record(slope=0.9)
BARE = replace(
    PAYS,
    cases=[Case(OURS, "chat", 1, 0, [75], [Window(9, 9, 1.0, 9, 1.0)], *[spread(50.0)] * 3)],
    subject=replace(PAYS.subject, bits=None, drafter_bytes=None),
    complete=False,
)
EMPTY = replace(BARE, cases=[])
DRAWN = replace(
    PAYS,
    subject=replace(PAYS.subject, name="26B-A4B", num_experts=128, random=True),
    plan=replace(PAYS.plan, accept=[[0.8, 0.5], [0.4]]),
)
RECORDS = {"whole": PAYS, "bare": BARE, "empty": EMPTY, "drawn": DRAWN}
every_record = pytest.mark.parametrize("record", RECORDS.values(), ids=RECORDS)


def shown(record: Record, part: report.Part = "all", *, width: int = 80) -> str:
    return report.text(record, part, width=width)
