"""`mgm bench`: what the drafter gains on this machine, for which text, at which batch."""

from __future__ import annotations

import json
import re
import shlex
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from mlx_gemma_mtp.cli import bench_plan, options
from mlx_gemma_mtp.cli.bench_plan import Asked
from mlx_gemma_mtp.cli.check import exact_products
from mlx_gemma_mtp.errors import MgmError, ModelNotFoundError, UsageError, VerificationError

if TYPE_CHECKING:
    from mlx_gemma_mtp.bench.plan import Plan
    from mlx_gemma_mtp.bench.record import Record


@dataclass(frozen=True)
class Shown:
    """How it is told."""

    format: Annotated[Literal["table", "md", "csv", "json"], typer.Option()] = "table"
    out: Annotated[Path | None, typer.Option(help="Also write it as JSON, case by case.")] = None
    plot: Annotated[Path | None, typer.Option(help="A folder for plots, as SVG.")] = None
    recommend: Annotated[
        bool, typer.Option("--recommend", help="Say which setting to use; auto starts from there.")
    ] = False
    share: Annotated[bool, typer.Option("--share", help="Print one Markdown row, to paste.")] = (
        False
    )
    from_: Annotated[
        list[Path] | None,
        typer.Option(
            "--from",
            help="Show what --out wrote, and measure nothing; repeatable. Plots take runs that "
            "differ in --batch alone as one.",
        ),
    ] = None


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
        _check(pair, asked, shown)
    else:
        _measure(pair, asked, shown)


def _measure(pair: options.Pair, asked: Asked, shown: Shown) -> None:
    from mlx_gemma_mtp.bench import stamp
    from mlx_gemma_mtp.bench.floor import bandwidth
    from mlx_gemma_mtp.bench.plot import need_matplotlib
    from mlx_gemma_mtp.bench.recommend import recommend
    from mlx_gemma_mtp.bench.record import Record
    from mlx_gemma_mtp.bench.run import run
    from mlx_gemma_mtp.bench.subject import bench_of, check_context
    from mlx_gemma_mtp.depth import Depth
    from mlx_gemma_mtp.remembered import save_depth
    from mlx_gemma_mtp.worker import mlx_worker

    plan = bench_plan.plan(pair, asked)
    if shown.recommend:
        _check_recommend(asked, plan)
    if shown.out is not None and not shown.out.absolute().parent.is_dir():
        raise UsageError(f"--out: there is no folder {shown.out.absolute().parent}")
    if shown.plot is not None:
        need_matplotlib()
        _make_folder(shown.plot)
    before = stamp.stamp()
    opened = bench_plan.open_subject(pair, asked, plan, _tell)
    workload = bench_plan.workload(pair, asked, plan, opened)
    check_context(opened, workload, batches=plan.batches, tokens=plan.tokens)
    opened, depth = opened.slowed(asked.slow_draft), Depth()
    bench = bench_of(opened, workload, batch=max(plan.batches), depth=depth, peers=asked.peer or [])
    if not bench.engine.has_drafter:
        if shown.recommend:
            raise ModelNotFoundError("there is nothing to recommend without a drafter: name one")
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
    _keep(record, shown)  # a file that cannot be written is better known now
    ended: BaseException | None = None
    with bench.engine, bench.in_step:
        try:
            run(bench, plan, record, after_group=lambda: _keep(record, shown), tell=_tell)
        except (KeyboardInterrupt, MgmError, RuntimeError) as error:
            ended = error  # what is finished is shown first
            record.warnings.append(_why(error))
            _keep(record, shown)  # a device that failed may fail again where engines end
    _tell("")
    record.warnings += stamp.later_warnings(before)
    if shown.recommend and record.complete:
        record.recommendation = recommend(record)
        if opened.pair.fingerprint is not None:
            save_depth(opened.pair.fingerprint, depth)
    _keep(record, shown)
    _show([record], shown)
    if isinstance(ended, KeyboardInterrupt):
        raise typer.Exit(options.INTERRUPTED)
    if ended is not None:
        raise ended


def _why(ended: BaseException) -> str:
    if isinstance(ended, KeyboardInterrupt):
        return "interrupted"
    return f"ended by {type(ended).__name__}: {' '.join(str(ended).split())}"


