"""A file that only grows: one JSON object a line, on the disk when `write` returns.

A last line that a crash cut off is dropped. Knows nothing of what the objects mean.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mlx_gemma_mtp.errors import MgmError, UsageError

Event = dict[str, Any]
HEAD: Event = {"format": "mgm conversation 1"}  # the first line


class Journal:
    """An open journal; nobody else can open it meanwhile. Made by `create` and `open`."""

    def __init__(self, path: Path, handle: int) -> None:
        self._handle = handle
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise UsageError(
                f"the conversation {path.stem} is open in another mgm: leave it there, "
                "or begin another one here"
            ) from None

    @classmethod
    def create(cls, path: Path, events: Iterable[Event]) -> Journal:
        """Begin a file with these. Raises OSError, FileExistsError among them, and leaves none."""
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        journal = cls(path, os.open(path, flags, 0o600))
        try:
            journal.write(HEAD, *events)
        except OSError:
            journal.close()
            path.unlink()
            raise
        return journal

    @classmethod
    def open(cls, path: Path) -> tuple[Journal, list[Event]]:
        """Go on with a file; with what it holds.

        Raises UsageError where another process has it open, MgmError where it is no journal,
        OSError.
        """
        journal = cls(path, os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC))
        try:
            data = path.read_bytes()
            events = parse(data, path)
            os.ftruncate(journal._handle, data.rfind(b"\n") + 1)
        except BaseException:
            journal.close()
            raise
        return journal, events

    def write(self, *events: Event) -> None:
        """Add a line for each. Raises OSError, and then the file is as it was."""
        data = lines(events)
        size = os.fstat(self._handle).st_size
        try:
            written = 0
            while written < len(data):  # a disk that is nearly full takes a part, then none
                written += os.write(self._handle, data[written:])
            os.fsync(self._handle)
        except OSError:
            os.ftruncate(self._handle, size)
            raise

    def close(self) -> None:
        """Let go of it."""
        os.close(self._handle)


def lines(events: Iterable[Event]) -> bytes:
    """Events as a file has them."""
    # A text may hold what no UTF-8 file should, until an engine refuses it; json reads it back.
    written = (json.dumps(event, ensure_ascii=False) for event in events)
    return b"".join(line.encode(errors="surrogatepass") + b"\n" for line in written)


def parse(data: bytes, path: Path) -> list[Event]:
    """The events of a file's bytes, but one that is cut off. Raises MgmError for other files."""
    try:
        found = [json.loads(line) for line in data.split(b"\n")[:-1]]
    except (ValueError, RecursionError):  # no JSON, no UTF-8; brackets without end
        found = []
    if found[:1] != [HEAD] or not all(isinstance(event, dict) for event in found):
        raise MgmError(f"{path} is no conversation that mgm wrote: name another one")
    return found[1:]
