"""`mgm bench`: what draft tokens gain on this machine, by task and batch."""

from __future__ import annotations

import json
import re
import shlex
import sys
import textwrap
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from mlx_gemma_mtp.cli import options
from mlx_gemma_mtp.cli.bench_plan import Measured
from mlx_gemma_mtp.cli.check import check_batches
from mlx_gemma_mtp.errors import MgmError, ModelNotFoundError, UsageError, one_line

if TYPE_CHECKING:
    from mlx_gemma_mtp.bench.record import Record

# Options that go with --check and with --from.
CHECKS = {"model", "drafter", "bits", "force", "tasks", "batch", "drafts", "depth"}
CHECKS |= {"prompt_tokens", "max_tokens", "format", "out", "check"}
SHOWS = {"from_", "format", "plot", "recommend", "share"}
WIDTH = 100


@dataclass(frozen=True)
class Shown:
    """What to do with the result."""

    format: Annotated[Literal["table", "md", "csv", "json"], typer.Option()] = "table"
    out: Annotated[Path | None, typer.Option(help="Write a JSON file, after every task.")] = None
    plot: Annotated[Path | None, typer.Option(help="Write plots (SVG) to this folder.")] = None
    recommend: Annotated[
        bool,
        typer.Option("--recommend", help="Say which setting to use; auto learns from the run."),
    ] = False
    share: Annotated[
        bool, typer.Option("--share", help="Print one row of a Markdown table, to paste.")
    ] = False
    from_: Annotated[
        list[Path] | None,
        typer.Option("--from", help="Show what --out wrote; measures nothing; repeatable."),
    ] = None

    def check_places(self) -> None:
        """Raise UsageError if the result of a long run couldn't be written."""
        from mlx_gemma_mtp.bench.plot import need_matplotlib

        if self.out and (self.out.is_dir() or not self.out.absolute().parent.is_dir()):
            raise UsageError(f"--out must name a file in an existing folder, not {self.out}")
        if self.plot is not None:
            need_matplotlib()
            if self.plot.exists() and not self.plot.is_dir():
                raise UsageError(f"--plot must name a folder, not {self.plot}")

    def keep(self, found: dict[str, Any]) -> None:
        """Write JSON to --out."""
        from mlx_gemma_mtp.bench.record import write_json

        if self.out is not None:
            write_json(found, self.out)

    def show(self, records: list[Record]) -> None:
        """Print the records, and plot them."""
        from mlx_gemma_mtp.bench import report
        from mlx_gemma_mtp.bench.plot import plot

        if self.share:
            print(report.share_table(records).text(markdown=True))
            for advice in filter(None, [record.recommendation for record in records]):
                print(advice, file=sys.stderr)
        elif self.format == "csv":
            print(report.csv_text(records), end="")
        elif self.format == "json":
            for record in records:
                print(json.dumps(record.to_json(), ensure_ascii=False))
        else:
            print("\n\n".join(_text(record, self.format == "md") for record in records))
        if self.plot is not None:
            print(*plot(records, self.plot), sep="\n", file=sys.stderr)


def _text(record: Record, markdown: bool) -> str:
    """What was measured, the tables, and the conclusions."""
    from mlx_gemma_mtp.bench import report
    from mlx_gemma_mtp.bench.conclusions import conclusions

    def lines(found: list[str]) -> str:
        if markdown:
            return "\n".join(f"- {line}" for line in found)
        return "\n".join(textwrap.fill(line, WIDTH, subsequent_indent="  ") for line in found)

    tables = [one.text(markdown=markdown) for one in report.tables(record)]
    advice = [record.recommendation] if record.recommendation else []
    said = lines([*conclusions(record), *advice])
    return "\n\n".join(filter(None, [lines(report.heading(record)), *tables, said]))


@options.spread
def bench(
    context: typer.Context,
    pair: options.Pair,
    measured: Measured,
    shown: Shown,
    check: Annotated[
        bool, typer.Option("--check", help="Only compare the output with and without drafts.")
    ] = False,
) -> None:
    """Measure what draft tokens gain on this machine.

    By task, batch size and number of draft tokens. All settings and engines take turns, forwards
    and backwards. Ctrl-C keeps what is finished. --check exits with 5 if outputs differ.
    """
    sources = {name: context.get_parameter_source(name) for name in context.params}
    given = {name for name, source in sources.items() if source and source.name != "DEFAULT"}
    for applies, reason, excluded in (
        (shown.from_, "--from measures nothing", given - SHOWS),
        (check, "--check only compares", given - CHECKS),
        (
            check and shown.format not in ("table", "json"),
            "--check prints table or json",
            {"format"},
        ),
        (shown.share and shown.format not in ("table", "md"), "--share is Markdown", {"format"}),
        (measured.peer, "--peer decodes greedily", given & {"temperature"}),
        (measured.synthetic, "--synthetic makes a pair", given & {"model", "drafter", "recommend"}),
        (
            pair.drafter == "none" and measured.drafts != "0",
            "--drafter none can't draft",
            given & {"drafts"},
        ),
    ):
        if applies and excluded:
            names = sorted(f"--{name.strip('_').replace('_', '-')}" for name in excluded)
            raise UsageError(f"{reason}: leave {', '.join(names)} out")
    if measured.tasks == "list":
        print(*measured.task_names(pair), sep="\n")
    elif shown.from_:
        _show_earlier(shown, shown.from_)
    elif check:
        _check(pair, measured, shown)
    else:
        _measure(pair, measured, shown)


