"""A terminal whose scrolled lines are kept: what a person saw of a program's output."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import pyte

ROWS = 24
BLINK, DIM = 5, 2  # pyte knows no dim characters: here they blink


class Cell(NamedTuple):
    """A character and whether it is dim."""

    character: str
    dim: bool


class _Screen(pyte.HistoryScreen):
    def select_graphic_rendition(self, *attributes: int, **options: Any) -> None:
        shown = (BLINK if one == DIM else one for one in attributes)
        super().select_graphic_rendition(*shown, **options)


class Paper:
    """Feed it the program's output; `lines` is what is written there, from the start."""

    def __init__(self, columns: int) -> None:
        self._screen = _Screen(columns, ROWS, history=10_000)
        self._stream = pyte.Stream(self._screen)
        self._written = ""

    def feed(self, text: str) -> None:
        """Take output of the program."""
        self._written += text
        self._stream.feed(text)

    def resize(self, columns: int) -> None:
        """Change the width of the terminal."""
        self._screen.resize(columns=columns)

    @property
    def row(self) -> int:
        """The line of the cursor."""
        return len(self._screen.history.top) + self._screen.cursor.y

    @property
    def cells(self) -> list[list[Cell]]:
        """All lines as cells, without blanks at their ends."""
        shown = [self._screen.buffer[row] for row in range(ROWS)]
        rows = []
        for line in (*self._screen.history.top, *shown):
            used = [x for x in line if line[x].data.strip()]
            rows.append(
                [Cell(line[x].data, line[x].blink) for x in range(max(used, default=-1) + 1)]
            )
        return rows

    @property
    def lines(self) -> list[str]:
        """All lines as text."""
        return ["".join(cell.character for cell in row) for row in self.cells]

    @property
    def text(self) -> str:
        """All lines as one string."""
        return "\n".join(self.lines).rstrip()

    @property
    def at(self) -> str:
        """The line of the cursor, up to the cursor."""
        line = self._screen.buffer[self._screen.cursor.y]
        return "".join(line[x].data for x in range(self._screen.cursor.x))

    @property
    def clipboard(self) -> list[str]:
        """What the program sent to the clipboard, in base64 (OSC 52)."""
        return re.findall("\x1b]52;c;(.*?)\x07", self._written)

    def mode(self, number: int) -> bool:
        """Return True if a private mode is set; 25 shows the cursor, 2004 marks pastes."""
        return number << 5 in self._screen.mode