def _check_recommend(asked: Asked, plan: Plan) -> None:
    if asked.synthetic:
        raise UsageError("--recommend is about a model's own texts: leave --synthetic out")
    if not {0, "auto"} < set(plan.drafts):
        raise UsageError("--recommend compares 0, auto and others: --drafts 0,3,auto")
    if asked.slow_draft > 1:
        raise UsageError("--recommend is about the drafter as it is: leave --slow-draft out")


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--plot: {folder} cannot be made: {error.strerror}") from None


def _keep(record: Record, shown: Shown) -> None:
    from mlx_gemma_mtp.bench.record import write_json

    if shown.out is not None:
        write_json(record.to_json(), shown.out)


def _show_earlier(shown: Shown, files: list[Path]) -> None:
    from mlx_gemma_mtp.bench.plot import need_matplotlib
    from mlx_gemma_mtp.bench.recommend import recommend
    from mlx_gemma_mtp.bench.record import read

    if shown.plot is not None:
        need_matplotlib()
    records = [read(path) for path in files]
    if shown.recommend:
        for record in records:
            record.recommendation = recommend(record)
    _show(records, shown)


def _show(records: list[Record], shown: Shown) -> None:
    from mlx_gemma_mtp.bench import show
    from mlx_gemma_mtp.bench.plot import plot

    if shown.share:
        print(show.share_header(), *(show.share(record) for record in records), sep="\n")
    else:
        for record in records:
            print(_formatted(record, shown.format), end="")
    if shown.plot is not None:
        for path in plot(records, shown.plot):
            print(path, file=sys.stderr)


def _formatted(record: Record, form: str) -> str:
    from mlx_gemma_mtp.bench import show

    if form == "json":
        return json.dumps(record.to_json(), ensure_ascii=False) + "\n"
    return {"table": show.table, "md": show.markdown, "csv": show.csv}[form](record)


def _check(pair: options.Pair, asked: Asked, shown: Shown) -> None:
    from mlx_gemma_mtp.bench.check import check
    from mlx_gemma_mtp.bench.record import MIXED, write_json
    from mlx_gemma_mtp.bench.subject import check_context, engine
    from mlx_gemma_mtp.depth import Depth

    timed = shown.plot is not None or shown.recommend or shown.share
    if asked.synthetic or asked.peer or timed or shown.format not in ("table", "json"):
        raise UsageError(
            "--check times nothing: it takes a model and --format table or json, no --synthetic, "
            "--peer, --plot, --recommend or --share"
        )
    exact_products()
    plan = bench_plan.plan(pair, asked, check=True)
    if set(plan.drafts) == {0}:
        raise UsageError("--check has nothing to compare without drafts: ask for 1 or more")
    opened = bench_plan.open_subject(pair, asked, plan, _tell)
    workload = bench_plan.workload(pair, asked, plan, opened)
    check_context(opened, workload, batches=plan.batches, tokens=plan.tokens)

    def prompts(batch: int) -> list[list[int]]:
        return [row.ids for row in workload.wave(MIXED, batch, 0)]

    with engine(opened, batch=max(plan.batches), depth=Depth()) as running:
        report = check(
            running,
            opened.pair,
            prompts,
            batches=plan.batches,
            drafts=plan.drafts,
            max_tokens=plan.tokens,
            seed=0,
            tell=_tell,
        )
    _tell("")
    found = report.to_json()
    if shown.out is not None:
        write_json(found, shown.out)
    if shown.format == "json":
        print(json.dumps(found, ensure_ascii=False))
    else:
        print(*report.lines(), sep="\n")
    if report.faults:
        raise VerificationError(report.summary())


def _list_tasks() -> None:
    from mlx_gemma_mtp.bench.tasks import TASKS

    print(*TASKS, sep="\n")
    print(f"with --model demo, its own: {', '.join(bench_plan.DEMO_TASKS)}")


def _command() -> str:
    """What was typed, without the folders of this machine."""
    typed = (re.sub(r"^(--[a-z-]+=)?/.*/", r"\1", one) for one in sys.argv[1:])
    return shlex.join(["mgm", *typed])


def _tell(line: str) -> None:
    """What is going on: one line that changes on a terminal, lines elsewhere."""
    from mlx_gemma_mtp.chat.spinner import can_draw, rewrite

    if can_draw(sys.stderr):
        rewrite(sys.stderr, line)
    elif line:
        print(line, file=sys.stderr)
