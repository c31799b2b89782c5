"""Which request waits, which prompt is read, who decodes: an engine's work in short steps.

A step is some prefill and one round. Knows nothing of prompts as text, and, except for `reserve`,
nothing of threads: one thread calls everything else.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

import mlx.core as mx

from mlx_gemma_mtp.engine.batch import Batch
from mlx_gemma_mtp.engine.prefill import Pace, Prefill, num_together
from mlx_gemma_mtp.engine.request import Request
from mlx_gemma_mtp.errors import ClosedError, QueueFullError

CLOSED = ClosedError("the engine was closed before the request was finished")


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
        self._start_by = math.inf  # when rows that have only their first token start to decode
        self._closed = False

    def reserve(self, *, patient: bool = False) -> None:
        """Take a place in the queue for a request; from any thread.

        Raises QueueFullError if there is none, unless patient: then waits for one.
        """
        if not self._places.acquire(blocking=patient):
            raise QueueFullError(f"the queue is full ({self._max_queue} requests): try again later")

    def add(self, request: Request) -> None:
        """Queue a request that has a place."""
        if self._closed:
            self._places.release()
            request.fail(CLOSED)
        else:
            self._waiting.append(request)

    def close(self) -> None:
        """End everything with an MgmError, also what is added later, and let go of the models."""
        if not self._closed:
            self._closed = True
            self._end(CLOSED)
            del self._batch  # errors that people keep may keep this alive

    def step(self) -> bool:
        """Do some prefill and one round. Returns whether there is more to do."""
        if self._closed:
            return False
        try:
            self._drop_cancelled()
            self._read_prompts()
            if not self._gathering:
                self._play()
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
            self._fail(self._prefill.requests, error)
        self._batch.fail(error)

    def _drop_cancelled(self) -> None:
        """End the requests that were cancelled, wherever they are."""
        reading = [] if self._prefill is None else self._prefill.requests
        for request in [*self._waiting, *reading, *self._batch.active]:
            if request.generation.stopping:
                request.cancel()
        if self._prefill is not None and all(request.ended for request in reading):
            self._prefill.stop()
            self._prefill = None
        self._for_all_rows(self._batch.free_ended)
        for request in [request for request in self._waiting if request.ended]:
            self._waiting.remove(request)
            self._places.release()

    @property
    def _gathering(self) -> bool:
        """True if rows wait for prompts that came with theirs: best for the first tokens of all.

        Prompts that came after the first of these tokens don't count: newcomers would stop a row
        again and again.
        """
        limits = self._batch.limits
        if self._prefill is not None:
            following = self._prefill.requests[0]
        elif self._waiting and self._batch.num_free:
            following = self._waiting[0]
        else:
            return False
        came_with_theirs = following.queued <= self._start_by - limits.start_seconds
        return came_with_theirs and self._time_to_start > limits.pause_seconds

    @property
    def _time_to_start(self) -> float:
        """Seconds until the rows must start to decode; 0 if they have."""
        return max(0.0, self._start_by - time.perf_counter()) if self._batch.active else math.inf

    def _play(self) -> None:
        self._for_all_rows(partial(self._batch.play, settled=self._prefill is None))
        self._start_by = 0.0

    def _chunk(self) -> int:
        """The most tokens of the next pass over prompts."""
        limits, left = self._batch.limits, self._time_to_start
        if left == math.inf or left > limits.pause_seconds:
            return self._pace.chunk(left)
        return self._pace.chunk(limits.pause_seconds, most=limits.decoding_chunk)

    def _read_prompts(self) -> None:
        """Prefill between two rounds: one pass, or several over short prompts instead."""
        if not self._batch.active:
            self._start_by = math.inf
        self._start_prefill(math.inf)
        if self._prefill is None:
            return
        self._for_all_rows(self._batch.land)  # so that no tokens wait for the prefill
        left = self._chunk()
        while self._prefill is not None and left > 0:
            left = min(left, self._chunk())
            left -= self._read(self._prefill, left)
            self._start_prefill(left)

    def _start_prefill(self, most: float) -> None:
        """Start with the first requests that wait, if rows are free and the first is this short."""
        may = self._prefill is None and self._batch.num_free > 0
        if may and self._waiting and len(self._waiting[0].ids) <= most:
            size, exactness = int(min(most, self._chunk())), self._batch.exactness
            count = num_together(self._waiting, self._batch.num_free, size, exactness)
            requests = [self._next_waiting() for _ in range(count)]
            self._prefill = Prefill(self._batch.target, requests, exactness)

    def _read(self, prefill: Prefill, most: int) -> int:
        """Run one pass, and give the requests rows after the last.

        An error ends its request alone: if a pass over several fails, they are read one by one.
        Returns how many tokens it counts for: a few take as long as the smallest chunk.
        """
        num_tokens, requests, limits = most, prefill.requests, self._batch.limits
        apart: Sequence[Request] = ()
        try:
            start = time.perf_counter()
            num_tokens = prefill.advance(most)
            self._pace.measure(num_tokens, time.perf_counter() - start)
            if prefill.finished:
                self._prefill = None
                self._batch.add(prefill)
                self._start_by = min(self._start_by, time.perf_counter() + limits.start_seconds)
        except BaseException as error:  # noqa: BLE001 - the submitters get it
            if self._prefill is None or len(requests) == 1:
                self._fail(requests, error)
            else:
                apart = requests
        if apart:
            del prefill  # its memory is free before they are read again
            for request in apart:
                self._prefill = Prefill(self._batch.target, [request], self._batch.exactness)
                while self._prefill is not None:  # padding may take another pass
                    self._read(self._prefill, len(request.ids))
        return max(num_tokens, limits.chunks[0])

    def _fail(self, requests: Sequence[Request], error: BaseException) -> None:
        """End requests that were being read."""
        self._prefill = None
        for request in requests:
            if not request.ended:
                request.fail(error)

    def _for_all_rows(self, action: Callable[[], None]) -> None:
        """Do something that all rows depend on. An error ends all of them."""
        try:
            action()
        except BaseException as error:  # noqa: BLE001 - the submitters get it
            self._batch.fail(error)

    def _next_waiting(self) -> Request:
        self._places.release()
        return self._waiting.popleft()