def _show_earlier(shown: Shown, files: list[Path]) -> None:
    from mlx_gemma_mtp.bench.conclusions import recommend
    from mlx_gemma_mtp.bench.record import read

    records = [read(path) for path in files]
    if shown.recommend:
        for record in records:
            record.recommendation = recommend(record)
    shown.show(records)


def _check(pair: options.Pair, measured: Measured, shown: Shown) -> None:
    from mlx_gemma_mtp.bench.record import MIXED
    from mlx_gemma_mtp.device import exact_products

    exact_products()
    plan = measured.plan(pair, check=True)
    if set(plan.num_draft_tokens) == {0}:
        raise UsageError("--check has nothing to compare without drafts: --drafts 1 or more")
    shown.check_places()
    opened, prompts = measured.open(pair, plan)
    check_batches(
        opened.pair,
        lambda batch: prompts.wave(MIXED, batch, 0),
        plan,
        as_json=shown.format == "json",
        keep=shown.keep,
    )


def _measure(pair: options.Pair, measured: Measured, shown: Shown) -> None:
    from mlx_gemma_mtp.bench import stamp
    from mlx_gemma_mtp.bench.conclusions import COMPARED, recommend
    from mlx_gemma_mtp.bench.floor import bandwidth
    from mlx_gemma_mtp.bench.record import Record
    from mlx_gemma_mtp.bench.run import Run
    from mlx_gemma_mtp.decode.depth import Depth
    from mlx_gemma_mtp.engine.worker import mlx_worker
    from mlx_gemma_mtp.files.folders import depth_file
    from mlx_gemma_mtp.files.remembered import save_depth
    from mlx_gemma_mtp.show import progress

    plan = measured.plan(pair)
    if shown.recommend and not {0, "auto"} < set(plan.num_draft_tokens):
        raise UsageError(COMPARED)
    shown.check_places()
    before = stamp.stamp()  # first: loading the model is load, too
    opened, prompts = measured.open(pair, plan)
    if opened.pair.drafter is None:
        if shown.recommend or (measured.drafts != Measured.drafts and plan.num_draft_tokens != [0]):
            raise ModelNotFoundError(f"{pair.model} has no drafter: name one with --drafter")
        print(f"{pair.model}: no drafter found; measuring plain decoding only", file=sys.stderr)
        plan = replace(plan, num_draft_tokens=[0])
    plan = replace(plan, tasks=prompts.tasks)
    peers = []
    if measured.peer:
        from mlx_gemma_mtp.bench.peers import open_peers

        peers = open_peers(list(dict.fromkeys(measured.peer)), opened)
    moved = mlx_worker().run(bandwidth)
    record, depth = Record(_command(), before, opened.subject(), plan, moved), Depth()

    def keep() -> None:
        shown.keep(record.to_json())

    keep()  # a file that can't be written is better known now
    ended: BaseException | None = None
    with progress("items") as update:
        try:
            Run(record, opened, prompts, keep=keep, update=update).measure(depth, peers)
        except (KeyboardInterrupt, MgmError, RuntimeError) as error:
            ended = error  # what is finished is shown first
            interrupted = isinstance(error, KeyboardInterrupt)
            record.warnings.append("interrupted" if interrupted else f"failed: {one_line(error)}")
    later = stamp.stamp(after_run=True).warnings
    record.warnings += [text for text in later if text not in before.warnings]
    if shown.recommend and record.complete:
        record.recommendation = recommend(record)
        if opened.pair.fingerprint is not None and not save_depth(opened.pair.fingerprint, depth):
            print(f"cannot write {depth_file()}: auto will not know this run", file=sys.stderr)
    keep()
    shown.show([record])
    if isinstance(ended, KeyboardInterrupt):
        raise typer.Exit(options.INTERRUPTED)
    if ended is not None:
        raise ended


def _command() -> str:
    """The command line without folder names."""
    typed = (re.sub(r"^(--[a-z-]+=)?/.*/", r"\1", one) for one in sys.argv[1:])
    return shlex.join(["mgm", *typed])
