"""The results of a batch: in `OUT.partial` as they come, in OUT in order once all are there.

`OUT.partial` begins with a line that says what it was begun with; then a line for each result: the
number of its request, a tab, the result. What a killed run left half written is dropped. Knows
nothing of what is in a result.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlx_gemma_mtp.errors import MgmError, UsageError
from mlx_gemma_mtp.files.atomic import replacing

FORMAT = "mgm batch 1"


class ResultsFile:
    """Results in the making, held by this process until `close`."""

    def __init__(self, out: Path, begun_with: dict[str, Any], seed: int, *, restart: bool) -> None:
        """Go on with what is there, or begin.

        begun_with: what results depend on; a file without any result may have been begun with
        anything. seed: stored with it; `self.seed` is the stored one. restart: begin anew,
        whatever was begun, and replace an OUT that is there.
        Raises UsageError for what is not to be replaced, and where another process works on it;
        MgmError where it cannot be written.
        """
        self.out = out.resolve()  # a link stays one
        self.path = self.out.with_name(self.out.name + ".partial")
        self.seed = seed
        self._places: dict[int, tuple[int, int]] = {}  # start and end of results in the file
        self._end = 0  # where the next one goes
        if self.out.exists() and not self.out.is_file():
            raise UsageError(f"{out} is not a file: name another with --out")
        with self._writing():
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            self._claim(begun_with, restart=restart)
        except BaseException:
            os.close(self._file)
            raise

    def _claim(self, begun_with: dict[str, Any], *, restart: bool) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # gone with its process
        except OSError:
            raise UsageError(f"another mgm generate works on {self.path}: wait for it") from None
        begun = self._read(restart=restart)
        if not self._places and self.out.exists() and not restart:
            self.path.unlink()
            raise UsageError(f"{self.out} is there already: --restart replaces it")
        before = begun.get("with", {})
        differing = [key for key in begun_with if before.get(key) != begun_with[key]]
        if self._places and differing and not restart:
            raise UsageError(
                f"{self.path} was begun with another {', '.join(differing)}: give the same, "
                "or begin anew with --restart"
            )
        with self._writing():
            if self._places and not restart:
                self.seed = begun["seed"]
                os.ftruncate(self._file, self._end)
                return
            self._places, self._end = {}, 0
            os.ftruncate(self._file, 0)
            about = {"format": FORMAT, "seed": self.seed, "with": begun_with}
            self._append(_line(about))

    def _read(self, *, restart: bool) -> dict[str, Any]:
        """Its first line, empty where there is nothing; finds the results and where they end."""
        content = os.pread(self._file, os.fstat(self._file).st_size, 0)
        first, newline, _ = content.partition(b"\n")
        self._end = len(first + newline)
        try:
            about = json.loads(first or b"{}")
        except ValueError:
            about = None
        if content and (not isinstance(about, dict) or about.get("format") != FORMAT):
            if not restart:
                raise UsageError(f"{self.path} is not what mgm writes: --restart replaces it")
            return {}
        for line in content[self._end :].splitlines(keepends=True):
            number, _, result = line.partition(b"\t")
            try:
                json.loads(result)
                place = self._end + len(number) + 1, self._end + len(line)
                if not line.endswith(b"\n"):
                    break
                self._places[int(number)] = place
            except ValueError:
                break
            self._end += len(line)
        return about

    @property
    def done(self) -> Set[int]:
        """Numbers of the requests that have their results, as they come."""
        return self._places.keys()

    def add(self, number: int, result: Mapping[str, Any]) -> None:
        """Keep the result of one request, whatever becomes of this process. Raises MgmError."""
        head, tail = f"{number}\t".encode(), _line(result)
        place = self._end + len(head)
        with self._writing():
            self._append(head + tail)
        self._places[number] = (place, place + len(tail))

    def publish(self, failures: Mapping[int, Mapping[str, Any]]) -> None:
        """Write OUT: all results, and in their places what became of requests that failed.

        Where there are none of these nothing is left to do, and `OUT.partial` goes.
        Raises MgmError.
        """
        with self._writing():
            with replacing(self.out) as ordered, ordered.open("wb") as file:
                for number in sorted({*self._places, *failures}):
                    if number in failures:
                        file.write(_line(failures[number]))
                    else:
                        start, end = self._places[number]
                        file.write(os.pread(self._file, end - start, start))
                file.flush()
                os.fsync(file.fileno())
            if not failures:
                self.path.unlink()

    def close(self) -> None:
        """Let go of it; the next run goes on with it, if there is anything in it."""
        if not self._places:
            self.path.unlink(missing_ok=True)
        os.close(self._file)

    def _append(self, line: bytes) -> None:
        while line:  # one call, but where the disk is full or somebody interrupts
            written = os.pwrite(self._file, line, self._end)
            line, self._end = line[written:], self._end + written

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise MgmError(
                f"{self.out} and what belongs to it cannot be written ({error.strerror}): "
                "name another with --out, or make room"
            ) from None


def _line(result: Mapping[str, Any]) -> bytes:
    return json.dumps(result, ensure_ascii=False).encode() + b"\n"
