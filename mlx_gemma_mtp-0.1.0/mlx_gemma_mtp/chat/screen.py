"""The output of a chat: the model's answers go to stdout unchanged, everything else to stderr.

Nothing is read as markup, and colors are used only at a terminal.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from typing import BinaryIO, TextIO

from mlx_gemma_mtp import show


class Screen:
    """The two streams of a chat."""

    def __init__(self, out: BinaryIO, err: TextIO) -> None:
        self.stderr = err
        self._out = out
        self._in_aside = False  # True within a line of an aside
        self._dims = show.can_draw(err) and "NO_COLOR" not in os.environ

    def answer(self, text: str) -> None:
        """Write a piece of an answer, in UTF-8 whatever the locale says."""
        self._end_aside()
        self._out.write(text.encode())
        self._out.flush()

    def aside(self, text: str) -> None:
        """Write a piece of the model's output that is not answer."""
        if text:
            self._write(self._dim(text))
            self._in_aside = not text.endswith("\n")

    def say(self, text: str) -> None:
        """Write a line of our own."""
        self._end_aside()
        self._write(f"{text}\n")

    def note(self, text: str) -> None:
        """Write a line of our own that matters less."""
        self.say(self._dim(text))

    def spinner(self, what: str) -> AbstractContextManager[None]:
        """Show what is being done, at a terminal."""
        return show.spinner(what, self.stderr)

    def _end_aside(self) -> None:
        if self._in_aside:
            self._write("\n")
            self._in_aside = False

    def _dim(self, text: str) -> str:
        return f"\x1b[2m{text}\x1b[0m" if self._dims else text

    def _write(self, text: str) -> None:
        self.stderr.write(text)
        self.stderr.flush()
