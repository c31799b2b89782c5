"""`mgm pull`: download a target and its drafter from the Hub."""

from __future__ import annotations

from typing import Annotated

import typer

from mlx_gemma_mtp.cli import complete, download, options
from mlx_gemma_mtp.cli.question import can_ask, confirm
from mlx_gemma_mtp.errors import UsageError
from mlx_gemma_mtp.show import say


def pull(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help=f"{options.SIZES} or a Hub name.", autocompletion=complete.sizes
        ),
    ],
    drafter: Annotated[
        str, typer.Option(help="A Hub name, none, or auto: one that fits the model.")
    ] = "auto",
    revision: Annotated[
        str | None,
        typer.Option(help="A branch, tag or commit; load it as <model>@<revision> [main]."),
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Download even if it cannot run here.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only print what it would take.")
    ] = False,
) -> None:
    """Download a model and its drafter to the Hub's cache; print their folders.

    Sizes, free disk and the memory needed come first. Asks only if this machine cannot run the
    model. If it is interrupted, the same command continues where it stopped.
    """
    from mlx_gemma_mtp.files.checkpoint import is_drafter
    from mlx_gemma_mtp.files.plan import check_room

    if revision is not None:
        if "@" in model:
            raise UsageError(f"{model} already names a revision: leave --revision out")
        model = f"{model}@{revision}"
    model = options.Pair(model).chosen().model
    downloads = download.plan(model, drafter)
    missing = sum(one.missing for one in downloads)
    need = download.look(downloads) if missing else None
    download.show_plan(downloads, need, out=dry_run)
    if drafter == "auto" and len(downloads) == 1 and not downloads[0].alone:
        say(f"The Hub has no drafter for {downloads[0].repository}")
    check_room(downloads)
    if need and need.problem:
        say(f"mgm: cannot run here: {need.problem}")
    if dry_run:
        return
    if need and need.problem and not yes:
        if not can_ask():
            raise type(need.problem)(f"{model} was not downloaded: add --yes to do it anyway")
        if not confirm("Download it anyway?", default=False):
            raise typer.Exit(1)
    found = download.download(downloads)
    for folder in found:
        print(folder)
    if not is_drafter(found[0]):
        say(f"Next: mgm chat {downloads[0].name}")
