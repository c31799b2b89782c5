"""The output of a chat: the model's answers go to stdout, everything else to stderr.

An answer is laid out as Markdown at a terminal that can draw, unless the user wants it as written.
Otherwise it is written unchanged. Colors are not used: bold, dim and italics suit every theme.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from typing import IO, Any, BinaryIO, TextIO

from mlx_gemma_mtp import show
from mlx_gemma_mtp.chat.page import Markdown, Page
from mlx_gemma_mtp.files.atomic import keep
from mlx_gemma_mtp.files.folders import raw_file
from mlx_gemma_mtp.progress import spinner


def wants_raw() -> bool:
    """Return True if the user wants answers as they are written."""
    return raw_file().exists()


def remember_raw(wanted: bool) -> None:
    """Remember that for later chats, if the disk permits."""
    if wanted:
        keep(raw_file(), b"")
    else:
        with suppress(OSError):
            raw_file().unlink(missing_ok=True)


class Screen:
    """The two streams of a chat."""

    def __init__(self, out: BinaryIO, err: TextIO, *, raw: bool = False) -> None:
        """raw: True if answers are shown as written also at a terminal."""
        self.raw = raw
        self.stderr = err
        self._out = out
        self._answer: Markdown | None = None  # while one is laid out
        self._aside: Markdown | None = None
        self._in_aside = False  # True within a line of an aside as it is written
        self._page: Page | None = None  # of the last one that was laid out
        self._dims = show.can_draw(err) and "NO_COLOR" not in os.environ

    @property
    def shows_answers(self) -> bool:
        """True if answers go to a terminal."""
        return self._out.isatty()

    @property
    def renders(self) -> bool:
        """True if answers are laid out as Markdown."""
        return not self.raw and show.can_draw(self._out)

    @property
    def width(self) -> int:
        """Columns of the terminal, or as many as one usually has."""
        return show.size(self.stderr).columns

    def answer(self, text: str) -> None:
        """Write a piece of an answer."""
        self._end_aside()
        if self.renders:
            self._answer = self._answer or self._markdown(self._out, self._write_out)
            self._answer.write(text)
        else:
            self._write_out(text)

    def end_answer(self) -> None:
        """End the last line of an answer, which may be empty."""
        self._end_aside()
        if self.renders:
            self._end_layout()
        else:
            self._write_out("\n")

    def aside(self, text: str) -> None:
        """Write a piece of the model's output that is not answer."""
        self._end_layout()
        if not self.raw and show.can_draw(self.stderr):
            style = "dim" if self._dims else ""
            self._aside = self._aside or self._markdown(self.stderr, self._write, style)
            self._aside.write(text)
        elif text:
            self._write(self._dim(text))
            self._in_aside = not text.endswith("\n")

    def say(self, text: str) -> None:
        """Write lines of our own, broken between words."""
        self._end_aside()
        self._write(f"{show.wrapped(text, show.columns(self.stderr))}\n")

    def note(self, *parts: str) -> None:
        """Write something of our own that matters less: parts in a line, or in several to fit."""
        self._end_aside()
        width = show.columns(self.stderr)
        lines = list(parts[:1])
        for part in parts[1:]:
            longer = f"{lines[-1]} · {part}"
            if width is None or len(longer) <= width:
                lines[-1] = longer
            else:
                lines.append(part)
        self._write(self._dim(show.wrapped("\n".join(lines), width)) + "\n")

    def spinner(self, what: str) -> AbstractContextManager[object]:
        """Show what is being done, at a terminal."""
        return spinner(what, self.stderr)

    def resumed(self) -> None:
        """Take notice that the process was suspended, and that others wrote here."""
        if self._page is not None:
            self._page.moved = True

    def _markdown(self, stream: IO[Any], write: Callable[[str], None], style: str = "") -> Markdown:
        self._page = Page(write, lambda: show.size(stream))
        return Markdown(self._page, style=style, quiet="dim" if self._dims else "")

    def _end_layout(self) -> None:
        if self._answer:
            self._answer.finish()
            self._answer = None

    def _end_aside(self) -> None:
        if self._aside:
            self._aside.finish()
            self._aside = None
        if self._in_aside:
            self._write("\n")
            self._in_aside = False

    def _dim(self, text: str) -> str:
        return f"\x1b[2m{text}\x1b[0m" if self._dims else text

    def _write(self, text: str) -> None:
        self.stderr.write(text)
        self.stderr.flush()

    def _write_out(self, text: str) -> None:
        self._out.write(text.encode())  # in UTF-8 whatever the locale says
        self._out.flush()
