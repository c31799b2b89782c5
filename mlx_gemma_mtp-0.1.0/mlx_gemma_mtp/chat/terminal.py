"""The terminal during a chat: keys typed during an answer wait, and its modes are restored.

Knows nothing of what is written there.
"""

from __future__ import annotations

import signal
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TextIO

from mlx_gemma_mtp.engine.results import Generation

# With marked pastes, pasted lines are one message; else each line would be one.
MARK_PASTES, UNMARK_PASTES = "\x1b[?2004h", "\x1b[?2004l"


class Interrupts:
    """What Ctrl-C and the signals that end a process do.

    Outside the line editor, Ctrl-C stops the answer and nothing else. leaver: ends the line that is
    being edited with the number of a signal; returns False if no line is edited.
    """

    def __init__(self) -> None:
        self.leaver: Callable[[int], bool] | None = None
        self._pressed = False
        self._generation: Generation | None = None

    def forget(self) -> None:
        """Ignore a Ctrl-C that was pressed until now."""
        self._pressed = False

    @contextmanager
    def stop(self, generation: Generation) -> Iterator[None]:
        """Let Ctrl-C cancel this one inside the block, also if it was pressed since `forget`."""
        self._generation = generation
        if self._pressed:
            generation.cancel()
        try:
            yield
        finally:
            self._generation = None

    def leave(self, number: int, frame: FrameType | None) -> None:
        """End the process in order: the handler of a signal that asks for it."""
        if self.leaver is None or not self.leaver(number):
            sys.exit(128 + number)

    def press(self, number: int, frame: FrameType | None) -> None:
        """Cancel the answer: the handler of Ctrl-C, which may be called at any point."""
        self._pressed = True
        if self._generation is not None:
            self._generation.cancel()


@contextmanager
def held(screen: TextIO, interrupts: Interrupts) -> Iterator[None]:
    """Inside the block, keys are not echoed but wait for the next prompt, and signals go to
    `interrupts`. The line editor has its own modes while it edits."""
    keyboard = sys.stdin.fileno()
    modes = termios.tcgetattr(keyboard)
    quiet = termios.tcgetattr(keyboard)
    quiet[3] &= ~(termios.ECHO | termios.ICANON)
    handlers = {
        signal.SIGINT: interrupts.press,
        signal.SIGTERM: interrupts.leave,
        signal.SIGHUP: interrupts.leave,
    }
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
