"""A file that only grows: one JSON object per line, on the disk when `write` returns.

The first line, the header, names the `format` and, in `with`, what the rest depends on. A last line
that a crash cut off is dropped. Doesn't know what the objects mean.
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


class Journal:
    """An open journal, locked against other processes until `close` or the end of this one."""

    def __init__(self, path: Path, name: str, flags: int = os.O_CREAT) -> None:
        """Open the file, by default whether it exists or not.

        name: what messages call it. Raises UsageError if another process has it open; OSError.
        """
        self.path = path
        self._handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | flags, 0o600)
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise UsageError(
                f"{name} is open in another mgm process: close it there, or wait for it"
            ) from None

    @classmethod
    def create(cls, path: Path, header: Event, events: Iterable[Event]) -> Journal:
        """Start a new file. Raises OSError, such as FileExistsError, and then leaves no file."""
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        journal = cls(path, path.stem, os.O_CREAT | os.O_EXCL)
        try:
            journal.write(header, *events)
        except OSError:
            journal.close()
            path.unlink()
            raise
        return journal

    @classmethod
    def open(cls, path: Path, file_format: str) -> tuple[Journal, list[Event]]:
        """Continue an existing file; also return its events. Raises as `read`, and UsageError."""
        journal = cls(path, path.stem, 0)
        try:
            events = read(path, file_format)[1:]
            journal._drop_torn_line()
        except BaseException:
            journal.close()
            raise
        return journal, events

    def resume(self, header: Event, *, restart: bool, option: str) -> list[Event]:
        """Return the file's header and its events, or start over if `restart` or without events.

        option: what the user gives to start over. Raises UsageError if the file is not of this
        format, or was started with something else; OSError.
        """
        if not restart and self.path.stat().st_size:
            try:
                found = read(self.path, header["format"])
            except MgmError as error:
                raise UsageError(f"{error}, or give {option} to replace it") from None
            if len(found) > 1:
                before, now = found[0].get("with", {}), header.get("with", {})
                different = [key for key in now if before.get(key) != now[key]]
                if different:
                    raise UsageError(
                        f"{self.path} was started with different {' and '.join(different)}: "
                        f"use the same, or start over with {option}"
                    )
                self._drop_torn_line()
                return found
        os.ftruncate(self._handle, 0)
        self.write(header)
        return [header]

    def write(self, *events: Event) -> None:
        """Add a line for each. If it raises OSError, the file is unchanged."""
        data = encode(*events)
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
        """Close the file and release its lock."""
        os.close(self._handle)

    def _drop_torn_line(self) -> None:
        os.ftruncate(self._handle, self.path.read_bytes().rfind(b"\n") + 1)


def read(path: Path, file_format: str) -> list[Event]:
    """Return header and events; the file may be open. Raises MgmError for another kind, OSError."""
    try:
        found = [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]
    except (ValueError, RecursionError):  # not JSON or not UTF-8; endless brackets
        found = []
    objects = bool(found) and all(isinstance(event, dict) for event in found)
    if not objects or found[0].get("format") != file_format:
        raise MgmError(f"{path} is damaged, or not of the format {file_format!r}: name another one")
    return found


def encode(*events: Event) -> bytes:
    """Return events as they are in a file."""
    # Text may hold lone surrogates, which only an engine refuses. json reads them back.
    lines = (json.dumps(event, ensure_ascii=False) for event in events)
    return b"".join(line.encode(errors="surrogatepass") + b"\n" for line in lines)
