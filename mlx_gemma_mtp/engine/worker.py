"""The one thread of this process that does all MLX work; callers wait for it.

MLX's streams and random state belong to threads, and a thread that held them must not end while
the interpreter shuts down: their destructors ask for the interpreter and abort the process. So
there is one thread for all engines, it never ends, and at exit it is merely found idle.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from mlx_gemma_mtp.errors import UsageError

T = TypeVar("T")

EXIT_SECONDS = 10.0  # how long leaving the process waits for a job under way


class Worker:
    """Runs submitted jobs one after another on its own thread."""

    def __init__(self) -> None:
        self.leaving = threading.Event()  # jobs that would go on look at it, and end
        self._jobs: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="mgm", daemon=True)
        self._thread.start()
        atexit.register(self._leave)

    def submit(self, job: Callable[[], T]) -> Future[T]:
        """Queue a job; the future gives its result or raises what it raised."""
        future: Future[T] = Future()
        self._jobs.put((future, job))
        return future

    def run(self, job: Callable[[], T]) -> T:
        """Queue a job and wait for what it returns or raises; UsageError on the worker itself."""
        self.check_may_wait()
        return self.submit(job).result()

    def check_may_wait(self) -> None:
        """Raise UsageError on the worker's own thread, which would wait for itself for ever."""
        if threading.current_thread() is self._thread:
            raise UsageError(
                "a callback must not wait for an engine: it runs on the thread that does the work"
            )

    def _work(self) -> None:
        while True:
            future, job = self._jobs.get()
            try:
                future.set_result(job())
            except BaseException as error:  # noqa: BLE001 - the future hands it to the caller
                future.set_exception(error)
            del future, job  # an idle worker must not keep a closed model alive

    def _leave(self) -> None:
        self.leaving.set()
        # Twice: the job under way may queue one more behind the first, and that one sees `leaving`.
        # A job that takes longer, in one operation of MLX, ends with the process.
        with contextlib.suppress(TimeoutError):
            for _ in range(2):
                self.submit(lambda: None).exception(EXIT_SECONDS)


@functools.cache
def mlx_worker() -> Worker:
    """This process's worker, started when first asked for."""
    return Worker()
