"""The one thread of this process that does all MLX work; callers wait for it.

MLX's streams and random state belong to threads, and a thread that held them must not end while
the interpreter shuts down: their destructors ask for the interpreter and abort the process. So
there is one thread for all engines, it never ends, and at exit it is merely found idle.
"""

from __future__ import annotations

import atexit
import functools
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")

EXIT_SECONDS = 10.0  # how long leaving the process waits for the job under way


class Worker:
    """Runs submitted jobs one after another on its own thread."""

    def __init__(self) -> None:
        self.leaving = threading.Event()  # long jobs look at it and end early
        self._jobs: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = queue.SimpleQueue()
        threading.Thread(target=self._work, name="mgm", daemon=True).start()
        atexit.register(self._leave)

    def submit(self, job: Callable[[], T]) -> Future[T]:
        """Queue a job; the future gives its result or raises what it raised."""
        future: Future[T] = Future()
        self._jobs.put((future, job))
        return future

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
        self.submit(lambda: None).exception(EXIT_SECONDS)


@functools.cache
def mlx_worker() -> Worker:
    """This process's worker, started when first asked for."""
    return Worker()
