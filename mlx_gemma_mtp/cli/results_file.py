"""The results of a batch: a journal, `OUT.partial`, until all are there; then OUT, in order.

Doesn't know what is in a result.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlx_gemma_mtp.errors import MgmError, UsageError
from mlx_gemma_mtp.files.atomic import more_room, write_whole
from mlx_gemma_mtp.files.journal import Event, Journal, encode, read

FORMAT = "mgm batch 2"


class ResultsFile:
    """Results in the making, held by this process until `close`."""

    def __init__(
        self, out: Path, started_with: dict[str, Any], seed: int, *, restart: bool
    ) -> None:
        """Resume the file, or start it.

        started_with: what results depend on. seed: stored with the first run; `self.seed` is the
        stored one. restart: start over, and replace OUT if it exists. Raises UsageError if it may
        not be replaced or another process works on it, MgmError if it cannot be written.
        """
        self.out = out.resolve()  # a link stays one
        self.path = self.out.with_name(self.out.name + ".partial")
        if self.out.exists() and not self.out.is_file():
            raise UsageError(f"{out} is not a file: name another with --out")
        header: Event = {"format": FORMAT, "seed": seed, "with": started_with}
        with self._writing():
            self._journal = Journal(self.path, str(self.path))
            try:
                header, *events = self._journal.resume(header, restart=restart, option="--restart")
                if not events and self.out.exists() and not restart:
                    self.path.unlink()
                    raise UsageError(f"{self.out} exists: --restart replaces it")
            except BaseException:
                self._journal.close()
                raise
        self.seed: int = header["seed"]
        self.done: set[int] = {event["number"] for event in events}  # requests with a result

    def add(self, number: int, result: Mapping[str, Any]) -> None:
        """Store the result of one request on the disk. Raises MgmError."""
        with self._writing():
            self._journal.write({"number": number, "result": dict(result)})
        self.done.add(number)

    def publish(self, failures: Mapping[int, Mapping[str, Any]]) -> None:
        """Write OUT: all results in order, and errors in place of the requests that failed.

        Without failures nothing is left to do, and `OUT.partial` is removed. Raises MgmError.
        """
        with self._writing():
            _, *events = read(self.path, FORMAT)
            results = {event["number"]: event["result"] for event in events} | dict(failures)
            write_whole(self.out, encode(*(results[number] for number in sorted(results))))
            if not failures:
                self.path.unlink()

    def close(self) -> None:
        """Release the file; the next run resumes it if there is any result in it."""
        if not self.done:
            self.path.unlink(missing_ok=True)
        self._journal.close()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise MgmError(
                f"cannot write {self.out} or {self.path.name} ({error.strerror}): "
                f"{more_room(error)}choose another file with --out"
            ) from None
