"""`mgm pull`: a target and its drafter from the Hub into the cache, sizes first."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated

import typer

from mlx_gemma_mtp.cli import options
from mlx_gemma_mtp.errors import UsageError

WHAT_IS_KEPT = "stopped; the files that came whole are kept, and mgm pull fetches the others"


def pull(
    model: Annotated[str, typer.Argument(help="A Hub name, such as google/gemma-4-E4B-it.")],
    drafter: Annotated[
        str, typer.Option(help="A Hub name; auto: <model>-assistant if there is one; none.")
    ] = "auto",
    revision: Annotated[
        str | None,
        typer.Option(help="A branch, a tag or a commit; load it as <model>@<revision> [main]."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the sizes only.")] = False,
) -> None:
    """Download a model and its drafter.

    Into the Hub's cache; prints their folders.
    """
    if revision is not None:
        if "@" in model:
            raise UsageError(f"{model} names a revision already: leave --revision out")
        model = f"{model}@{revision}"
    for folder in fetch_pair(model, drafter, dry_run=dry_run):
        print(folder)


def fetch_pair(model: str, drafter: str, *, dry_run: bool = False) -> list[Path]:
    """Tell what a target and its drafter take, and download them; the folders.

    dry_run: tell only, on stdout. Ctrl-C ends the process. Raises as `download` says.
    """
    from rich.filesize import decimal

    from mlx_gemma_mtp.files import download, folders, hub

    downloads = download.plan(model, options.named_drafter(drafter))
    shown = sys.stdout if dry_run else sys.stderr
    width = max(len(one.name) for one in downloads)
    for one in downloads:
        missing = f"{decimal(one.missing)} to download" if one.missing else "in the cache"
        print(f"{one.name:{width}}  {decimal(one.total):>8}, {missing}", file=shown)
        if one.refused:
            print(f"mgm: not compared with the Hub: {one.refused}", file=sys.stderr)
    if drafter == "auto" and len(downloads) == 1 and not downloads[0].alone:
        print(f"no drafter: there is no {hub.drafter_name(model)}", file=sys.stderr)
    free = decimal(folders.free_bytes(hub.cache_folder()))
    print(f"{free} free in {hub.cache_folder()}", file=shown)
    download.check_room(downloads)
    if dry_run:
        return []
    with ExitStack() as stack:
        stack.enter_context(stoppable([one.repository for one in downloads]))
        if not sys.stderr.isatty():
            stack.enter_context(download.without_bars())
        return [download.fetch(one) for one in downloads]


def fetch_missing(model: str, drafter: str) -> None:
    """Before a model is loaded: `fetch_pair`, where it is neither a folder nor in the cache."""
    from mlx_gemma_mtp.files import hub

    if model == "demo" or hub.is_folder(model) or hub.from_cache(model) is not None:
        return
    here = drafter == "demo" or (drafter not in ("auto", "none") and hub.is_folder(drafter))
    fetch_pair(model, "none" if here else drafter)


@contextmanager
def stoppable(repositories: Sequence[str]) -> Iterator[None]:
    """Within it, Ctrl-C leaves at once and takes the parts of files along that nobody could use.

    In order, the Hub's client would wait for all files under way, and Python for its threads.
    """
    from mlx_gemma_mtp.files import download

    def parts() -> set[Path]:
        return {path for name in repositories for path in download.parts(name)}

    before = parts()

    def leave(*_: object) -> None:
        for path in parts() - before:
            path.unlink(missing_ok=True)
        os.write(2, options.interruption(f"{WHAT_IS_KEPT}\n").encode())  # it may be within a print
        os._exit(options.INTERRUPTED)

    previous = signal.signal(signal.SIGINT, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
