"""A session whose cache is in a worker process. Knows nothing of pipes."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import TYPE_CHECKING

from mlx_gemma_mtp.engine.session import Session, checked_path
from mlx_gemma_mtp.memory import Limits

if TYPE_CHECKING:
    from mlx_gemma_mtp.engine.remote import Remote


class RemoteSession(Session):
    """The session of an isolated engine: its cache is in the worker, and ends with it."""

    def __init__(self, remote: Remote, number: int, owner: object) -> None:
        self._remote = remote
        self._number = number
        super().__init__(remote.about.pair.target, remote.about.identity, Limits(), owner)
        weakref.finalize(self, remote.send, "drop", self._number).atexit = False

    def __repr__(self) -> str:
        return f"<Session in a worker process{', busy' if self._holder else ''}>"

    def close(self) -> None:
        """Drop everything; the next turn starts from scratch."""
        self._remote.send("drop", self._number)

    def save(self, path: str | Path) -> None:
        """Write everything to a file, as `Session.save`."""
        checked = checked_path(path, "path").absolute()
        with self._held():
            self._remote.call("save", self._number, str(checked))

    def _restore(self, path: Path) -> None:
        """Load what `save` wrote; from any thread but the worker's. As `Session._restore`."""
        self._remote.call("restore", self._number, str(path.absolute()))

    def fork(self) -> Session:
        """Return a copy that continues on its own, as `Session.fork`."""
        copy = self._remote.session(self._owner)
        assert isinstance(copy, RemoteSession)
        with self._held():
            self._remote.call("fork", self._number, copy._number)
        return copy
