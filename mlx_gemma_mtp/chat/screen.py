"""Where a chat writes: the model's answers to stdout as they are, all else to stderr.

Nothing passes through markup, and nothing is colored where it is not read at a terminal.
"""

from __future__ import annotations

import os
from typing import BinaryIO, TextIO

from mlx_gemma_mtp.show import can_draw


class Screen:
    """The two streams of a chat."""

    def __init__(self, out: BinaryIO, err: TextIO) -> None:
        self._out = out
        self._err = err
        self._aside = False  # within a line of an aside
        self._dims = can_draw(err) and "NO_COLOR" not in os.environ

    @property
    def stderr(self) -> TextIO:
        """The stream for all that is not answer."""
        return self._err

    def answer(self, text: str) -> None:
        """A piece of an answer, in UTF-8 whatever the locale says."""
        self._close_aside()
        self._out.write(text.encode())
        self._out.flush()

    def aside(self, text: str) -> None:
        """A piece of what the model says beside its answer."""
        if text:
            self._write(self._dim(text))
            self._aside = not text.endswith("\n")

    def say(self, text: str) -> None:
        """A line of our own."""
        self._close_aside()
        self._write(f"{text}\n")

    def note(self, text: str) -> None:
        """A line of our own that matters less."""
        self._close_aside()
        self._write(f"{self._dim(text)}\n")

    def spinner(self, what: str) -> Spinner:
        """Shows that this is going on, at a terminal."""
        return Spinner(what, self._err)

    def _close_aside(self) -> None:
        if self._aside:
            self._write("\n")
            self._aside = False

    def _dim(self, text: str) -> str:
        return f"\x1b[2m{text}\x1b[0m" if self._dims else text

    def _write(self, text: str) -> None:
        self._err.write(text)
        self._err.flush()
