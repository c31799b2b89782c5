"""A terminal on paper: what a person sees of what a program writes, on a sheet without end.

Knows the escape sequences that a line editor needs; any other is an error.
"""

from __future__ import annotations

import re
from typing import NamedTuple

SEQUENCE = re.compile(r"\x1b(?:\[(\??)([\d;]*)([A-Za-z])|\](.*?)(?:\x07|\x1b\\))", re.DOTALL)
UNFINISHED = re.compile(r"\x1b(?:\[\??[\d;]*|\][^\x07\x1b]*)?\Z")


class Cell(NamedTuple):
    """A character and whether it is dim."""

    character: str
    dim: bool


class Paper:
    """Feed it the program's output; `lines` is what stands there."""

    def __init__(self, columns: int) -> None:
        self.columns = columns
        self.cells: list[list[Cell]] = [[]]
        self.row = self.column = 0
        self.modes: dict[str, bool] = {}  # of `CSI ? number h`, the last ones set
        self.clipboard: list[str] = []  # what OSC 52 handed over
        self._dim = False
        self._rest = ""

    @property
    def lines(self) -> list[str]:
        """Each line without the blanks at its end."""
        return ["".join(cell.character for cell in row).rstrip() for row in self.cells]

    @property
    def text(self) -> str:
        """All of it."""
        return "\n".join(self.lines)

    @property
    def at(self) -> str:
        """The line of the cursor, up to the cursor."""
        row = self.cells[self.row][: self.column]
        return "".join(cell.character for cell in row).ljust(self.column)

    def feed(self, text: str) -> None:
        """The program wrote this."""
        text = self._rest + text
        unfinished = UNFINISHED.search(text)
        end = unfinished.start() if unfinished else len(text)
        text, self._rest = text[:end], text[end:]
        position = 0
        while position < len(text):
            if text[position] != "\x1b":
                self._put(text[position])
                position += 1
                continue
            found = SEQUENCE.match(text, position)
            assert found, f"unknown sequence {text[position : position + 12]!r}"
            self._obey(found)
            position = found.end()

    def _put(self, character: str) -> None:
        if character == "\r":
            self.column = 0
        elif character == "\n":
            self._move(1)
        elif character == "\b":
            self.column = max(0, self.column - 1)
        elif character != "\x07":
            if self.column >= self.columns:
                self.column = 0
                self._move(1)
            row = self.cells[self.row]
            row += [Cell(" ", False)] * (self.column + 1 - len(row))
            row[self.column] = Cell(character, self._dim)
            self.column += 1

    def _move(self, rows: int) -> None:
        self.row = max(0, self.row + rows)
        self.cells += [[] for _ in range(self.row + 1 - len(self.cells))]

    def _obey(self, found: re.Match[str]) -> None:
        private, numbers, letter, command = found.groups()
        if command is not None:
            kind, _, rest = command.partition(";")
            if kind == "52":
                self.clipboard.append(rest)
            return
        count = int(numbers.split(";")[0] or 1) if letter in "ABCD" else 0
        if private:
            self.modes[numbers] = letter == "h"
        elif letter == "A":
            self._move(-count)
        elif letter == "B":
            self._move(count)
        elif letter == "C":
            self.column = min(self.column + count, self.columns - 1)
        elif letter == "D":
            self.column = max(0, self.column - count)
        elif letter in "JK":
            assert numbers in ("", "0"), found[0]
            del self.cells[self.row][self.column :]
            if letter == "J":
                del self.cells[self.row + 1 :]
        elif letter == "m":
            for number in (numbers or "0").split(";"):
                self._dim = number == "2" or (self._dim and number not in ("0", "", "22"))
        else:
            raise AssertionError(f"unknown sequence {found[0]!r}")
