"""A person at a terminal with `mgm chat` in it: types, waits, and sees what is on the screen."""

from __future__ import annotations

import io
import json
import re
import shlex
import termios
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pexpect
import pyte
from pyte.screens import Char

from helpers.command import command, environment

SECONDS = 60  # longer than any answer takes on a busy machine
ROWS, COLUMNS = 24, 130
BLINK, DIM = 5, 2  # pyte knows no dim characters: here they `blink`

# Only LONG has an answer of more tokens: it waits there until it is stopped.
HOLD = """
import time
from mlx_gemma_mtp.engine.request import Request
take = Request.take
def take_and_hold(self, *arguments, **options):
    take(self, *arguments, **options)
    while len(self.tokens) > 100 and not (self.ended or self.generation._stopping):
        time.sleep(0.01)
Request.take = take_and_hold
"""


class Paper(pyte.HistoryScreen):
    """A terminal whose scrolled lines are kept: everything that a person saw."""

    def select_graphic_rendition(self, *attributes: int, **options: Any) -> None:
        shown = (BLINK if one == DIM else one for one in attributes)
        super().select_graphic_rendition(*shown, **options)

    @property
    def row(self) -> int:
        """The line of the cursor."""
        return len(self.history.top) + self.cursor.y

    @property
    def cells(self) -> list[list[Char]]:
        """All lines from the start, without blanks at their ends."""
        rows = []
        for line in (*self.history.top, *(self.buffer[row] for row in range(self.lines))):
            width = max((x for x in line if line[x].data.strip()), default=-1) + 1
            rows.append([line[x] for x in range(width)])
        return rows

    @property
    def written(self) -> list[str]:
        """All lines as text."""
        return ["".join(cell.data for cell in row) for row in self.cells]

    @property
    def at(self) -> str:
        """The line of the cursor, up to the cursor."""
        line = self.buffer[self.cursor.y]
        return "".join(line[x].data for x in range(self.cursor.x))


class Person:
    """Starts a chat and waits for its prompt."""

    def __init__(
        self,
        folder: Path,
        *arguments: str,
        columns: int = COLUMNS,
        in_shell: bool = False,
        **variables: str,
    ) -> None:
        """in_shell: True to start it from a shell, which can suspend it."""
        self.folder = folder
        self.paper = Paper(columns, ROWS, history=10_000)
        self._stream = pyte.Stream(self.paper)
        editor = folder / "editor"
        editor.write_text("#!/bin/sh\nprintf 'What is 3 + 4?' > $1\n")
        editor.chmod(0o755)
        line = [*command(HOLD), "chat", *arguments]
        if in_shell:
            variables |= {"LINE": shlex.join(line), "PS1": "$ "}
            line = ["/bin/bash", "--norc", "--noediting", "-i"]
        self.child = pexpect.spawn(
            line[0],
            line[1:],
            env=environment()
            | {"MGM_DATA_DIR": str(folder), "EDITOR": str(editor), "PATH": "/usr/bin:/bin"}
            | {"SSH_CONNECTION": "so that the clipboard is the terminal's"}
            | variables,
            encoding="utf-8",
            dimensions=(ROWS, columns),
        )
        self.child.delaybeforesend = None
        self.child.logfile_read = io.StringIO()
        self._modes = termios.tcgetattr(self.child.child_fd)
        if in_shell:
            self.type('eval "$LINE"\r')
        self.wait_for_prompt()

    def type(self, keys: str) -> None:
        self.child.send(keys)

    def say(self, text: str) -> str:
        """Type a message; return the output until the next prompt."""
        row = self.paper.row
        self.type(f"{text}\r")
        return self.wait_for_prompt(row)

    def start(self, text: str, seen: str) -> int:
        """Type a message and wait until its answer shows this; return the row of the message."""
        row = self.paper.row
        self.type(f"{text}\r")
        self.wait_to_see(seen, row)
        return row

    def wait_for_prompt(self, row: int = -1) -> str:
        """Wait for a prompt below this row; return the lines in between, without the blank one."""
        self.wait_until(lambda: self.paper.row > row and self.paper.at == "> ")
        return "\n".join(self.paper.written[row + 1 : self.paper.row]).removesuffix("\n")

    def wait_to_see(self, text: str, row: int) -> None:
        """Wait until this is shown somewhere from this row on."""
        self.wait_until(lambda: text in "\n".join(self.paper.written[row:]))

    def wait_for_line(self, line: str) -> None:
        """Wait until the line of the cursor is this, up to the cursor; blanks are ignored."""
        self.wait_until(lambda: self.paper.at.rstrip() == line)

    def wait_until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + SECONDS
        while not condition():
            assert time.monotonic() < deadline, self.seen
            try:
                self._stream.feed(self.child.read_nonblocking(4096, 0.05))
            except pexpect.TIMEOUT:
                continue

    def resize(self, columns: int) -> None:
        self.child.setwinsize(ROWS, columns)
        self.paper.resize(columns=columns)

    def leave(self) -> int:
        """Wait until the chat has ended; return its exit code. Its terminal must be in order."""
        self.child.expect(pexpect.EOF, timeout=SECONDS)
        self._stream.feed(self.child.before)
        assert "Traceback" not in self.seen
        assert 2004 << 5 not in self.paper.mode  # pastes are not marked
        assert 25 << 5 in self.paper.mode  # the cursor is shown
        assert termios.tcgetattr(self.child.child_fd)[:4] == self._modes[:4]
        self.child.wait()
        return self.child.exitstatus

    @property
    def seen(self) -> str:
        """Everything that was shown."""
        return "\n".join(self.paper.written).rstrip()

    @property
    def clipboard(self) -> list[str]:
        """What the chat sent to the clipboard, in base64 (OSC 52)."""
        return re.findall("\x1b]52;c;(.*?)\x07", self.child.logfile_read.getvalue())

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The messages in the file of the newest conversation, also the replaced ones."""
        files = (self.folder / "sessions").glob("*.jsonl")
        newest = max(files, key=lambda path: path.stat().st_mtime_ns)
        events = map(json.loads, newest.read_text().splitlines())
        return [event["message"] for event in events if "message" in event]

    def said(self, role: str) -> str:
        """The last message of this role."""
        return [one["content"] for one in self.messages if one["role"] == role][-1]
