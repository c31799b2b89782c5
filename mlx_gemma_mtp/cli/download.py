"""Downloading a pair: what it takes and whether it can run here first, then progress.

At a terminal it asks; elsewhere it needs --yes.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import typer
from rich.filesize import decimal

from mlx_gemma_mtp.cli import options
from mlx_gemma_mtp.cli.question import can_ask, confirm
from mlx_gemma_mtp.errors import (
    INTERRUPTED,
    CheckpointError,
    MgmError,
    NotEnoughMemoryError,
    UsageError,
)
from mlx_gemma_mtp.progress import clock, progress, spinner
from mlx_gemma_mtp.show import can_draw, columns, say, wrapped

if TYPE_CHECKING:
    from mlx_gemma_mtp.files.plan import Download

UNASKED_BYTES = 100_000_000  # what a command may download without a question
STOPPED = "stopped; what is downloaded is kept, and the same command continues it"


def fetch_missing(
    model: str,
    drafter: str,
    *,
    bits: int | None = None,
    yes: bool = False,
    force: bool = False,
    to_run: bool = True,
) -> None:
    """Download what the cache lacks of a pair, after a question unless it is little.

    model, drafter: as a command's options name them. yes: do not ask. force: it need not fit in
    memory. to_run: False if it is not loaded, and may be of any size. Raises UsageError if it
    would have to ask but cannot, NotEnoughMemoryError or CheckpointError if it could not be loaded
    afterwards, and as `plan_download` says.
    """
    from mlx_gemma_mtp.files import hub
    from mlx_gemma_mtp.files.names import check_target
    from mlx_gemma_mtp.files.plan import check_room

    check_target(model)
    drafter = options.named_drafter(drafter) or "none"
    wanted = drafter if drafter == "auto" or not _is_here(drafter) else "none"
    try:
        if not _is_here(model):
            downloads = plan(model, wanted, update=False)
        elif wanted not in ("auto", "none"):
            downloads = plan(wanted, "none", update=False)
        else:
            return
    except MgmError as error:
        if _is_here(model) or hub.from_cache(model) is None:
            raise
        say(f"mgm: {model} may lack files: {error}")
        return
    missing = sum(one.missing for one in downloads)
    if not missing:
        return
    need = look(downloads, bits) if to_run else None
    unfit = need.problem if need and not force else None
    asks = missing > UNASKED_BYTES and not yes
    if asks and not unfit and not can_ask():
        raise UsageError(
            f"{model} is not downloaded ({decimal(missing)}): add --yes to download it, or run "
            f"mgm pull {model}"
        )
    show_plan(downloads, need)
    if unfit:
        raise unfit
    check_room(downloads)
    if asks and not confirm("Download?"):
        raise typer.Exit(1)
    download(downloads)


def offer_drafter(
    model: str, *, bits: int | None = None, yes: bool = False, force: bool = False
) -> None:
    """Offer to download the drafter of a model that has none here; without a terminal, name it.

    yes: do not ask. If it cannot be downloaded, the reason goes to stderr. bits, force: of `load`.
    Raises what `load` would raise for the target alone, so that nothing is offered for it.
    """
    from mlx_gemma_mtp import memory
    from mlx_gemma_mtp.engine.worker import mlx_worker
    from mlx_gemma_mtp.files.drafters import googles
    from mlx_gemma_mtp.files.find import target_without_drafter
    from mlx_gemma_mtp.files.folders import shown

    alone = target_without_drafter(model)
    if alone is None:
        return
    folder, target = alone
    if force:
        mlx_worker().run(partial(memory.read_pair, folder, None, bits=bits))
    else:
        mlx_worker().run(partial(memory.check_load, folder, None, model, bits=bits))
    found = googles(target)
    if found is None:
        say(
            f"No drafter in {shown(folder)}, next to it or in the Hub's cache: running without "
            "drafts."
        )
        return
    name, size = found[0], decimal(found[1])
    if not yes and not can_ask():
        say(f"No drafter here: mgm pull {name} ({size})")
    elif yes or confirm(f"No drafter here. Download {name} ({size})?"):
        try:
            download(plan(name, "none"))
        except MgmError as error:
            say(f"mgm: decoding without a drafter: {error}")
    else:
        say("Decoding without one; --drafter none does not ask.")


def _is_here(name: str) -> bool:
    """Return True if nothing of a model has to be downloaded, as far as that is known."""
    from mlx_gemma_mtp.files import hub
    from mlx_gemma_mtp.files.names import is_local

    if name == "none" or is_local(name):
        return True
    cached = hub.from_cache(name)
    return cached is not None and not hub.may_lack_files(cached)


def plan(model: str, drafter: str, *, update: bool = True) -> list[Download]:
    """Return `plan_download` of what a command's options name."""
    from mlx_gemma_mtp.files.plan import plan_download

    with spinner(f"asking the Hub for {model}"):
        return plan_download(model, options.named_drafter(drafter), update=update)


