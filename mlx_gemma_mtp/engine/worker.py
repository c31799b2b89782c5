"""The one thread of this process that does all MLX work; callers wait for it.

MLX's streams and random state belong to threads, and a thread that used them must not end while
the interpreter shuts down: their destructors need the interpreter and abort the process. So all
engines share one thread, it never ends, and at exit the process only waits until it is idle.
Neither that thread nor MLX's own survive a fork: a forked child cannot use this package once its
parent has.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import logging
import os
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, NoReturn, TypeVar

from mlx_gemma_mtp.errors import MgmError, UsageError

T = TypeVar("T")

log = logging.getLogger("mlx_gemma_mtp")

SLOW_SECONDS = 1.0  # of a job, which is logged
EXIT_SECONDS = 10.0  # how long the exit of the process waits for the current job


class Worker:
    """Runs jobs one after another on its own thread."""

    def __init__(self) -> None:
        self.lost = False  # True in a forked child, in which the thread does not exist
        self.leaving = threading.Event()  # set at exit; long jobs check it and stop
        self.at_exit: set[Callable[[], object]] = set()  # last jobs
        self._repeated: set[Callable[[], bool]] = set()
        self._jobs: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="mgm", daemon=True)
        self._thread.start()
        atexit.register(self._leave)

    @property
    def busy(self) -> bool:
        """True if a job waits for the current one."""
        return not self._jobs.empty()

    def submit(self, job: Callable[[], T]) -> Future[T]:
        """Queue a job. The future returns its result or raises its error."""
        future: Future[T] = Future()
        self._jobs.put((future, job))
        return future

    def run(self, job: Callable[[], T]) -> T:
        """Queue a job and wait for its result. Raises its error, or UsageError on the worker."""
        self.check_may_wait()
        return self.submit(job).result()

    def repeat(self, step: Callable[[], bool]) -> None:
        """Run this step again and again until it returns False, with other jobs in between.

        Called on the worker. Does nothing if the step is being repeated already.
        """
        if step not in self._repeated and not self.leaving.is_set():
            self._repeated.add(step)
            self.submit(functools.partial(self._repeat, step))

    def check_may_wait(self) -> None:
        """Raise UsageError on the worker's own thread, which would wait for itself forever."""
        if threading.current_thread() is self._thread:
            raise UsageError(
                "a callback must not wait for an engine: it runs on the thread that does the work"
            )

    def _repeat(self, step: Callable[[], bool]) -> None:
        self._repeated.discard(step)
        if step():
            self.repeat(step)

    def _work(self) -> None:
        while True:
            future, job = self._jobs.get()
            start = time.perf_counter()
            try:
                future.set_result(job())
            except BaseException as error:  # noqa: BLE001 - the future raises it in the caller
                future.set_exception(error)
            if (seconds := time.perf_counter() - start) > SLOW_SECONDS:
                log.info("a step took %.1f s", seconds)
            del future, job  # an idle worker must not keep a closed model alive

    def _leave(self) -> None:
        self.leaving.set()
        if self.lost:
            return
        # A job that takes longer, in one operation of MLX, ends with the process.
        with contextlib.suppress(TimeoutError):
            self.submit(self._last_jobs).exception(EXIT_SECONDS)

    def _last_jobs(self) -> None:
        for job in list(self.at_exit):
            job()


_starting = threading.Lock()
_worker: Worker | None = None


def mlx_worker() -> Worker:
    """Return this process's worker, started on first use. Raises MgmError in a forked child."""
    global _worker
    if _worker is None:
        with _starting:
            _worker = _worker or Worker()
    if _worker.lost:
        raise MgmError(
            "this process was forked from one that had loaded a model, which MLX does not survive: "
            'load it in the child only, or start the child with multiprocessing\'s "spawn" method'
        )
    return _worker


def only_here(what: str, instead: str) -> Callable[[object], NoReturn]:
    """Return a `__reduce__` that refuses to copy or pickle an object with a part on the worker."""

    def refuse(_: object) -> NoReturn:
        raise UsageError(f"{what} cannot be copied or sent to another process: {instead}")

    return refuse


def _forked() -> None:
    """Start over in a forked child, or find the worker lost there."""
    global _starting
    _starting = threading.Lock()  # another thread of the parent may have held it
    if _worker is not None:
        _worker.lost = True


os.register_at_fork(after_in_child=_forked)
