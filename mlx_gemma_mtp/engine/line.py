"""The requests that wait for a row, in the order in which they get one, and who may join them.

Knows nothing of rows or passes. Places are taken from any thread; everything else is the worker's.
"""

from __future__ import annotations

import math
import threading
from bisect import insort
from collections.abc import Iterator
from itertools import count

from mlx_gemma_mtp.engine.request import Request
from mlx_gemma_mtp.errors import QueueFullError


class Line:
    """Requests by priority, highest first, then by arrival."""

    def __init__(self, max_batch: int, max_queue: int) -> None:
        """There are places for as many requests as have rows, and for max_queue that wait."""
        self._max_queue = max_queue
        self._free: float = max_batch + max_queue
        self._num_waiting = 0
        self._changed = threading.Condition()
        self._numbers = count()
        self._requests: list[Request] = []

    def __iter__(self) -> Iterator[Request]:
        return iter(self._requests)

    def __len__(self) -> int:
        return len(self._requests)

    @property
    def num_waiting(self) -> int:
        """Requests that have a place, and have not started or ended, from any thread."""
        return self._num_waiting - sum(request.ended for request in [*self._requests])

    def reserve(self, *, patient: bool) -> None:
        """Take a place, which is free again when the request ends; from any thread.

        Raises QueueFullError if there is none, unless patient: then waits for one.
        """
        with self._changed:
            if self._free == 0 and not patient:
                raise QueueFullError(
                    f"the queue is full ({self._max_queue} requests are waiting): try again later, "
                    "or load with a larger max_queue"
                )
            self._changed.wait_for(lambda: self._free > 0)
            self._free -= 1
            self._num_waiting += 1

    def add(self, request: Request) -> None:
        """Put a request that has a place where it belongs."""
        request.leave = self._leave
        request.order = (-request.priority, next(self._numbers))
        insort(self._requests, request, key=lambda one: one.order)

    def take(self, request: Request) -> None:
        """Take a request out: it starts, or has ended."""
        self._requests.remove(request)
        with self._changed:
            self._num_waiting -= 1

    def close(self) -> None:
        """Let everyone in: no place will be free, and what is added now only fails."""
        with self._changed:
            self._free = math.inf
            self._changed.notify_all()

    def _leave(self) -> None:
        with self._changed:
            self._free += 1
            self._changed.notify()
