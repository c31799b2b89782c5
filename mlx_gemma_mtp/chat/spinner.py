"""A line at the foot of a terminal that shows that something is still going on, and for how long.

Knows nothing of what that is.
"""

from __future__ import annotations

import os
import threading
import time
from types import TracebackType
from typing import TextIO

SHAPES = "|/-\\"
AFTER_SECONDS = 0.3  # nothing is shown of what is over by then
PAUSE_SECONDS = 0.1


def can_draw(stream: TextIO) -> bool:
    """Is this a terminal that can do more than print?"""
    return stream.isatty() and os.environ.get("TERM", "dumb") != "dumb"


def rewrite(stream: TextIO, line: str) -> None:
    """Put this in place of the line at the foot of a terminal that can draw."""
    stream.write(f"\r\x1b[K{line}")
    stream.flush()


class Spinner:
    """Spins within `with`, or until `stop`; not at all where the stream cannot draw."""

    def __init__(self, what: str, stream: TextIO) -> None:
        self._what = what
        self._stream = stream
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._spin, daemon=True)
        if can_draw(stream):
            self._thread.start()

    def __enter__(self) -> Spinner:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Its line is empty again when this returns. Twice is fine."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()

    def _spin(self) -> None:
        begun = time.monotonic()
        if self._stopped.wait(AFTER_SECONDS):
            return
        turn = 0
        while True:
            seconds = time.monotonic() - begun
            shape = SHAPES[turn % len(SHAPES)]
            rewrite(self._stream, f"{shape} {self._what} {seconds:.0f} s")
            if self._stopped.wait(PAUSE_SECONDS):
                break
            turn += 1
        rewrite(self._stream, "")
