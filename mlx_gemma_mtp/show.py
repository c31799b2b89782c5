"""Tables and progress for a terminal. Knows nothing of what is in them."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

# What is being done, how much of it is done, and of how much (None: unknown).
Update = Callable[[str, float, float | None], None]


def table(
    header: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    markdown: bool = False,
    left: int = 1,
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


def can_draw() -> bool:
    """Return True if standard error is a terminal that can do more than print."""
    return sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb"


@contextmanager
def progress(unit: Literal["bytes", "items"]) -> Iterator[Update]:
    """Show progress on standard error while within; call the result whenever something was done.

    A bar with speed and time left that disappears at the end. Nothing at all unless `can_draw`.
    """
    if not can_draw():
        yield lambda *_: None
        return
    from rich import progress as bars
    from rich.console import Console

    counts = (
        [bars.DownloadColumn(), bars.TransferSpeedColumn()]
        if unit == "bytes"
        else [bars.MofNCompleteColumn()]
    )
    shown = bars.Progress(
        bars.BarColumn(),
        *counts,
        bars.TimeRemainingColumn(),
        bars.TextColumn("{task.description}", markup=False),
        console=Console(stderr=True),
        transient=True,
    )
    task = shown.add_task("", total=None)

    def update(what: str, done: float, total: float | None) -> None:
        shown.start()  # not before: a download may show bars of its own first
        shown.update(task, description=what, completed=done, total=total)

    try:
        yield update
    finally:
        shown.stop()