class Need(NamedTuple):
    """What running a pair takes. problem: why it could not be loaded here.

    needs: bytes on this machine, with a modest context; None if that cannot be said. mac: the
    memory of the smallest Mac that runs it, in GB.
    """

    problem: MgmError | None
    needs: int | None = None
    available: int = 0
    mac: int | None = None


def look(downloads: Sequence[Download], bits: int | None = None) -> Need:
    """Return what a pair needs, from its configs and headers on the Hub. Raises MgmError."""
    from mlx_gemma_mtp import device, memory
    from mlx_gemma_mtp.engine.worker import mlx_worker
    from mlx_gemma_mtp.files.checkpoint import is_drafter
    from mlx_gemma_mtp.files.preview import previews

    def read(folder: Path, beside: Path | None) -> Need:
        here = memory.read_pair(folder, beside, bits=bits).needs_to_load
        on_mac = memory.read_pair(folder, beside, bits=bits, on_mac=True).needs_to_load
        problem = None
        try:
            memory.check_load(folder, beside, downloads[0].repository, bits=bits)
        except NotEnoughMemoryError as error:
            problem = error
        return Need(problem, here, device.available(), min(device.macs_with(on_mac), default=None))

    try:
        with spinner(f"reading the headers of {downloads[0].name}"), previews(downloads) as folders:
            if is_drafter(folders[0]):
                return Need(None)
            return mlx_worker().run(partial(read, folders[0], (*folders[1:], None)[0]))
    except CheckpointError as error:
        return Need(error)


def show_plan(downloads: Sequence[Download], need: Need | None, *, out: bool = False) -> None:
    """Print what is downloaded, the free disk and the memory needed; on stderr unless `out`."""
    from mlx_gemma_mtp.files import folders, hub

    to = sys.stdout if out else sys.stderr
    width = max(len(one.name) for one in downloads)
    if width + 10 > (columns(to) or 80):  # then sizes are not aligned
        width = 0
    for one in downloads:
        note, here = "", one.total - one.missing
        if here:
            note = f", {decimal(here)} in the cache" if one.missing else ", in the cache"
        size = decimal(one.total)
        say(f"{one.name:{width}}  {size:>8}{note}" if width else f"{one.name}\n  {size}{note}", to)
        if one.refused:
            say(f"mgm: not compared with the Hub: {one.refused}")
    if missing := sum(one.missing for one in downloads):
        free = decimal(folders.free_bytes(hub.cache_folder()))
        place = folders.shown(hub.cache_folder())
        say(f"Download: {decimal(missing)}; {free} free in {place}", to)
    if need and need.needs:
        mac = f"the smallest Mac: {need.mac} GB" if need.mac else "more than any Mac has"
        say(f"Memory: {decimal(need.needs)}; {decimal(need.available)} here; {mac}", to)


def download(downloads: Sequence[Download]) -> list[Path]:
    """Download and return the folders; Ctrl-C ends the process. Raises MgmError."""
    from mlx_gemma_mtp.files.download import fetch

    missing, done, start = sum(one.missing for one in downloads), 0, time.monotonic()
    with stoppable(), progress("bytes") as update:
        found = []
        for one in downloads:
            name = one.repository.rpartition("/")[2]

            def moved(count: int, name: str = name) -> None:
                nonlocal done
                done += count
                update(name, done, missing)

            update(name, done, missing)
            found.append(fetch(one, moved))
    seconds = time.monotonic() - start
    if missing:
        speed = decimal(int(missing / seconds))
        say(f"{decimal(missing)} downloaded in {clock(seconds)} ({speed}/s)")
    return found


@contextmanager
def stoppable() -> Iterator[None]:
    """Within it, Ctrl-C leaves at once. Whatever is downloaded is on the disk already.

    Otherwise Python would wait for its threads, and those for a slow Hub.
    """

    def leave(*_: object) -> None:
        # The cursor that a progress line hides comes back, and the line with its ^C goes.
        fresh = "\x1b[?25h\r\x1b[2K" if can_draw() else ""
        line = wrapped(f"mgm: {STOPPED}", columns(sys.stderr))
        os.write(2, f"{fresh}{line}\n".encode())  # not print: the signal may have come within one
        os._exit(INTERRUPTED)

    previous = signal.signal(signal.SIGINT, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
