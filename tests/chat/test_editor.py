"""The prompt of a chat: a status next to what is typed."""

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


def test_a_status_is_shown_while_a_message_is_typed_and_goes(tmp_path: Path) -> None:
    over = tmp_path / "over"
    child = pexpect.spawn(
        sys.executable,
        ["-c", SCRIPT, str(over)],
        env=os.environ | {"TERM": "xterm-256color"},
        encoding="utf-8",
        dimensions=(ROWS, COLUMNS),
        timeout=SECONDS,
    )
    screen = pyte.Screen(COLUMNS, ROWS)
    stream = pyte.Stream(screen)

    def wait_for(*lines: str) -> None:
        """Wait until these are the lines that are not blank."""
        while [line.split() for line in screen.display if line.strip()] != [*map(str.split, lines)]:
            stream.feed(child.read_nonblocking(4096, SECONDS))

    wait_for("> warming up")
    child.send("Hello")
    wait_for("> Hello warming up")
    child.send("\r")
    wait_for("> Hello", "read Hello", "> warming up")
    child.send("again")
    over.touch()  # nothing is typed, and it goes
    wait_for("> Hello", "read Hello", "> again")
    child.send("\r")
    wait_for("> Hello", "read Hello", "> again", "read again")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
