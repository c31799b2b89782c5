"""Tables and lines that fit a terminal. Knows nothing of what is shown."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import cache
from typing import IO, TYPE_CHECKING, Any, Literal, TextIO

from rich.cells import cell_len

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

GAP = 2  # between two columns of a table
USUAL_SIZE = os.terminal_size((80, 24))
MAX_WORD = 24  # longer words are broken if a table fits in no other way
LEAST = 12  # columns that names and signs at their side leave to a text
UNLIMITED = 10_000  # columns

Side = Literal["left", "center", "right"]


def table(
    header: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    markdown: bool = False,
    left: int = 1,
    width: int | None = None,
) -> str:
    """Return a table as text without colors; the first `left` columns are aligned to the left.

    markdown: with the rules that Markdown needs, and as wide as it is. width: otherwise, the most
    columns of a line, by default the width of stdout if that is a terminal. See `table_lines`.
    """
    from rich.text import Text

    sides: list[Side] = ["left" if number < left else "right" for number in range(len(header))]
    cells = [[Text(cell) for cell in row] for row in (header, *rows)]
    if markdown:
        lines = _drawn(cells, sides, [None] * len(header), markdown=True)
    else:
        lines = table_lines(cells, sides, left, width or columns(sys.stdout) or UNLIMITED)
    return "\n".join(line.plain for line in lines)


def table_lines(
    rows: Sequence[Sequence[Text]], sides: Sequence[Side], left: int, width: int
) -> list[Text]:
    """Return a table, its header first, as lines of at most `width` columns if words allow.

    sides: how columns are aligned. To fit, the first `left` columns wrap; if that is not enough,
    each row becomes lines of a name and a value.
    """
    from rich.text import Text

    by_column = [
        [line for cell in column for line in cell.plain.split("\n")]
        for column in zip(*rows, strict=True)
    ]
    widths = _fitting(by_column, left, width)
    if widths is not None:
        return _drawn(rows, sides, widths)
    header, *body = rows
    names = max(cell.cell_len for cell in header) + GAP
    lines: list[Text] = []
    for row in body:
        lines += [Text()] if lines else []
        for name, value in zip(header, row, strict=True):
            starts = Text.assemble(name, " " * (names - name.cell_len)), Text(" " * names)
            values = broken(value, max(width - names, LEAST))
            lines += [Text.assemble(starts[at > 0], one) for at, one in enumerate(values)]
    return _stripped(lines)


def _drawn(
    rows: Sequence[Sequence[Text]],
    sides: Sequence[Side],
    widths: Sequence[int | None],
    *,
    markdown: bool = False,
) -> list[Text]:
    """Return the lines of a table with columns of these widths, None for as wide as they are."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    padding = (0, 1) if markdown else (0, 1, 0, 0)
    kind = box.MARKDOWN if markdown else box.SIMPLE_HEAD
    drawn = Table(box=kind, pad_edge=markdown, padding=padding, header_style="")
    for name, side, own in zip(rows[0], sides, widths, strict=True):
        drawn.add_column(name, justify=side, width=own, no_wrap=own is None, overflow="fold")
    for row in rows[1:]:
        drawn.add_row(*row)
    lines = console().render_lines(drawn, pad=False)
    texts = [Text.assemble(*((one.text, one.style or "") for one in line)) for line in lines]
    return [line for line in _stripped(texts) if line]


def _stripped(lines: list[Text]) -> list[Text]:
    for line in lines:
        line.rstrip()
    return lines


@cache
def console() -> Console:
    """Return the console that lays out lines of any length; it prints nothing."""
    from rich.console import Console

    return Console(width=UNLIMITED, color_system=None, markup=False, highlight=False)


def _fitting(cells: Sequence[Sequence[str]], left: int, width: int) -> list[int] | None:
    """Return widths with which columns fit in a line, after a blank, or None if they cannot.

    cells: by column. The first `left` may wrap between words.
    """
    natural = [max(map(cell_len, column)) for column in cells]
    words = [[cell_len(word) for cell in column for word in cell.split()] for column in cells]
    for unbroken in (UNLIMITED, MAX_WORD):
        least = [min(max(lengths, default=0), unbroken) for lengths in words]
        least[left:] = natural[left:]
        for most in range(max(natural, default=0), -1, -1):
            found = [max(low, min(one, most)) for one, low in zip(natural, least, strict=True)]
            if 1 + sum(found) + GAP * (len(found) - 1) <= width:
                return found
    return None


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


def say(line: str, stream: TextIO | None = None) -> None:
    """Print a line, by default on stderr, wrapped if that is a terminal."""
    to = stream or sys.stderr
    print(wrapped(line, columns(to)), file=to, flush=True)


def broken(text: Text, width: int) -> list[Text]:
    """Return the lines of a text, those that are too long broken between words.

    A word that is too long stays whole: a terminal breaks it, and what is copied is in one piece.
    """
    lines: list[Text] = []
    width = max(width, 1)
    for line in text.split(allow_blank=True) or [text]:
        cuts, used = [], 0
        for word in re.finditer(r"\s*\S+\s*", line.plain):
            length = cell_len(word[0].rstrip())
            if used and length <= width < used + length:
                cuts.append(word.start())
                used = 0
            used = (used + cell_len(word[0])) if length <= width else (used + length) % width + 1
        lines += line.divide(cuts)
    return _stripped(lines)


def can_draw(stream: IO[Any] | None = None) -> bool:
    """Return True if a stream, by default stderr, is a terminal that can do more than print."""
    return (stream or sys.stderr).isatty() and (os.environ.get("TERM") or "dumb") != "dumb"
