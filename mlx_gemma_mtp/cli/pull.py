"""`mgm pull`: download a target and its drafter from the Hub."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from mlx_gemma_mtp.cli import download
from mlx_gemma_mtp.errors import UsageError


def pull(
    model: Annotated[str, typer.Argument(help="A Hub name, such as google/gemma-4-E4B-it.")],
    drafter: Annotated[
        str, typer.Option(help="A Hub name, none, or auto: <model>-assistant if it exists.")
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
    from mlx_gemma_mtp.files import hub
    from mlx_gemma_mtp.files.names import drafter_name

    if revision is not None:
        if "@" in model:
            raise UsageError(f"{model} already names a revision: leave --revision out")
        model = f"{model}@{revision}"
    downloads = download.plan(model, drafter)
    missing = sum(one.missing for one in downloads)
    need = download.look(downloads) if missing else None
    download.show_plan(downloads, need, out=dry_run)
    if drafter == "auto" and len(downloads) == 1 and not downloads[0].alone:
        print(f"No drafter: {drafter_name(model)} does not exist", file=sys.stderr)
    hub.check_room(downloads)
    if need and need.problem:
        print(f"mgm: cannot run here: {need.problem}", file=sys.stderr)
    if dry_run:
        return
    if need and need.problem and not yes:
        if not download.can_ask():
            raise type(need.problem)(f"{model} was not downloaded: add --yes to do it anyway")
        if not download.confirm("Download it anyway?", default=False):
            raise typer.Exit(1)
    for folder in download.download(downloads):
        print(folder)
    print(f"Next: mgm chat --model {downloads[0].name}", file=sys.stderr)
