"""`mgm pull`: download a target and its drafter from the Hub, sizes first."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.filesize import decimal

from mlx_gemma_mtp.cli import options
from mlx_gemma_mtp.errors import UsageError

STOPPED = "stopped; complete files are kept, and mgm pull downloads the others"


def pull(
    model: Annotated[str, typer.Argument(help="A Hub name, such as google/gemma-4-E4B-it.")],
    drafter: Annotated[
        str, typer.Option(help="A Hub name, none, or auto: <model>-assistant if it exists.")
    ] = "auto",
    revision: Annotated[
        str | None,
        typer.Option(help="A branch, tag or commit; load it as <model>@<revision> [main]."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print the sizes.")] = False,
) -> None:
    """Download a model and its drafter to the Hub's cache; print their folders."""
    if revision is not None:
        if "@" in model:
            raise UsageError(f"{model} already names a revision: leave --revision out")
        model = f"{model}@{revision}"
    for folder in fetch_pair(model, drafter, dry_run=dry_run):
        print(folder)


def fetch_pair(model: str, drafter: str, *, dry_run: bool = False) -> list[Path]:
    """Report the sizes of a target and its drafter, and download them; return the folders.

    dry_run: only report, on stdout. Ctrl-C ends the process. Raises as `hub.plan_download` says.
    """
    from mlx_gemma_mtp.files import folders, hub
    from mlx_gemma_mtp.files.names import drafter_name

    downloads = hub.plan_download(model, options.named_drafter(drafter))
    shown = sys.stdout if dry_run else sys.stderr
    width = max(len(one.name) for one in downloads)
    for one in downloads:
        missing = f"{decimal(one.missing)} to download" if one.missing else "in the cache"
        print(f"{one.name:{width}}  {decimal(one.total):>8}, {missing}", file=shown)
        if one.refused:
            print(f"mgm: not compared with the Hub: {one.refused}", file=sys.stderr)
    if drafter == "auto" and len(downloads) == 1 and not downloads[0].alone:
        print(f"no drafter: {drafter_name(model)} does not exist", file=sys.stderr)
    free = decimal(folders.free_bytes(hub.cache_folder()))
    print(f"{free} free in {hub.cache_folder()}", file=shown)
    hub.check_room(downloads)
    if dry_run:
        return []
    with stoppable([one.repository for one in downloads]):
        return [hub.fetch(one, quiet=not sys.stderr.isatty()) for one in downloads]


def fetch_missing(model: str, drafter: str) -> None:
    """Run `fetch_pair` unless the model is a folder or in the cache."""
    from mlx_gemma_mtp.files import hub
    from mlx_gemma_mtp.files.names import is_folder

    if model == "demo" or is_folder(model) or hub.from_cache(model) is not None:
        return
    here = drafter == "demo" or (drafter not in ("auto", "none") and is_folder(drafter))
    fetch_pair(model, "none" if here else drafter)


@contextmanager
def stoppable(repositories: Sequence[str]) -> Iterator[None]:
    """Within it, Ctrl-C leaves at once, and removes files that are only partly downloaded.

    Otherwise the Hub's client would wait for all current files, and Python for its threads.
    """
    from mlx_gemma_mtp.files import hub

    def parts() -> set[Path]:
        return {path for name in repositories for path in hub.parts(name)}

    before = parts()

    def leave(*_: object) -> None:
        for path in parts() - before:
            path.unlink(missing_ok=True)
        # Not print: the signal may have come in the middle of one.
        os.write(2, options.interruption(f"{STOPPED}\n").encode())
        os._exit(options.INTERRUPTED)

    previous = signal.signal(signal.SIGINT, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
