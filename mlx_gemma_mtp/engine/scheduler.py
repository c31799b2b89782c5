"""Which request waits, which prompt is read, who decodes: an engine's work in short steps.

A step is some prefill and one round. Knows nothing of prompts as text, and, except for `reserve`,
nothing of threads: one thread calls everything else.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial

import mlx.core as mx

from mlx_gemma_mtp.engine.batch import Batch
from mlx_gemma_mtp.engine.prefill import Pace, Prefill
from mlx_gemma_mtp.engine.request import Request
from mlx_gemma_mtp.errors import MgmError, QueueFullError

CLOSED = MgmError("the engine was closed before the request was finished")


class Scheduler:
    """Serves requests in their order."""

    def __init__(
        self, batch: Batch, *, max_queue: int, on_idle: Callable[[], object] | None = None
    ) -> None:
        """on_idle is called whenever nothing is left to do."""
        self._batch = batch
        self._max_queue = max_queue
        self._on_idle = on_idle
        self._places = threading.Semaphore(max_queue)
        self._waiting: deque[Request] = deque()
        self._prefill: Prefill | None = None
        self._pace = Pace(batch.limits)
        self._closed = False

    def reserve(self, *, patient: bool = False) -> None:
        """Take a place in the queue for a request; from any thread.

        Raises QueueFullError if there is none, unless patient: then waits for one.
        """
        if not self._places.acquire(blocking=patient):
            raise QueueFullError(f"the queue is full ({self._max_queue} requests): try again later")

    def add(self, request: Request) -> None:
        """Queue a request that has a place."""
        self._waiting.append(request)
        if self._closed:
            self._end(CLOSED)

    def close(self) -> None:
        """End everything with an MgmError, also what is added later."""
        self._closed = True
        self._end(CLOSED)

    def step(self) -> bool:
        """Do some prefill and one round. Returns whether there is more to do."""
        try:
            self._drop_cancelled()
            self._read_prompts()
            self._for_all_rows(partial(self._batch.play, settled=self._prefill is None))
        except BaseException as error:  # noqa: BLE001 - nobody may wait forever for a result
            self._end(error)
        if self._waiting or self._prefill is not None or self._batch.active:
            return True
        mx.clear_cache()
        if self._on_idle:
            self._on_idle()
        return False

    def _end(self, error: BaseException) -> None:
        """End everything with this error."""
        while self._waiting:
            self._next_waiting().fail(error)
        if self._prefill is not None:
            self._prefill.request.fail(error)
            self._prefill = None
        self._batch.fail(error)

    def _drop_cancelled(self) -> None:
        """End the requests that were cancelled, wherever they are."""
        reading = [] if self._prefill is None else [self._prefill.request]
        for request in [*self._waiting, *reading, *self._batch.active]:
            if request.generation.stopping:
                request.cancel()
        if self._prefill is not None and self._prefill.request.ended:
            self._prefill.stop()
            self._prefill = None
        self._for_all_rows(self._batch.free_ended)
        for request in [request for request in self._waiting if request.ended]:
            self._waiting.remove(request)
            self._places.release()

    def _read_prompts(self) -> None:
        """Prefill between two rounds: one chunk, or several short prompts instead."""
        self._start_prefill(math.inf)
        if self._prefill is None:
            return
        self._for_all_rows(self._batch.land)  # so that no tokens wait for the prefill
        left = self._pace.chunk(decoding=False)
        while self._prefill is not None and left > 0:
            left = min(left, self._pace.chunk(decoding=bool(self._batch.active)))
            left -= self._read(self._prefill, left)
            self._start_prefill(left)

    def _start_prefill(self, most: float) -> None:
        """Start with the first request that waits, if there's a row for it and it is this short."""
        may = self._prefill is None and not self._batch.full
        if may and self._waiting and len(self._waiting[0].ids) <= most:
            request = self._next_waiting()
            try:
                self._prefill = Prefill(self._batch.target, request, self._batch.limits)
            except BaseException as error:  # noqa: BLE001 - the submitter gets it
                request.fail(error)

    def _read(self, prefill: Prefill, most: int) -> int:
        """Prefill one chunk, and give the request a row after the last. An error ends it alone.

        Returns how many tokens it counts for: a few take as long as the smallest chunk.
        """
        num_tokens = most
        try:
            start = time.perf_counter()
            num_tokens = prefill.advance(most)
            self._pace.measure(num_tokens, time.perf_counter() - start)
            if prefill.finished:
                self._prefill = None
                self._batch.add(prefill)
        except BaseException as error:  # noqa: BLE001 - the submitter gets it
            self._prefill = None
            prefill.request.fail(error)
        return max(num_tokens, self._batch.limits.chunks[0])

    def _for_all_rows(self, action: Callable[[], None]) -> None:
        """Do something that all rows depend on. An error ends all of them."""
        try:
            action()
        except BaseException as error:  # noqa: BLE001 - the submitters get it
            self._batch.fail(error)

    def _next_waiting(self) -> Request:
        self._places.release()
        return self._waiting.popleft()
