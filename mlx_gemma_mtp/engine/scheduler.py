"""Requests that wait, are read, decode and end: an engine's work in short steps.

Knows nothing of prompts as text, and, except for `reserve` and `status`, nothing of threads: one
thread calls everything else.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import mlx.core as mx

from mlx_gemma_mtp.engine.batch import Batch
from mlx_gemma_mtp.engine.line import Line
from mlx_gemma_mtp.engine.prompt_reader import PromptReader
from mlx_gemma_mtp.engine.request import Request
from mlx_gemma_mtp.engine.status import Status
from mlx_gemma_mtp.errors import ClosedError

CLOSED = ClosedError("the engine was closed before the request was finished")


class Scheduler:
    """Serves requests in the order of `PromptReader`, in steps of some prefill and one round."""

    def __init__(
        self, batch: Batch, *, max_queue: int, on_idle: Callable[[], object] | None = None
    ) -> None:
        """on_idle is called whenever nothing is left to do."""
        self._batch = batch
        self._prefixes = batch.prefixes
        self._on_idle = on_idle
        self._waiting = Line(batch.exactness.max_batch, max_queue)
        self._reader = PromptReader(batch, self._waiting)
        self._closed = False
        self._count()

    @property
    def status(self) -> Status:
        """As of the last round or pass, without requests that have ended; from any thread."""
        reading, decoding = (sum(not one.ended for one in each) for each in self._counted)
        waiting, held = self._waiting.num_waiting, mx.get_active_memory()
        return Status(waiting, reading, decoding, held, *self._prefixes.counts)

    def reserve(self, *, patient: bool = False) -> None:
        """Take a place in the queue for a request; from any thread. As `Line.reserve`."""
        self._waiting.reserve(patient=patient)

    def add(self, request: Request) -> None:
        """Queue a request that has a place."""
        self._waiting.add(request)
        if self._closed:
            self._waiting.take(request)
            request.fail(CLOSED)
        else:
            self._reader.expect(request)

    def close(self) -> None:
        """End everything with an MgmError, also what is added later, and let go of the models."""
        if not self._closed:
            self._closed = True
            self._waiting.close()
            self.end(CLOSED)
            self._prefixes.clear()
            del self._batch, self._reader  # errors that people keep may keep this alive

    def step(self) -> bool:
        """Do some prefill and one round. Returns whether there is more to do."""
        if self._closed:
            return False
        try:
            self._drop_ended()
            # Rows land first, so that no tokens wait for the prefill.
            has_read = self._reader.read(partial(self._for_all_rows, self._batch.land))
            self._count()
            if not self._reader.gathering:
                settled = not self._reader.requests
                self._for_all_rows(partial(self._batch.play, settled=settled))
                if not has_read:  # requests that came during a pass are here by the next step
                    self._reader.let_rows_start()
        except BaseException as error:  # noqa: BLE001 - nobody may wait forever for a result
            self.end(error)
        more = bool(self._waiting or self._reader.requests or self._batch.active)
        if not more:
            mx.clear_cache()
            if self._on_idle:
                self._on_idle()
        self._count()
        return more

    def end(self, error: BaseException) -> None:
        """End everything with this error."""
        for request in list(self._waiting):
            self._waiting.take(request)
            request.fail(error)
        self._reader.end(error)
        self._batch.fail(error)
        self._count()

    def _count(self) -> None:
        """Note the requests that are read, and those that decode."""
        self._counted = self._reader.requests, self._batch.active

    def _drop_ended(self) -> None:
        """End the requests that were cancelled or took too long, wherever they are."""
        now = time.perf_counter()
        for request in [*self._waiting, *self._reader.requests, *self._batch.active]:
            if request.ended:
                continue
            if request.generation._stopping:
                request.cancel()
            elif request.deadline is not None and now >= request.deadline:
                request.time_out()
        self._reader.drop_ended()
        self._for_all_rows(self._batch.free_ended)
        for request in [request for request in self._waiting if request.ended]:
            self._waiting.take(request)

    def _for_all_rows(self, action: Callable[[], None]) -> None:
        """Do something that all rows depend on. An error ends all of them."""
        try:
            action()
        except BaseException as error:  # noqa: BLE001 - the submitters get it
            self._batch.fail(error)
