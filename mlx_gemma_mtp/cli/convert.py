"""`mgm convert`: a published pair in, a quantized one out. The path written goes to stdout."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlx_gemma_mtp.cli import options

if TYPE_CHECKING:
    from mlx_gemma_mtp.convert.conversion import Conversion
    from mlx_gemma_mtp.convert.output import OnProgress, Progress


def convert(
    source: Annotated[str, typer.Argument(help="A folder, a Hub name, or demo.")],
    out: Annotated[Path | None, typer.Option(help="The folder to write [./NAME-4bit].")] = None,
    bits: Annotated[
        str, typer.Option(help="2, 3, 4, 5, 6, 8, mxfp4, mxfp8, nvfp4, q4_0 (for QAT) or none.")
    ] = "4",
    group_size: Annotated[
        int | None, typer.Option(help="Weights that share a scale: 32, 64 or 128 [64].")
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="Of what is not quantized: bfloat16, float16, float32 [the source's]."),
    ] = None,
    recipe: Annotated[
        str, typer.Option(help="mixed: more bits where they count; uniform: smallest, fastest.")
    ] = "mixed",
    rule: Annotated[
        list[str] | None,
        typer.Option(help="PATTERN=FORMAT, as '*.down_proj=6' or 'drafter.*=8/32'; repeatable."),
    ] = None,
    drafter: Annotated[
        str, typer.Option(help="A folder or Hub name; auto: the source's own; none.")
    ] = "auto",
    drafter_bits: Annotated[
        str | None, typer.Option(help="As --bits [8 beside more than 4 bits, else 4].")
    ] = None,
    plan_only: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan; no weights are read.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a conversion that was cut off.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Replace what is there, once all is done.")
    ] = False,
    upload_repo: Annotated[
        str | None, typer.Option(help="Upload to this Hub repository; a new one is public.")
    ] = None,
) -> None:
    """Quantize a pair for MLX.

    Target and drafter together, a few rows at a time.
    """
    from mlx_gemma_mtp.convert import conversion, upload
    from mlx_gemma_mtp.convert.partial import partial_of
    from mlx_gemma_mtp.convert.plan import Options

    chosen = Options(
        bits=bits,
        group_size=group_size,
        dtype=dtype,
        recipe=recipe,
        rules=tuple(rule or ()),
        drafter_bits=drafter_bits,
    )
    wanted = options.named_drafter(drafter)
    out = out or conversion.default_out(source, chosen)
    try:
        if plan_only:
            from mlx_gemma_mtp.convert.dry_run import dry_run

            print(dry_run(conversion.prepare(source, chosen, wanted, headers_only=True)))
            return
        if upload_repo is not None:
            upload.check_upload(upload_repo)
        with _shown() as on_progress:
            conversion.convert(
                source,
                out,
                chosen,
                drafter=wanted,
                resume=resume,
                force=force,
                on_plan=_announce,
                on_progress=on_progress,
            )
        print(out)
        if upload_repo is not None:
            print(f"uploaded to {upload.upload(out, upload_repo)}", file=sys.stderr)
    except KeyboardInterrupt:
        begun = partial_of(out).exists()
        then = "; the same command with --resume goes on" if begun else ""
        print(options.interruption(f"interrupted{then}"), file=sys.stderr)
        raise typer.Exit(options.INTERRUPTED) from None


def _announce(conversion: Conversion) -> None:
    from rich.filesize import decimal

    for model in conversion.models:
        plan = model.plan
        print(
            f"{model.kind} {model.origin.name}: {plan.bits_per_weight:.2f} bits per weight, "
            f"{decimal(plan.nbytes)}",
            file=sys.stderr,
        )
    if conversion.drafter is None:
        print("no drafter", file=sys.stderr)


@contextmanager
def _shown() -> Iterator[OnProgress]:
    """Progress on standard error: a moving line at a terminal, else a line for each file."""
    if not sys.stderr.isatty():
        begun = set()

        def name_file(progress: Progress) -> None:
            if progress.stage == "convert" and progress.file not in begun:
                begun.add(progress.file)
                print(f"writing {progress.file}", file=sys.stderr, flush=True)

        yield name_file
        return
    from rich import progress as bars
    from rich.console import Console

    columns = (
        bars.BarColumn(),
        bars.DownloadColumn(),
        bars.TransferSpeedColumn(),
        bars.TimeRemainingColumn(),
        bars.TextColumn("{task.description}", markup=False),
    )
    bar = bars.Progress(*columns, console=Console(stderr=True), transient=True)
    tasks = {"convert": bar.add_task(""), "hash": bar.add_task("", visible=False)}

    def move(progress: Progress) -> None:
        bar.start()  # not before: downloads have bars of their own
        bar.update(
            tasks[progress.stage],
            description=progress.tensor or f"SHA-256 of {progress.file}",
            completed=progress.done,
            total=progress.total,
            visible=True,
        )

    try:
        yield move
    finally:
        bar.stop()
