"""`mgm bench --check`: are texts the same with drafts as without, in every batch?"""

from __future__ import annotations

import json

import typer

from mlx_gemma_mtp.cli import bench_plan, options
from mlx_gemma_mtp.cli.bench_output import Shown, tell
from mlx_gemma_mtp.cli.bench_plan import Asked
from mlx_gemma_mtp.cli.check import exact_products
from mlx_gemma_mtp.errors import UsageError, VerificationError

# What --check takes beside itself.
TAKES = {"model", "drafter", "bits", "force", "tasks", "batch", "drafts", "depth"}
TAKES |= {"prompt_tokens", "max_tokens", "format", "out", "check"}


def compare_texts(pair: options.Pair, asked: Asked, shown: Shown) -> None:
    """Raises VerificationError for a fault; what was compared before Ctrl-C is shown, too."""
    from mlx_gemma_mtp.bench.check import CheckReport, check
    from mlx_gemma_mtp.bench.record import MIXED
    from mlx_gemma_mtp.bench.subject import check_context, engine
    from mlx_gemma_mtp.decode.depth import Depth

    exact_products()
    plan = bench_plan.plan(pair, asked, check=True)
    if set(plan.drafts) == {0}:
        raise UsageError("--check has nothing to compare without drafts: ask for 1 or more")
    shown.check_places()
    opened = bench_plan.open_subject(pair, asked, plan, tell)
    workload = bench_plan.workload(pair, asked, plan, opened)
    check_context(opened, workload, batches=plan.batches, tokens=plan.tokens)

    def prompts(batch: int) -> list[list[int]]:
        return [row.ids for row in workload.wave(MIXED, batch, 0)]

    report, ended = CheckReport.of(opened.pair), False
    with engine(opened, batch=max(plan.batches), depth=Depth()) as running:
        try:
            check(
                running,
                opened.pair,
                prompts,
                report,
                batches=plan.batches,
                drafts=plan.drafts,
                max_tokens=plan.tokens,
                seed=0,
                tell=tell,
            )
        except KeyboardInterrupt:
            ended = True
    tell("")
    found = report.to_json()
    shown.keep(found)
    if shown.format == "json":
        print(json.dumps(found, ensure_ascii=False))
    else:
        print(*report.lines(), sep="\n")
    if report.faults:
        raise VerificationError(report.summary())
    if ended:
        raise typer.Exit(options.INTERRUPTED)
