"""`mgm convert`: a published pair in, a quantized one out. Prints the folder to stdout."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from mlx_gemma_mtp.cli import options
from mlx_gemma_mtp.cli.download import fetch_missing
from mlx_gemma_mtp.errors import INTERRUPTED
from mlx_gemma_mtp.progress import progress
from mlx_gemma_mtp.show import can_draw, say

NO_TOKENIZER = (
    "warning: the source has no tokenizer.json, so the output takes token ids, but no text: copy "
    "the checkpoint's into it."
)
FLOAT16 = (
    "warning: Gemma 4's activations overflow in float16. mgm computes in bfloat16 with these "
    "weights; other tools may write garbage. --dtype bfloat16 avoids that."
)


def convert(
    source: options.Model,
    out: Annotated[Path | None, typer.Option(help="The folder to write [./NAME-4bit].")] = None,
    bits: Annotated[
        str, typer.Option(help="2, 3, 4, 5, 6, 8, mxfp4, mxfp8, nvfp4, q4_0 (for QAT) or none.")
    ] = "4",
    group_size: Annotated[
        int | None, typer.Option(help="Weights that share a scale: 32, 64 or 128 [64].")
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            help="Dtype of unquantized tensors: bfloat16, float16, float32 [the source's]."
        ),
    ] = None,
    recipe: Annotated[
        str, typer.Option(help="mixed: more bits where they matter; uniform: smallest, fastest.")
    ] = "mixed",
    rule: Annotated[
        list[str] | None,
        typer.Option(
            metavar="<str>",
            help="PATTERN=FORMAT, such as '*.down_proj=6' or 'drafter.*=8/32'; repeatable.",
        ),
    ] = None,
    drafter: Annotated[
        str, typer.Option(help="A size, folder or Hub name, none, or auto: one that fits.")
    ] = "auto",
    drafter_bits: Annotated[
        str | None, typer.Option(help="Like --bits [8 if --bits is above 4, else 4].")
    ] = None,
    plan_only: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue an interrupted conversion.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Replace the output, at the end; or start over.")
    ] = False,
    yes: options.Yes = False,
    upload_repo: Annotated[
        str | None, typer.Option(help="Upload to this Hub repository; a new one is public.")
    ] = None,
) -> None:
    """Quantize a target and its drafter for MLX, in memory that does not depend on their size."""
    from mlx_gemma_mtp.convert import conversion, upload
    from mlx_gemma_mtp.convert.partial import check_place, partial_of
    from mlx_gemma_mtp.convert.plan import Options, Plan
    from mlx_gemma_mtp.convert.report import dry_run
    from mlx_gemma_mtp.files import converted

    chosen = Options(
        bits=bits,
        group_size=group_size,
        dtype=dtype,
        recipe=recipe,
        rules=tuple(rule or ()),
        drafter_bits=drafter_bits,
    )

    def on_plan(plans: Sequence[Plan]) -> None:
        for plan in plans:
            say(f"{plan.kind} {plan.source.origin.name}: {plan.size}")
        if len(plans) == 1:
            say("no drafter")
        if not (plans[0].source.folder / "tokenizer.json").exists():
            say(NO_TOKENIZER)
        if any(plan.recipe.dtype == "float16" for plan in plans):
            say(FLOAT16)

    source, wanted = options.original(source), options.named_drafter(drafter)
    out = out or conversion.default_out(source, chosen)
    try:
        if plan_only:
            plans = conversion.prepare(source, chosen, wanted, headers_only=True)
            print(dry_run(plans, chosen))
            return
        if upload_repo is not None:
            upload.check_upload(upload_repo)
        check_place(out, resume=resume, force=force)
        fetch_missing(source, drafter, yes=yes, to_run=False)
        with progress("bytes") as update:
            steps = set[str]()

            def on_progress(what: str, done: float, total: float | None) -> None:
                if what not in steps and not can_draw():
                    say(what)
                steps.add(what)
                update(what, done, total)

            conversion.convert(
                source,
                out,
                chosen,
                drafter=wanted,
                resume=resume,
                force=force,
                on_plan=on_plan,
                on_progress=on_progress,
            )
        converted.remember(out)
        print(out)
        if upload_repo is not None:
            say(f"uploaded to {upload.upload(out, upload_repo)}")
    except KeyboardInterrupt:
        then = "; add --resume to continue" if partial_of(out).exists() else ""
        say(options.interruption(f"interrupted{then}"))
        raise typer.Exit(INTERRUPTED) from None
