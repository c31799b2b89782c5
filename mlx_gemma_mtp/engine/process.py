"""A worker process of an isolated engine, as its parent sees it: a pipe, its start and its end.

Knows nothing of requests. Messages to it are JSON; those from it are pickled, and trusted because
nobody else has the other end of the pipe.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection, Pipe
from queue import SimpleQueue
from typing import Any

from mlx_gemma_mtp.engine.about import About, State
from mlx_gemma_mtp.engine.isolated import serve
from mlx_gemma_mtp.engine.loading import Watch
from mlx_gemma_mtp.errors import LoadCancelledError, MgmError, WorkerDiedError, one_line

Message = tuple[Any, ...]  # its kind, then what belongs to it

POLL_SECONDS = 0.1  # between two looks at whether a load is cancelled
START_SECONDS = 120.0  # that a worker has until its first message, on however slow a machine

# Otherwise the worker would be the app again, and start another one.
IS_WORKER = "MGM_IS_WORKER"
HELP = "in a frozen app, call multiprocessing.freeze_support() first"

# The parent's import path, and no `if __name__ == "__main__"` in the app's own file.
START = (
    "import sys; sys.path[:] = {path!r}; from mlx_gemma_mtp.engine.isolated import run; run({fd})"
)


class WorkerProcess:
    """One worker. Anyone may call `send` and `kill`; one thread receives.

    It ends when its parent does, because the pipe ends, and a Ctrl-C at a terminal doesn't reach
    it: the parent decides.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        """Start it, and have it load. options: of `load`, as JSON takes them.

        Raises MgmError if there is no way to start a process.
        """
        # What people do about its death.
        self._then = f"it has not started; {HELP}"
        self._pipe, theirs = Pipe()
        self._to_send: SimpleQueue[bytes | None] = SimpleQueue()
        try:
            with theirs, _without_interrupts():
                self._process = _start(theirs)
        except (OSError, MgmError) as error:
            self._pipe.close()
            raise MgmError(f"a worker process cannot be started: {one_line(error)}") from None
        _all.add(self)
        self._writer = threading.Thread(target=self._write, daemon=True)
        self._writer.start()
        self.send("load", options)

    @property
    def pid(self) -> int | None:
        return self._process.pid

    def send(self, *message: Any) -> None:
        """Send a message, in order, without waiting. It is lost if the worker has died."""
        self._to_send.put(json.dumps(message).encode())

    def receive(self) -> Message:
        """Wait for the next message. Raises WorkerDiedError once it has ended; nothing is left."""
        try:
            message: Message = self._pipe.recv()
        except (EOFError, OSError):
            raise WorkerDiedError(
                f"the worker process died ({self._reap()}): {self._then}"
            ) from None
        except BaseException:  # a message that cannot be read
            self.end()
            raise
        return message

    def loaded(
        self, watches: Mapping[str, Watch], cancel: Callable[[], bool] | None, name: object
    ) -> tuple[About, State]:
        """Wait until it has loaded the model. Raises what `load` raises there.

        watches: called in this thread with the shares of "load" and "probe". cancel: True to end
        the load. If anything is raised here, the worker ends.
        """
        start_by = time.monotonic() + START_SECONDS
        try:
            while True:
                if cancel is not None and cancel():
                    raise LoadCancelledError(f"loading {name} was cancelled")
                if time.monotonic() > start_by:
                    raise MgmError(f"the worker process does not start; {HELP}")
                if not self._pipe.poll(POLL_SECONDS):
                    continue
                kind, *content = self.receive()
                if kind == "started":
                    self._then = "it was loading; if memory is short, choose a smaller model"
                    start_by = math.inf
                elif kind == "progress":
                    part, share = content
                    if part in watches:
                        watches[part](share)
                elif kind == "loaded":
                    self._then = "submit again, and the model is loaded again"
                    about, state = content
                    return about, state
                elif kind == "failed":
                    error, cause = content
                    raise error from cause
        except BaseException:
            self.end()
            raise

    def kill(self) -> None:
        """End it at once; who receives finds out."""
        self._process.kill()

    def end(self) -> None:
        """End it at once, and leave nothing; for the thread that receives."""
        self.kill()
        self._reap()

    def forget(self) -> None:
        """Let go of the pipe in a forked child, so that the worker sees its parent end."""
        self._pipe.close()

    def _write(self) -> None:
        for message in iter(self._to_send.get, None):
            with suppress(OSError):  # it has died: who receives finds out
                self._pipe.send_bytes(message)

    def _reap(self) -> str:
        """Wait for its end, leave nothing of it, and return how it ended."""
        code = self._process.wait()
        self._to_send.put(None)
        self._writer.join()  # it must not write where the pipe was
        self._pipe.close()
        return f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"


class _Spawned:
    """A process that a frozen app starts, which has no Python to run a command with."""

    def __init__(self, pipe: Connection) -> None:
        self._process = get_context("spawn").Process(target=serve, args=[pipe], daemon=True)
        self._process.start()
        self.pid = self._process.pid
        self.kill = self._process.kill

    def wait(self) -> int:
        self._process.join()
        return self._process.exitcode or 0


def _start(pipe: Connection) -> subprocess.Popen[bytes] | _Spawned:
    frozen = getattr(sys, "frozen", False)
    # Without freeze_support, what multiprocessing starts is the app, with these arguments.
    if IS_WORKER in os.environ or (frozen and any("multiprocessing" in one for one in sys.argv)):
        raise MgmError(f"a worker process must not start another; {HELP}")
    if frozen:
        return _Spawned(pipe)
    if not sys.executable:
        raise MgmError("isolated=True needs sys.executable, the Python that runs a worker process")
    code, fd = START.format(path=[*map(str, sys.path)], fd=pipe.fileno()), pipe.fileno()
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        pass_fds=[fd],
        env={**os.environ, IS_WORKER: "1"},
    )


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Start a process to which Ctrl-C doesn't get: it inherits what this thread blocks."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _forked() -> None:
    for worker in _all:
        worker.forget()


_all: weakref.WeakSet[WorkerProcess] = weakref.WeakSet()
os.register_at_fork(after_in_child=_forked)
