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
PAUSE_SECONDS = 0.1


def can_draw(stream: TextIO) -> bool:
    """Is this a terminal that can do more than print?"""
    return stream.isatty() and os.environ.get("TERM", "dumb") != "dumb"


class Spinner:
    """Spins within `with`, or until `stop`; not at all where the stream cannot draw."""

    def __init__(self, what: str, stream: TextIO, *, after_seconds: float = 0.3) -> None:
        """after_seconds: nothing is shown of what is over by then."""
        self._what = what
        self._stream = stream
        self._after = after_seconds
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
        if self._stopped.wait(self._after):
            return
        turn = 0
        while True:
            seconds = time.monotonic() - begun
            shape = SHAPES[turn % len(SHAPES)]
            self._show(f"{shape} {self._what} {seconds:.0f} s")
            if self._stopped.wait(PAUSE_SECONDS):
                break
            turn += 1
        self._show("")

    def _show(self, text: str) -> None:
        self._stream.write(f"\r\x1b[K{text}")
        self._stream.flush()
