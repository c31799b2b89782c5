"""Who waits, whose prompt is being read, who decodes: an engine's work, in short steps.

A step is one job of the worker: some prefill, one round. Between two of them the worker does what
others want, another engine's steps for instance. Knows nothing of prompts as text.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial

import mlx.core as mx

from mlx_gemma_mtp.decode.depth import Depth
from mlx_gemma_mtp.decode.round import PlayRound
from mlx_gemma_mtp.engine.batch import Batch
from mlx_gemma_mtp.engine.prefill import Pace, Prefill
from mlx_gemma_mtp.engine.request import Request
from mlx_gemma_mtp.engine.results import Generation
from mlx_gemma_mtp.engine.worker import mlx_worker
from mlx_gemma_mtp.errors import MgmError, QueueFullError
from mlx_gemma_mtp.memory import Limits
from mlx_gemma_mtp.model.target import Target

CLOSED = MgmError("this engine was closed before the text was complete")


class Scheduler:
    """Serves requests in their order. All but `submit` and `close` happens on the worker."""

    def __init__(
        self,
        target: Target,
        play_round: PlayRound,
        depth: Depth,
        *,
        suppressed: list[int],
        max_batch: int,
        max_queue: int,
        limits: Limits,
        on_idle: Callable[[], object] | None = None,
    ) -> None:
        """on_idle is called, on the worker, whenever nothing is left to do."""
        self._target = target
        self._max_queue = max_queue
        self._limits = limits
        self._on_idle = on_idle
        self._room = threading.Semaphore(max_queue)
        self._waiting: deque[Request] = deque()
        self._prefill: Prefill | None = None
        # There, because MLX's arrays belong to the thread that makes them.
        self._batch = mlx_worker().run(
            lambda: Batch(target, play_round, depth, suppressed, max_batch, limits)
        )
        self._pace = Pace(limits)
        self._stepping = False  # is there a step in the worker's queue?
        self._closed = False

    def submit(self, request: Request, *, patient: bool = False) -> Generation:
        """Queue a request; from any thread.

        Raises QueueFullError where max_queue wait already, unless patient: then waits itself.
        """
        request.queue()
        if not self._room.acquire(blocking=patient):
            raise QueueFullError(
                f"{self._max_queue} requests are waiting, and this engine takes no more: try later"
            )
        mlx_worker().submit(partial(self._admit, request))
        return request.generation

    def close(self) -> None:
        """End everything with an MgmError; returns when that is done."""
        self._closed = True
        mlx_worker().run(self._end)

    def _admit(self, request: Request) -> None:
        self._waiting.append(request)
        if self._closed:
            self._end()
        elif not self._stepping:
            self._stepping = True
            mlx_worker().submit(self._step)

    def _end(self, error: BaseException = CLOSED) -> None:
        """End everything with this error."""
        while self._waiting:
            self._next_waiting().fail(error)
        if self._prefill is not None:
            self._prefill.request.fail(error)
            self._prefill = None
        self._batch.fail(error)

    def _step(self) -> None:
        if self._closed:
            return  # `_end` comes next
        try:
            self._drop_cancelled()
            self._read_prompts()
            self._in_batch(partial(self._batch.play, settled=self._prefill is None))
        except BaseException as error:  # noqa: BLE001 - nobody may wait for ever for its result
            self._end(error)
        if self._waiting or self._prefill is not None or self._batch.active:
            mlx_worker().submit(self._step)
        else:
            self._stepping = False
            mx.clear_cache()
            if self._on_idle:
                self._on_idle()

    def _drop_cancelled(self) -> None:
        """End requests that were cancelled, wherever they are; all if the process is leaving."""
        leaving = mlx_worker().leaving.is_set()
        reading = [] if self._prefill is None else [self._prefill.request]
        for request in [*self._waiting, *reading, *self._batch.active]:
            if leaving or request.generation.stopping:
                request.cancel()
        if self._prefill is not None and self._prefill.request.ended:
            self._prefill.hand_back()
            self._prefill = None
        self._in_batch(self._batch.free_ended)
        for request in [request for request in self._waiting if request.ended]:
            self._waiting.remove(request)
            self._room.release()

    def _read_prompts(self) -> None:
        """Prefill what may come between two rounds, and let those join who are done.

        That is one chunk, or several short prompts in its place.
        """
        self._begin_prefill(math.inf)
        if self._prefill is None:
            return
        self._in_batch(self._batch.land)  # nobody's tokens wait for the prefill
        left = self._pace.chunk(decoding=False)
        while self._prefill is not None and left > 0:
            left = min(left, self._pace.chunk(decoding=bool(self._batch.active)))
            left -= self._read(self._prefill, left)
            self._begin_prefill(left)

    def _begin_prefill(self, most: float) -> None:
        """Begin with the first that waits, if there is a row for it and it has so few tokens."""
        may = self._prefill is None and not self._batch.full
        if may and self._waiting and len(self._waiting[0].ids) <= most:
            self._prefill = Prefill(self._target, self._next_waiting(), self._limits)

    def _read(self, prefill: Prefill, most: int) -> int:
        """Prefill one chunk, and join after the last; what fails is this request's alone.

        Returns how many tokens it counts for: a few take as long as the smallest chunk.
        """
        num_tokens = most
        try:
            start = time.perf_counter()
            num_tokens = prefill.advance(most)
            self._pace.measure(num_tokens, time.perf_counter() - start)
            if prefill.finished:
                self._prefill = None
                self._batch.join(prefill)
        except BaseException as error:  # noqa: BLE001 - the submitter gets it
            self._prefill = None
            prefill.request.fail(error)
        return max(num_tokens, self._limits.chunks[0])

    def _in_batch(self, action: Callable[[], None]) -> None:
        """Do something that all rows depend on; where it fails, all of them do."""
        try:
            action()
        except BaseException as error:  # noqa: BLE001 - the submitters get it
            self._batch.fail(error)

    def _next_waiting(self) -> Request:
        self._room.release()
        return self._waiting.popleft()
