"""`mgm bench`: what draft tokens gain on this machine, by task and batch."""

from __future__ import annotations

import json
import re
import shlex
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from mlx_gemma_mtp.cli import options
from mlx_gemma_mtp.cli.bench_plan import Measured
from mlx_gemma_mtp.cli.check import check_batches
from mlx_gemma_mtp.errors import INTERRUPTED, MgmError, ModelNotFoundError, UsageError, one_line
from mlx_gemma_mtp.show import say

if TYPE_CHECKING:
    from mlx_gemma_mtp.bench.record import Record
    from mlx_gemma_mtp.bench.report import Part

# Options that go with --check and with --from.
CHECKS = {"model", "drafter", "bits", "force", "yes", "tasks", "batch", "num_draft_tokens", "depth"}
CHECKS |= {"prompt_tokens", "max_tokens", "format", "out", "check", "exact"}
SHOWS = {"from_", "format", "details", "plot", "recommend", "share"}


@dataclass(frozen=True)
class Shown:
    """What to do with the result."""

    details: Annotated[bool, typer.Option("--details", help="Show everything measured.")] = False
    recommend: Annotated[
        bool,
        typer.Option("--recommend", help="Print only the verdict; auto starts from this run."),
    ] = False
    format: Annotated[
        Literal["table", "md", "csv", "json"],
        typer.Option(metavar="<str>", help="table, md, csv or json."),
    ] = "table"
    out: Annotated[
        Path | None, typer.Option(help="Write a JSON file, updated after every task.")
    ] = None
    from_: Annotated[
        list[Path] | None,
        typer.Option(
            "--from",
            metavar="<path>",
            help="Show a file of --out instead of measuring; repeatable.",
        ),
    ] = None
    plot: Annotated[Path | None, typer.Option(help="Write plots (SVG) to this folder.")] = None
    share: Annotated[
        bool, typer.Option("--share", help="Print one row of a Markdown table, to paste.")
    ] = False

    def check_places(self) -> None:
        """Raise UsageError if the result of a long run couldn't be written."""
        from mlx_gemma_mtp.bench.plot import need_matplotlib

        if self.out and (self.out.is_dir() or not self.out.absolute().parent.is_dir()):
            raise UsageError(f"--out must name a file in an existing folder, not {self.out}")
        if self.out and self.out.is_file():
            raise UsageError(
                f"{self.out} exists: --out writes a new file, --from shows that of an earlier run"
            )
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
        from mlx_gemma_mtp.bench.cells import csv_text
        from mlx_gemma_mtp.bench.plot import plot
        from mlx_gemma_mtp.bench.report import text
        from mlx_gemma_mtp.bench.tables import share_table
        from mlx_gemma_mtp.show import columns

        if self.share:
            print(share_table(records).markdown())
        elif self.format == "csv":
            print(csv_text(records), end="")
        elif self.format == "json":
            for record in records:
                print(json.dumps(record.to_json(), ensure_ascii=False))
        else:
            markdown = self.format == "md"
            width = None if markdown else columns(sys.stdout)
            part: Part = "verdict" if self.recommend else "all" if self.details else "short"
            shown = (text(one, part, markdown=markdown, width=width) for one in records)
            print("\n\n".join(shown))
        if self.plot is not None:
            say("\n".join(map(str, plot(records, self.plot))))


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
    """Measure whether drafting is worth it on this machine.

    Compares decoding with and without drafts, by task and batch size, and says how many draft
    tokens to use. The demo takes one to three minutes on a CPU, larger models longer: a line
    shows the time left; fewer --tasks, --batch or --repeat take less. Ctrl-C shows what is finished
    so far. --check exits with 5 if outputs differ.
    """
    given = options.given(context)
    for applies, reason, excluded in (
        (shown.from_, "--from measures nothing", given - SHOWS),
        (check, "--check only compares", given - CHECKS),
        (
            check and shown.format not in ("table", "json"),
            "--check prints table or json",
            {"format"},
        ),
        (
            shown.share or shown.recommend or shown.format not in ("table", "md"),
            "--share, --recommend, csv and json have a form of their own",
            given & {"details"},
        ),
        (shown.share and shown.format not in ("table", "md"), "--share is Markdown", {"format"}),
        (measured.peer, "--peer decodes greedily", given & {"temperature"}),
        (measured.synthetic, "--synthetic makes a pair", given & {"model", "drafter", "recommend"}),
        (
            pair.drafter == "none" and measured.num_draft_tokens != "0",
            "--drafter none can't draft",
            given & {"num_draft_tokens"},
        ),
    ):
        if applies and excluded:
            names = sorted(f"--{name.strip('_').replace('_', '-')}" for name in excluded)
            raise UsageError(f"{reason}: leave {', '.join(names)} out")
    if measured.tasks == "list":
        print(*measured.task_names(pair), sep="\n")
    elif shown.from_:
        from mlx_gemma_mtp.bench.record import read

        shown.show([read(path) for path in shown.from_])
    else:
        run = _check if check else _measure
        run(pair if measured.synthetic else pair.chosen(), measured, shown)


