"""An engine that notes its requests, and threads that must end in time."""

import faulthandler
import gc
import tempfile
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import pytest

from mlx_gemma_mtp import Engine, Generation
from mlx_gemma_mtp.engine.pair import OpenPair
from mlx_gemma_mtp.engine.request import Request
from mlx_gemma_mtp.engine.worker import mlx_worker

SECONDS = 240  # after which a thread counts as stuck


@dataclass
class Traffic:
    """Every request that an engine was given; keeps none of them alive."""

    requests: list["weakref.ref[Request]"] = field(default_factory=list)
    generations: list[Generation] = field(default_factory=list)
    ends: Counter[int] = field(default_factory=Counter)  # of each generation, by its number
    lock: Any = field(default_factory=threading.Lock)

    def forget(self) -> None:
        for noted in (self.requests, self.generations, self.ends):
            noted.clear()

    def note(self, request: Request) -> None:
        with self.lock:
            number = len(self.generations)
            self.requests.append(weakref.ref(request))
            self.generations.append(request.generation)
        request.generation.add_done_callback(lambda _: self.ends.update([number]))


class Watched(Engine):
    """An engine that notes its requests."""

    def __init__(self, pair: OpenPair, **options: Any) -> None:
        super().__init__(pair, **options)
        self.traffic = Traffic()

    def _submit(self, request: Request, **options: Any) -> Generation:
        self.traffic.note(request)
        return super()._submit(request, **options)


def in_time(jobs: list[Callable[[], None]]) -> None:
    """Run each on a thread of its own; where one does not end in time, show all threads and fail.

    What a job raises is raised here.
    """
    errors: list[BaseException] = []

    def run(job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException as error:  # noqa: BLE001 - raised below
            errors.append(error)

    # Daemons, because the process must end even where they do not.
    threads = [threading.Thread(target=run, args=[job], daemon=True) for job in jobs]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + SECONDS
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    if any(thread.is_alive() for thread in threads):
        with tempfile.TemporaryFile("w+") as dump:
            faulthandler.dump_traceback(dump, all_threads=True)
            dump.seek(0)
            pytest.fail(f"not done after {SECONDS} s:\n{dump.read()}")
    if errors:
        raise errors[0]


def memory_at_rest() -> int:
    """Bytes in use by MLX once the worker has nothing left to do."""
    for _ in range(2):
        mlx_worker().submit(lambda: None).result(SECONDS)
    gc.collect()
    return mlx_worker().submit(mx.get_active_memory).result(SECONDS)
