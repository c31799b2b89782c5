"""Tables and progress for a terminal. Knows nothing of what is shown."""

from __future__ import annotations

import io
import os
import re
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import IO, TYPE_CHECKING, Any, Literal, TextIO

from rich.cells import cell_len

if TYPE_CHECKING:
    from rich.progress import Progress, Task
    from rich.text import Text

GAP = 2  # between two columns of a table
USUAL_SIZE = os.terminal_size((80, 24))
MAX_WORD = 24  # longer words may be broken to fit a table

# What is being done, how much of it is done, and the total (None if it is not known).
Update = Callable[[str, float, float | None], None]

SHORTEST_BAR = 10  # in columns


def table(
    header: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    markdown: bool = False,
    left: int = 1,
    width: int | None = None,
) -> str:
    """Return a table as text without colors; the first `left` columns are aligned to the left.

    markdown: with the rules that Markdown needs, else with one line under the header. width: the
    most columns of a line, by default the width of stdout if that is a terminal. To fit, the left
    columns wrap; if that is not enough, each row becomes lines of a name and a value. A Markdown
    table is as wide as it is.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    texts = [tuple(header), *map(tuple, rows)]
    widths: list[int] | None = None
    if not markdown and (width := width or columns(sys.stdout)):
        widths = fitting(list(zip(*texts, strict=True)), left, width)
        if widths is None:
            return "\n\n".join(_record(header, row, width) for row in texts[1:])
    padding = (0, 1) if markdown else (0, 1, 0, 0)
    kind = box.MARKDOWN if markdown else box.SIMPLE_HEAD
    drawn = Table(box=kind, pad_edge=markdown, padding=padding)
    for number, name in enumerate(header):
        justify: Literal["left", "right"] = "left" if number < left else "right"
        own = widths[number] if widths else None
        drawn.add_column(name, justify=justify, width=own, no_wrap=not widths, overflow="fold")
    for row in texts[1:]:
        drawn.add_row(*row)
    out = io.StringIO()
    console = Console(file=out, width=10_000, markup=False, highlight=False, color_system=None)
    console.print(drawn)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()).strip("\n")


def fitting(cells: Sequence[Sequence[str]], left: int, width: int) -> list[int] | None:
    """Return widths with which columns fit in a line, after a blank, or None if they cannot.

    cells: by column. The first `left` may wrap between words.
    """
    natural = [max(map(cell_len, column)) for column in cells]
    words = [[cell_len(word) for cell in column for word in cell.split()] for column in cells]
    least = [min(max(lengths, default=0), MAX_WORD) for lengths in words]
    least[left:] = natural[left:]
    for most in range(max(natural, default=0), -1, -1):
        found = [max(low, min(one, most)) for one, low in zip(natural, least, strict=True)]
        if 1 + sum(found) + GAP * (len(found) - 1) <= width:
            return found
    return None


def _record(header: Sequence[str], row: Sequence[str], width: int) -> str:
    """Return a row as lines of a name and a value."""
    names = max(map(cell_len, header))
    lines: list[str] = []
    for name, value in zip(header, row, strict=True):
        first, *more = wrapped(value, width - names - GAP).splitlines() or [""]
        lines += [
            f"{name:{names}}{' ' * GAP}{first}",
            *(f"{'':{names + GAP}}{one}" for one in more),
        ]
    return "\n".join(line.rstrip() for line in lines)


def columns(stream: IO[Any]) -> int | None:
    """Return the width of a terminal, or None if the stream is not one."""
    return size(stream).columns if stream.isatty() else None


def size(terminal: IO[Any]) -> os.terminal_size:
    """Return the size of a terminal, or a usual one if it does not say."""
    with suppress(OSError):
        found = os.get_terminal_size(terminal.fileno())
        if found.columns and found.lines:
            return found
    return USUAL_SIZE


def wrapped(text: str, width: int | None) -> str:
    """Return a text with lines of at most `width` columns, as `broken`; None changes nothing."""
    from rich.text import Text

    return text if width is None else "\n".join(line.plain for line in broken(Text(text), width))


def broken(text: Text, width: int) -> list[Text]:
    """Return the lines of a text, those that are too long broken between words.

    A word that is too long stays whole: a terminal breaks it, and what is copied is in one piece.
    """
    lines: list[Text] = []
    for line in text.split(allow_blank=True) or [text]:
        cuts, used = [], 0
        for word in re.finditer(r"\s*\S+\s*", line.plain):
            length = cell_len(word[0].rstrip())
            if used and length <= width < used + length:
                cuts.append(word.start())
                used = 0
            used = (used + cell_len(word[0])) if length <= width else (used + length) % width + 1
        lines += line.divide(cuts)
    for line in lines:
        line.rstrip()
    return lines


def can_draw(stream: IO[Any] | None = None) -> bool:
    """Return True if a stream, by default stderr, is a terminal that can do more than print."""
    return (stream or sys.stderr).isatty() and os.environ.get("TERM", "dumb") != "dumb"


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
def spinner(what: str, stream: TextIO | None = None) -> Iterator[None]:
    """Show `what` with the seconds that it takes, on stderr or another stream, inside the block."""
    if not can_draw(stream):
        yield
        return
    from rich import progress as bars

    text = bars.TextColumn("{task.description} {task.elapsed:.0f} s", markup=False)
    shown = _display(stream, bars.SpinnerColumn("line", style=""), text)
    room = size(stream or sys.stderr).columns - len("| …  9,999 s")
    shown.add_task(what if len(what) <= room else f"{what[:room]}…", total=None)
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