def _check(pair: options.Pair, measured: Measured, shown: Shown) -> None:
    from mlx_gemma_mtp.bench.record import MIXED
    from mlx_gemma_mtp.device import exact_products

    exact_products()
    plan = measured.plan(pair, check=True)
    if set(plan.num_draft_tokens) == {0}:
        raise UsageError(
            "--check has nothing to compare without drafts: --num-draft-tokens 1 or more"
        )
    shown.check_places()
    opened, prompts = measured.open(pair, plan)
    check_batches(
        opened.pair,
        opened.exact,
        lambda batch: prompts.wave(MIXED, batch, 0),
        plan,
        as_json=shown.format == "json",
        keep=shown.keep,
    )


def _measure(pair: options.Pair, measured: Measured, shown: Shown) -> None:
    from mlx_gemma_mtp.bench import stamp
    from mlx_gemma_mtp.bench.floor import bandwidth
    from mlx_gemma_mtp.bench.record import Record
    from mlx_gemma_mtp.bench.run import Run
    from mlx_gemma_mtp.engine.worker import mlx_worker
    from mlx_gemma_mtp.files.folders import depth_file
    from mlx_gemma_mtp.files.remembered import save_depth
    from mlx_gemma_mtp.progress import progress

    plan = measured.plan(pair)
    if shown.recommend and not {0, "auto"} < set(plan.num_draft_tokens):
        raise UsageError("--recommend needs 0, auto and a number: --num-draft-tokens 0,3,auto")
    shown.check_places()
    before = stamp.stamp()  # first: loading the model is load, too
    opened, prompts = measured.open(pair, plan)
    if opened.pair.drafter is None:
        asked = measured.num_draft_tokens not in (None, "0")
        if shown.recommend or asked:
            raise ModelNotFoundError(f"{pair.model} has no drafter: name one with --drafter")
        say(f"{pair.model}: no drafter found; measuring plain decoding only")
        plan = replace(plan, num_draft_tokens=[0])
    plan = replace(plan, tasks=prompts.tasks)
    peers = []
    if measured.peer:
        from mlx_gemma_mtp.bench.peers import open_peers

        peers = open_peers(list(dict.fromkeys(measured.peer)), opened)
    moved = mlx_worker().run(bandwidth)
    table, depth = opened.pair.table, opened.depth()
    record = Record(_command(), before, opened.subject(), plan, moved, table=table)

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
    own = opened.pair.fingerprint
    if shown.recommend and record.complete and own and not save_depth(own, depth):
        say(f"cannot write {depth_file()}: auto will not know this run")
    keep()
    shown.show([record])
    if isinstance(ended, KeyboardInterrupt):
        raise typer.Exit(INTERRUPTED)
    if ended is not None:
        raise ended


def _command() -> str:
    """The command line without folder names."""
    typed = (re.sub(r"^(--[a-z-]+=)?/.*/", r"\1", one) for one in sys.argv[1:])
    return shlex.join(["mgm", *typed])
