"""A person at a terminal with `mgm chat` in it: types, waits, and sees what is on the screen."""

from __future__ import annotations

import json
import re
import termios
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pexpect

from helpers.command import command, environment
from helpers.paper import ROWS, Paper

SECONDS = 60  # longer than any answer takes on a busy machine
COLUMNS = 130
PROMPT = "> "

# Only LONG has an answer of more tokens: it waits there until it is stopped.
HOLD = """
import time
from mlx_gemma_mtp.engine.request import Request
take = Request.take
def take_and_hold(self, *arguments):
    take(self, *arguments)
    while len(self.tokens) > 100 and not (self.ended or self.generation.stopping):
        time.sleep(0.01)
Request.take = take_and_hold
"""


class Person:
    """Starts a chat and waits for its prompt."""

    def __init__(self, folder: Path, *arguments: str, columns: int = COLUMNS) -> None:
        self.folder = folder
        self.paper = Paper(columns)
        editor = folder / "editor"
        editor.write_text("#!/bin/sh\nprintf 'What is 3 + 4?' > $1\n")
        editor.chmod(0o755)
        program, *rest = command(HOLD)
        self.child = pexpect.spawn(
            program,
            [*rest, "chat", *arguments],
            env=environment()
            | {"MGM_DATA_DIR": str(folder), "EDITOR": str(editor), "PATH": "/usr/bin:/bin"}
            | {"SSH_CONNECTION": "so that the clipboard is the terminal's"},
            encoding="utf-8",
            dimensions=(ROWS, columns),
        )
        self.child.delaybeforesend = None
        self.modes = termios.tcgetattr(self.child.child_fd)
        self.wait_for_prompt()

    def type(self, keys: str) -> None:
        self.child.send(keys)

    def say(self, text: str) -> str:
        """Type a message; return the output until the next prompt."""
        row = self.paper.row
        self.type(f"{text}\r")
        return self.wait_for_prompt(row)

    def wait_for_prompt(self, row: int = -1) -> str:
        """Wait for a prompt below this row; return the lines in between."""
        self.wait_until(lambda: self.paper.row > row and self.paper.at == PROMPT)
        return "\n".join(self.paper.lines[row + 1 : self.paper.row])

    def wait_to_see(self, pattern: str, row: int = 0) -> None:
        """Wait until this is shown somewhere from this row on."""
        self.wait_until(lambda: bool(re.search(pattern, "\n".join(self.paper.lines[row:]))))

    def resize(self, columns: int) -> None:
        self.child.setwinsize(ROWS, columns)
        self.paper.resize(columns)

    def wait_until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + SECONDS
        while not condition():
            assert time.monotonic() < deadline, self.paper.text
            try:
                self.paper.feed(self.child.read_nonblocking(4096, 0.05))
            except pexpect.TIMEOUT:
                continue

    def leave(self) -> int:
        """Wait until the chat has ended; return its exit code. Its terminal must be in order."""
        try:
            while True:
                self.paper.feed(self.child.read_nonblocking(4096, SECONDS))
        except pexpect.EOF:
            pass
        assert "Traceback" not in self.paper.text
        assert not self.paper.mode(2004)
        assert self.paper.mode(25)
        assert termios.tcgetattr(self.child.child_fd)[:4] == self.modes[:4]
        self.child.wait()
        return self.child.exitstatus

    @property
    def events(self) -> list[dict[str, Any]]:
        """The events in the file of the newest conversation."""
        newest = max(
            (self.folder / "sessions").glob("*.jsonl"), key=lambda path: path.stat().st_mtime_ns
        )
        return [json.loads(line) for line in newest.read_text().splitlines()]

    def said(self, role: str) -> str:
        """The last message of this role."""
        messages = [event["message"] for event in self.events if "message" in event]
        return next(m["content"] for m in reversed(messages) if m["role"] == role)

    def close(self) -> None:
        self.child.close(force=True)
