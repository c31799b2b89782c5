"""Progress at a terminal, on one line that goes when all is done. Knows nothing of what is done."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, TextIO

from mlx_gemma_mtp.show import can_draw, size

if TYPE_CHECKING:
    from rich.progress import Progress, Task

# What is being done, how much of it is done, and the total (None if it is not known).
Update = Callable[[str, float, float | None], None]

SHORTEST_BAR = 10  # in columns


@contextmanager
def progress(unit: Literal["bytes", "items"]) -> Iterator[Update]:
    """Show progress on stderr inside the block; call the result whenever something was done.

    One line with speed and time left, which disappears at the end. Does nothing unless `can_draw`.
    """
    if not can_draw():
        yield lambda *_: None
        return
    from rich.progress import ProgressColumn

    class Line(ProgressColumn):
        def render(self, task: Task) -> Any:
            return _progress_line(task, unit, shown.console.width)

    shown = _display(None, Line())
    task = shown.add_task("", total=None)

    def update(what: str, done: float, total: float | None) -> None:
        if not shown.live.is_started or done < shown.tasks[0].completed:
            # What was done before this run, or in an earlier step, counts for nothing in the speed.
            shown.reset(task, description=what, completed=int(done), total=total)
            shown.start()
        shown.update(task, description=what, completed=done, total=total)

    try:
        yield update
    finally:
        shown.stop()


def _progress_line(task: Task, unit: Literal["bytes", "items"], width: int) -> Any:
    """Return one line of progress. A narrow window gets the figures, without name and bar.

    The figures have fixed widths, so that the line keeps its shape.
    """
    from rich.filesize import decimal
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    def amount(number: float) -> str:
        return decimal(int(number)) if unit == "bytes" else f"{number:,.0f}"

    figures = amount(task.completed)
    if task.total:
        share = f"{int(task.percentage):>3}% of "
        figures = f"{share if unit == 'bytes' else f'{figures}/'}{amount(task.total)}"
    if unit == "bytes":
        figures += f"{amount(task.speed or 0):>10}/s "
    left = "-:--" if task.time_remaining is None else clock(task.time_remaining)
    figures += f"{left:>7} left" if width >= 60 else f"{left:>7}"
    room = width - len(figures) - 4 - SHORTEST_BAR  # with room for ^C
    if room < 0:
        return figures
    line = Table.grid(padding=(0, 1, 0, 0))
    name = task.description if len(task.description) < room else ""
    bar = ProgressBar(
        task.total, task.completed, width=room + SHORTEST_BAR - len(name) - bool(name)
    )
    line.add_row(*([name] if name else []), bar, figures)
    return line


def clock(seconds: float) -> str:
    """Return a duration as 0:07, 12:30 or 1:02:30."""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


@contextmanager
def spinner(what: str, stream: TextIO | None = None) -> Iterator[Callable[[str], None]]:
    """Show `what` with the seconds that it takes, on stderr or another stream, inside the block.

    Call the result to show something else.
    """
    if not can_draw(stream):
        yield lambda _: None
        return
    from rich import progress as bars

    text = bars.TextColumn("{task.description} {task.elapsed:.0f} s", markup=False)
    shown = _display(stream, bars.SpinnerColumn("line", style=""), text)
    room = size(stream or sys.stderr).columns - len("| …  9,999 s")

    def fitting(what: str) -> str:
        return what if len(what) <= room else f"{what[:room]}…"

    task = shown.add_task(fitting(what), total=None)
    timer = threading.Timer(0.3, shown.start)  # anything quicker shows no spinner
    timer.start()
    try:
        yield lambda what: shown.update(task, description=fitting(what))
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
