"""The terminal while a chat has it: what is typed during an answer waits, and order is restored.

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

# Whether the terminal marks what is pasted: else each of its lines would be a message.
MARK_PASTES, LEAVE_PASTES = "\x1b[?2004h", "\x1b[?2004l"

ENDING = (signal.SIGTERM, signal.SIGHUP)


class Interrupts:
    """What Ctrl-C and the signals that end a process do.

    Ctrl-C while no line is edited stops the answer, and nothing else. leaver: ends the editing of a
    line with the number of a signal, if one is edited; else returns False.
    """

    def __init__(self) -> None:
        self.leaver: Callable[[int], bool] | None = None
        self._pressed = False
        self._generation: Generation | None = None

    def forget(self) -> None:
        """What was pressed until now concerns nobody."""
        self._pressed = False

    @contextmanager
    def stop(self, generation: Generation) -> Iterator[None]:
        """Within it Ctrl-C cancels this one; also one that was pressed since `forget`."""
        self._generation = generation
        if self._pressed:
            generation.cancel()
        try:
            yield
        finally:
            self._generation = None

    def leave(self, number: int, frame: FrameType | None) -> None:
        """The process is to end, in order: the handler of such a signal."""
        if self.leaver is None or not self.leaver(number):
            sys.exit(128 + number)

    def press(self, number: int, frame: FrameType | None) -> None:
        """Ctrl-C was pressed: the handler of its signal, which may come at any point."""
        self._pressed = True
        if self._generation is not None:
            self._generation.cancel()


@contextmanager
def held(screen: TextIO, interrupts: Interrupts) -> Iterator[None]:
    """Within it keys are not echoed but kept for the next prompt, and signals go to `interrupts`.

    The line editor has its own modes while it edits.
    """
    keyboard = sys.stdin.fileno()
    modes = termios.tcgetattr(keyboard)
    quiet = termios.tcgetattr(keyboard)
    quiet[3] &= ~(termios.ECHO | termios.ICANON)
    before = {number: signal.signal(number, interrupts.leave) for number in ENDING}
    before[signal.SIGINT] = signal.signal(signal.SIGINT, interrupts.press)
    try:
        termios.tcsetattr(keyboard, termios.TCSADRAIN, quiet)
        yield
    finally:
        with suppress(OSError, termios.error):  # a terminal that is gone has no modes
            termios.tcsetattr(keyboard, termios.TCSADRAIN, modes)
            screen.write(LEAVE_PASTES)
            screen.flush()
        for number, handler in before.items():
            signal.signal(number, handler)
