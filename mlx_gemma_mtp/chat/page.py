"""An answer in Markdown on a terminal, laid out again as it arrives.

Only lines that differ are written again. Lines that scrolled away cannot change: they are
continued, so nothing is lost. Knows nothing of chats.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from itertools import takewhile

from rich.cells import cell_len
from rich.color import ColorSystem
from rich.text import Text

from mlx_gemma_mtp.chat.markdown import Part, parts
from mlx_gemma_mtp.show import console

# Control characters could move the cursor: they are shown as pictures. Lines end with \n alone.
PICTURES: dict[int, int | None] = {code: 0x2400 + code for code in range(32)}
PICTURES |= {0x7F: 0x2421} | dict.fromkeys(range(0x80, 0xA0), 0xFFFD)
PICTURES |= {ord("\t"): ord("\t"), ord("\n"): ord("\n"), ord("\r"): None}
TAB = 8


class Page:
    """Lines of text, of which the cursor is at the end."""

    def __init__(
        self, write: Callable[[str], object], size: Callable[[], os.terminal_size]
    ) -> None:
        self._write = write
        self._size = size
        self._seen = size()
        self._lines: list[Text] = []  # that can still change
        self._gone = ""  # the letters of those before them
        self._unended = False  # True if the cursor is at the end of those
        self.moved = False  # set it if others wrote here: the cursor is on a new line now

    @property
    def whole(self) -> bool:
        """True if all lines can still change."""
        self._follow_size()
        return not self._gone

    @property
    def width(self) -> int:
        """The columns of the terminal."""
        return self._size().columns

    def show(self, lines: list[Text]) -> None:
        """Show these lines in place of those before."""
        self._follow_size()
        left = _after(lines, self._gone)
        if left is None:  # what scrolled away is different now: all of it once more
            self.keep()
            left = lines
        elif self._unended:
            left = self._end_line(lines, left)
        old = self._lines
        pairs = zip(old, left, strict=False)
        first = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        if first == len(old) == len(left):
            return
        start = "\n" if old else ""
        if first < len(old):
            first = max(min(first, len(left) - 1), 0)
            before, now = (sum(map(self._rows, side[first:])) for side in (old, left))
            up = f"\x1b[{before - 1}A" if before > 1 else ""
            start = f"\r{up}\x1b[J" if now < before else f"\r{up}"
        self._write(start + "\n".join(_ansi(line, self._seen.columns) for line in left[first:]))
        self._lines = left
        self._scroll()

    def keep(self) -> None:
        """Leave the lines as they are; the next ones come below."""
        if self._lines or self._unended:
            self._write("\n")
        self._lines, self._gone, self._unended = [], "", False

    def _freeze(self) -> None:
        """Leave the lines as they are, and continue on a new line, once the last word is whole."""
        self._unended = (self._unended or bool(self._lines)) and not self.moved
        self.moved = False
        self._gone += "".join(map(_letters, self._lines))
        self._lines = []

    def _end_line(self, lines: list[Text], left: list[Text]) -> list[Text]:
        """Write the end of a word that was cut, then a new line; return what is left of `lines`."""
        if not left:
            return left
        line, rest = lines[-len(left)].plain, left[0].plain
        if not f" {line}"[-len(rest) - 1].isspace():
            word = rest.split(maxsplit=1)[0]
            self._write(word)
            self._gone += word
            left = _after(lines, self._gone) or []
        if left:
            self._write("\n")
            self._unended = False
        return left

    def _follow_size(self) -> None:
        """If the window became wider or narrower, nobody knows where the lines are now."""
        before, self._seen = self._seen, self._size()
        if self.moved or before.columns != self._seen.columns:
            self._freeze()
        self._scroll()

    def _scroll(self) -> None:
        """Give up the lines that are above the window."""
        rows = list(map(self._rows, self._lines))
        while rows and sum(rows) > self._seen.lines:
            self._gone += _letters(self._lines.pop(0))
            rows.pop(0)

    def _rows(self, line: Text) -> int:
        return _end(line.plain, self._seen.columns)[0]


class Markdown:
    """An answer on a page, as it arrives."""

    def __init__(self, page: Page, *, style: str = "", quiet: str = "", share: float = 0.2) -> None:
        """style: that of everything. quiet: that of signs. share: of the time, for drawing."""
        self._page = page
        self._style = style
        self._quiet = quiet
        self._share = share
        self._next = 0.0  # when it may be drawn again
        self._text = ""  # from the start of the part that is still open
        self._starts = True
        self._gap = False  # True if a blank line is before that part

    def write(self, text: str) -> None:
        """Show more of the answer."""
        self._text = text = self._text + text.translate(PICTURES)
        if (start := time.perf_counter()) < self._next:
            return
        found = parts(text)
        if not found:
            return
        *done, last = found
        self._settle(done)
        if done:
            self._gap = last.after_blank
            text = "\n".join(last.source[last.start :])
        self._text = text
        shown = last.written() if last.is_table else self._layout(parts(last.completed(text)))
        self._page.show(self._spaced(shown))
        now = time.perf_counter()
        self._next = now + (now - start) * (1 / self._share - 1)

    def finish(self) -> None:
        """Show the end of the answer."""
        self._settle(parts(self._text))

    def _settle(self, done: list[Part]) -> None:
        """Show parts that no more text can change."""
        for number, part in enumerate(done):
            if number:
                self._gap = part.after_blank
            # A table may be laid out only once it is complete, and then only if all of it changes.
            as_written = part.is_table and not self._page.whole
            lines = part.written() if as_written else self._layout([part])
            self._page.show(self._spaced(lines))
            self._page.keep()
            self._starts = False

    def _layout(self, shown: list[Part]) -> list[Text]:
        lines: list[Text] = []
        for part in shown:
            lines += [Text()] if lines and part.after_blank else []
            lines += part.lines(self._page.width - 1, self._quiet)
        return lines

    def _spaced(self, lines: list[Text]) -> list[Text]:
        for line in lines:
            line.stylize(self._style)
        return [Text(), *lines] if self._gap and not self._starts else lines


def _after(lines: list[Text], gone: str) -> list[Text] | None:
    """Return what follows these letters; None if the lines start with others."""
    at = 0
    for number, line in enumerate(lines):
        letters = _letters(line)
        left = len(gone) - at
        if left <= 0:
            return lines[number:]
        if not letters.startswith(gone[at : at + len(letters)]):
            return None
        if left < len(letters):  # it is wrapped in another way
            starts = [found.start() for found in re.finditer(r"\S", line.plain)]
            return [line[starts[left] :], *lines[number + 1 :]]
        at += len(letters)
    return [] if at == len(gone) else None


def _letters(line: Text) -> str:
    """Return what stays the same however a line is wrapped; a mark for a blank line."""
    return "".join(line.plain.split()) or "\n"


def _end(line: str, columns: int) -> tuple[int, int]:
    """Return the rows that a line takes, and the columns of the last one."""
    if line.isascii() and "\t" not in line:
        rows = max(-(-len(line) // columns), 1)
        return rows, len(line) - (rows - 1) * columns
    rows, used = 1, 0
    for letter in line:
        if letter == "\t":
            used = min(used + TAB - used % TAB, columns - 1)
        elif used + (cells := cell_len(letter)) > columns:
            rows, used = rows + 1, cells
        else:
            used += cells
    return rows, used


def _ansi(line: Text, columns: int) -> str:
    """Return a line with its styles, in place of one that may be longer."""
    # Assembled, as a line's own style is otherwise left out.
    written = "".join(
        one.style.render(one.text, color_system=ColorSystem.STANDARD) if one.style else one.text
        for one in Text.assemble(line).render(console(), end="")
    )
    # After a full row the cursor waits at its last column, which would be erased.
    full = _end(line.plain, columns)[1] == columns
    return written if full else f"{written}\x1b[K"
