"""The terminal during a chat: keys typed during an answer wait, Ctrl-C stops it, Ctrl-Z suspends.

Its modes are restored at the end. Knows nothing of what is written there.
"""

from __future__ import annotations

import os
import signal
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import TextIO

from mlx_gemma_mtp.show import can_draw

# With marked pastes, pasted lines are one message; else each line would be one.
MARK_PASTES, UNMARK_PASTES = "\x1b[?2004h", "\x1b[?2004l"
SHOW_CURSOR = "\x1b[?25h"


@dataclass
class Interrupts:
    """What Ctrl-C does outside the line editor: it stops the answer and nothing else."""

    pressed: bool = False  # since the last prompt
    _stop: Callable[[], object] | None = None

    @contextmanager
    def stopping(self, stop: Callable[[], object]) -> Iterator[None]:
        """Let Ctrl-C call this inside the block, also if it is already pressed."""
        self._stop = stop
        if self.pressed:
            stop()
        try:
            yield
        finally:
            self._stop = None

    def press(self, number: int, frame: FrameType | None) -> None:
        """Stop the answer: the handler of Ctrl-C, which may be called at any point."""
        self.pressed = True
        if self._stop is not None:
            self._stop()


def _leave(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


@contextmanager
def unechoed(keyboard: TextIO) -> Iterator[None]:
    """Inside the block, keys are not echoed: they wait for whoever reads next."""
    modes, quiet = termios.tcgetattr(keyboard), termios.tcgetattr(keyboard)
    quiet[3] &= ~termios.ECHO
    termios.tcsetattr(keyboard, termios.TCSADRAIN, quiet)
    try:
        yield
    finally:
        with suppress(OSError, termios.error):  # the terminal may be gone
            termios.tcsetattr(keyboard, termios.TCSADRAIN, modes)


@contextmanager
def held(screen: TextIO, interrupts: Interrupts, resumed: Callable[[], object]) -> Iterator[None]:
    """Inside the block, keys are not echoed but wait for the next prompt, and signals are handled.

    The line editor has its own modes while it edits. resumed: called when a process that Ctrl-Z
    suspended continues.
    """
    keyboard = sys.stdin.fileno()
    modes = termios.tcgetattr(keyboard)
    quiet = termios.tcgetattr(keyboard)
    quiet[3] &= ~(termios.ECHO | termios.ICANON)

    def set_modes(ours: bool) -> None:
        termios.tcsetattr(keyboard, termios.TCSADRAIN, quiet if ours else modes)
        if can_draw(screen):
            screen.write(MARK_PASTES if ours else f"{UNMARK_PASTES}{SHOW_CURSOR}")
            screen.flush()

    def suspend(number: int, frame: FrameType | None) -> None:
        set_modes(ours=False)
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)  # returns when the shell continues it
        signal.signal(signal.SIGTSTP, suspend)
        set_modes(ours=True)
        resumed()

    handlers = {
        signal.SIGINT: interrupts.press,
        signal.SIGTERM: _leave,
        signal.SIGHUP: _leave,
        signal.SIGTSTP: suspend,
    }
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        set_modes(ours=True)
        yield
    finally:
        with suppress(OSError, termios.error):  # the terminal may be gone
            set_modes(ours=False)
        for number, previous in before.items():
            signal.signal(number, previous)
