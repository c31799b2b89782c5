"""The prompt of a chat: a status next to what is typed, and what is typed by mistake."""

import os
import sys
from pathlib import Path

import pexpect
import pyte
import pytest

from helpers.person import COLUMNS, ROWS, SECONDS

pytestmark = pytest.mark.slow

# Warming up ends with a file, so that the test says when.
SCRIPT = """
import sys
from pathlib import Path
from mlx_gemma_mtp.chat.editor import Editor
from mlx_gemma_mtp.chat.terminal import Interrupts
over = Path(sys.argv[1])
editor = Editor(sys.stdout, None, Interrupts(), lambda: "" if over.exists() else "warming up")
print("read", editor.read())
print("read", editor.read())
"""


class Child:
    """The script in a process of its own, and its screen."""

    def __init__(self, over: Path) -> None:
        self.process = pexpect.spawn(
            sys.executable,
            ["-c", SCRIPT, str(over)],
            env=os.environ | {"TERM": "xterm-256color"},
            encoding="utf-8",
            dimensions=(ROWS, COLUMNS),
            timeout=SECONDS,
        )
        self.send = self.process.send
        self._screen = pyte.Screen(COLUMNS, ROWS)
        self._stream = pyte.Stream(self._screen)

    def wait_for(self, *lines: str) -> None:
        """Wait until these are the lines that are not blank."""
        wanted = [*map(str.split, lines)]
        while [line.split() for line in self._screen.display if line.strip()] != wanted:
            self._stream.feed(self.process.read_nonblocking(4096, SECONDS))

    def end(self) -> None:
        self.process.expect(pexpect.EOF)
        self.process.close()
        assert self.process.exitstatus == 0


def test_a_status_is_shown_while_a_message_is_typed_and_goes(tmp_path: Path) -> None:
    over = tmp_path / "over"
    child = Child(over)
    child.wait_for("> warming up")
    child.send("Hello")
    child.wait_for("> Hello warming up")
    child.send("\r")
    child.wait_for("> Hello", "read Hello", "> warming up")
    child.send("again")
    over.touch()  # nothing is typed, and it goes
    child.wait_for("> Hello", "read Hello", "> again")
    child.send("\r")
    child.wait_for("> Hello", "read Hello", "> again", "read again")
    child.end()


def test_an_escape_sequence_of_a_mouse_or_a_cursor_that_is_typed_does_nothing(
    tmp_path: Path,
) -> None:
    over = tmp_path / "over"
    over.touch()
    child = Child(over)
    child.wait_for(">")
    for sequence in ("\x1b[Mzzz", "\x1b[<0;5;5M", "\x1b[9;9R"):
        child.send(sequence)
    child.send("Hello\r")
    child.wait_for("> Hello", "read Hello", ">")
    child.send("again\r")
    child.wait_for("> Hello", "read Hello", "> again", "read again")
    child.end()
