"""`mgm bench`: what the drafter gains on this machine, for which text, at which batch."""

from __future__ import annotations

import re
import shlex
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlx_gemma_mtp.cli import bench_plan, options
from mlx_gemma_mtp.cli.bench_output import Shown, tell
from mlx_gemma_mtp.cli.bench_plan import Asked
from mlx_gemma_mtp.errors import MgmError, ModelNotFoundError, UsageError, one_line

if TYPE_CHECKING:
    from mlx_gemma_mtp.bench.plan import Plan


@options.spread
def bench(
    context: typer.Context,
    pair: options.Pair,
    asked: Asked,
    shown: Shown,
    check: Annotated[
        bool,
        typer.Option(
            "--check", help="Time nothing; compare texts with and without drafts. 5: they differ."
        ),
    ] = False,
) -> None:
    """Measure what drafts gain on this machine.

    By task, by texts side by side, by number of drafts. Every engine and setting takes its turn,
    forwards and backwards. The figures go to stdout, what is going on to stderr. Ctrl-C keeps what
    is finished.
    """
    if shown.share and shown.format not in ("table", "md"):
        raise UsageError("--share is Markdown: leave --format out")
    given = {
        name
        for name in context.params
        if (source := context.get_parameter_source(name)) and source.name != "DEFAULT"
    }
    if asked.synthetic is not None and given & {"model", "drafter"}:
        raise UsageError("--synthetic draws a pair of its own: leave --model and --drafter out")
    if asked.tasks == "list":
        _list_tasks()
    elif shown.from_:
        if given - {"from_", "format", "plot", "recommend", "share"}:
            raise UsageError("--from measures nothing: leave out what is about measuring")
        _show_earlier(shown, shown.from_)
    elif check:
        if given - TAKES or shown.format not in ("table", "json"):
            raise UsageError(
                "--check times nothing, at temperatures 0 and 1: it takes a model, what is about "
                "texts, --out, and --format table or json"
            )
        compare_texts(pair, asked, shown)
    else:
        _measure(pair, asked, shown)


# Options that --check takes.
TAKES = {"model", "drafter", "bits", "force", "tasks", "batch", "drafts", "depth"}
TAKES |= {"prompt_tokens", "max_tokens", "format", "out", "check"}


def compare_texts(pair: options.Pair, asked: Asked, shown: Shown) -> None:
    from mlx_gemma_mtp.bench.record import MIXED
    from mlx_gemma_mtp.bench.subject import check_context
    from mlx_gemma_mtp.cli.check import check_batches

    plan = bench_plan.plan(pair, asked, check=True)
    if set(plan.drafts) == {0}:
        raise UsageError("--check has nothing to compare without drafts: ask for 1 or more")
    shown.check_places()
    opened = bench_plan.open_subject(pair, asked, plan, tell)
    workload = bench_plan.workload(pair, asked, plan, opened)
    check_context(opened, workload, batches=plan.batches, tokens=plan.tokens)
    check_batches(
        opened.pair,
        lambda batch: [row.ids for row in workload.wave(MIXED, batch, 0)],
        batches=plan.batches,
        drafts=plan.drafts,
        max_tokens=plan.tokens,
        as_json=shown.format == "json",
        keep=shown.keep,
    )


def _measure(pair: options.Pair, asked: Asked, shown: Shown) -> None:
    from mlx_gemma_mtp.bench import stamp
    from mlx_gemma_mtp.bench.floor import bandwidth
    from mlx_gemma_mtp.bench.recommend import recommend
    from mlx_gemma_mtp.bench.record import Record
    from mlx_gemma_mtp.bench.run import run
    from mlx_gemma_mtp.bench.subject import bench_of, check_context
    from mlx_gemma_mtp.decode.depth import Depth
    from mlx_gemma_mtp.engine.worker import mlx_worker
    from mlx_gemma_mtp.files.folders import depth_file
    from mlx_gemma_mtp.files.remembered import save_depth

    plan = bench_plan.plan(pair, asked)
    if shown.recommend:
        _check_recommend(asked, plan)
    shown.check_places()
    before = stamp.stamp()
    opened = bench_plan.open_subject(pair, asked, plan, tell)
    workload = bench_plan.workload(pair, asked, plan, opened)
    check_context(opened, workload, batches=plan.batches, tokens=plan.tokens)
    opened, depth = opened.slowed(asked.slow_draft), Depth()
    bench = bench_of(opened, workload, batch=max(plan.batches), depth=depth, peers=asked.peer or [])
    if not bench.engine.has_drafter:
        if shown.recommend:
            raise ModelNotFoundError("there is nothing to recommend without a drafter: name one")
        if asked.drafts != Asked.drafts and set(plan.drafts) != {0}:
            raise ModelNotFoundError(
                f"--drafts {asked.drafts} needs a drafter, and {pair.model} has none: name one "
                "with --drafter"
            )
        print("measured without a drafter: plain decoding only", file=sys.stderr)
        plan = replace(plan, drafts=(0,))
    record = Record(
        _command(),
        before,
        opened.subject(),
        asdict(plan)
        | {"tasks": workload.tasks, "depth": asked.depth, "slow_draft": asked.slow_draft},
        mlx_worker().run(bandwidth),
    )
    shown.keep(record.to_json())  # a file that cannot be written is better known now
    ended: BaseException | None = None
    with bench.engine, bench.in_step:
        try:
            run(bench, plan, record, after_group=lambda: shown.keep(record.to_json()), tell=tell)
        except (KeyboardInterrupt, MgmError, RuntimeError) as error:
            ended = error  # what is finished is shown first
            record.warnings.append(_why(error))
            shown.keep(record.to_json())  # a device that failed may fail again where engines end
    tell("")
    record.warnings += stamp.later_warnings(before)
    if shown.recommend and record.complete:
        record.recommendation = recommend(record)
        if opened.pair.fingerprint is not None and not save_depth(opened.pair.fingerprint, depth):
            print(f"{depth_file()} cannot be written: auto will not start there", file=sys.stderr)
    shown.keep(record.to_json())
    shown.show([record])
    if isinstance(ended, KeyboardInterrupt):
        raise typer.Exit(options.INTERRUPTED)
    if ended is not None:
        raise ended


def _why(ended: BaseException) -> str:
    if isinstance(ended, KeyboardInterrupt):
        return "interrupted"
    return f"ended by {type(ended).__name__}: {one_line(ended)}"


def _check_recommend(asked: Asked, plan: Plan) -> None:
    if asked.synthetic:
        raise UsageError("--recommend is about a model's own texts: leave --synthetic out")
    if not {0, "auto"} < set(plan.drafts):
        raise UsageError("--recommend compares 0, auto and others: --drafts 0,3,auto")
    if asked.slow_draft > 1:
        raise UsageError("--recommend is about the drafter as it is: leave --slow-draft out")


def _show_earlier(shown: Shown, files: list[Path]) -> None:
    from mlx_gemma_mtp.bench.recommend import recommend
    from mlx_gemma_mtp.bench.record import read

    shown.check_places()
    records = [read(path) for path in files]
    if shown.recommend:
        for record in records:
            record.recommendation = recommend(record)
    shown.show(records)


def _list_tasks() -> None:
    from mlx_gemma_mtp.bench.tasks import TASKS

    print(*TASKS, sep="\n")
    print(f"with --model demo, its own: {', '.join(bench_plan.DEMO_TASKS)}")


def _command() -> str:
    """What was typed, without the folders of this machine."""
    typed = (re.sub(r"^(--[a-z-]+=)?/.*/", r"\1", one) for one in sys.argv[1:])
    return shlex.join(["mgm", *typed])
