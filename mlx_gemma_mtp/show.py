"""Tables and progress for a terminal. Knows nothing of what is shown."""

from __future__ import annotations

import io
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress

# What is being done, how much of it is done, and the total (None if it is not known).
Update = Callable[[str, float, float | None], None]


def table(
    header: Sequence[str], rows: Iterable[Sequence[str]], *, markdown: bool = False, left: int = 1
) -> str:
    """Return a table as text without colors; the first `left` columns are aligned to the left.

    markdown: with the rules that Markdown needs, else with one line under the header.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    drawn = Table(box=box.MARKDOWN if markdown else box.SIMPLE_HEAD, pad_edge=markdown)
    for number, name in enumerate(header):
        drawn.add_column(name, justify="left" if number < left else "right", no_wrap=True)
    for row in rows:
        drawn.add_row(*row)
    out = io.StringIO()
    Console(file=out, width=10_000, markup=False, highlight=False, color_system=None).print(drawn)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()).strip("\n")


def can_draw(stream: TextIO | None = None) -> bool:
    """Return True if a stream, by default stderr, is a terminal that can do more than print."""
    return (stream or sys.stderr).isatty() and os.environ.get("TERM", "dumb") != "dumb"


@contextmanager
def progress(unit: Literal["bytes", "items"]) -> Iterator[Update]:
    """Show progress on stderr inside the block; call the result whenever something was done.

    A bar with speed and time left, which disappears at the end. Does nothing unless `can_draw`.
    """
    if not can_draw():
        yield lambda *_: None
        return
    from rich import progress as bars

    in_bytes = [bars.DownloadColumn(), bars.TransferSpeedColumn()]
    counts = in_bytes if unit == "bytes" else [bars.MofNCompleteColumn()]
    columns = [bars.BarColumn(), *counts, bars.TimeRemainingColumn()]
    shown = _display(None, *columns, bars.TextColumn("{task.description}", markup=False))
    task = shown.add_task("", total=None)

    def update(what: str, done: float, total: float | None) -> None:
        shown.start()  # not before: a download may show bars of its own first
        shown.update(task, description=what, completed=done, total=total)

    try:
        yield update
    finally:
        shown.stop()


@contextmanager
def spinner(what: str, stream: TextIO | None = None) -> Iterator[None]:
    """Show `what` with the seconds that it takes, on stderr or another stream, inside the block."""
    if not can_draw(stream):
        yield
        return
    from rich import progress as bars

    text = bars.TextColumn("{task.description} {task.elapsed:.0f} s", markup=False)
    shown = _display(stream, bars.SpinnerColumn("line", style=""), text)
    shown.add_task(what, total=None)
    timer = threading.Timer(0.3, shown.start)  # anything quicker shows no spinner
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()  # it may be starting the display just now
        shown.stop()


def _display(stream: TextIO | None, *columns: Any) -> Progress:
    from rich.console import Console
    from rich.progress import Progress

    console = Console(file=stream, stderr=True)
    # With stdout redirected, an answer on its way to a file would go to the terminal.
    return Progress(*columns, console=console, transient=True, redirect_stdout=False)
