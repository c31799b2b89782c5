"""The terminal during a chat: keys typed during an answer wait, and its modes are restored.

Knows nothing of what is written there.
"""

from __future__ import annotations

import signal
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import TextIO

from mlx_gemma_mtp.engine.results import Generation

# With marked pastes, pasted lines are one message; else each line would be one.
MARK_PASTES, UNMARK_PASTES = "\x1b[?2004h", "\x1b[?2004l"


@dataclass
class Interrupts:
    """What Ctrl-C does outside the line editor: it stops the answer and nothing else."""

    pressed: bool = False  # since the last prompt
    _generation: Generation | None = None

    @contextmanager
    def stop(self, generation: Generation) -> Iterator[None]:
        """Let Ctrl-C cancel this one inside the block, also if it is already pressed."""
        self._generation = generation
        if self.pressed:
            generation.cancel()
        try:
            yield
        finally:
            self._generation = None

    def press(self, number: int, frame: FrameType | None) -> None:
        """Cancel the answer: the handler of Ctrl-C, which may be called at any point."""
        self.pressed = True
        if self._generation is not None:
            self._generation.cancel()


def _leave(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


@contextmanager
def held(screen: TextIO, interrupts: Interrupts) -> Iterator[None]:
    """Inside the block, keys are not echoed but wait for the next prompt, and signals are handled.

    The line editor has its own modes while it edits.
    """
    keyboard = sys.stdin.fileno()
    modes = termios.tcgetattr(keyboard)
    quiet = termios.tcgetattr(keyboard)
    quiet[3] &= ~(termios.ECHO | termios.ICANON)
    handlers = {signal.SIGINT: interrupts.press, signal.SIGTERM: _leave, signal.SIGHUP: _leave}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        termios.tcsetattr(keyboard, termios.TCSADRAIN, quiet)
        yield
    finally:
        with suppress(OSError, termios.error):  # the terminal may be gone
            termios.tcsetattr(keyboard, termios.TCSADRAIN, modes)
            screen.write(UNMARK_PASTES)
            screen.flush()
        for number, previous in before.items():
            signal.signal(number, previous)
