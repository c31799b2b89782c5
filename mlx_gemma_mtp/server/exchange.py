"""Every HTTP request with its answer, for the log and the metrics. Knows no protocol."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mlx_gemma_mtp.engine.results import Completion
from mlx_gemma_mtp.server.failures import Failure
from mlx_gemma_mtp.server.run import Run

LEFT = 499  # the status of a request whose client hung up, as nginx logs it


@dataclass
class Exchange:
    """A request and its answer.

    is_known: True if there is something at its path. status: of the answer; of a stream that fails,
    what it would have been; `LEFT` if the client hung up before. seconds: from its start to its
    end. run: None if it ran no model. failure: why a protocol refused it or it failed.
    """

    method: str
    path: str
    is_known: bool
    status: int = LEFT
    seconds: float = 0.0
    run: Run | None = None
    failure: Failure | None = None

    @property
    def completions(self) -> list[Completion]:
        """Those that did not fail."""
        found = [one.completion for one in self.run.generations] if self.run else []
        return [one for one in found if one is not None]


class Exchanges:
    """Calls all observers with every request that has ended, on the event loop.

    Handlers put the `Run` of the model into the state of a request, and the `Failure` that ends it.
    """

    def __init__(self, app: ASGIApp, observers: Sequence[Callable[[Exchange], object]]) -> None:
        self._app, self._observers = app, observers
        self._ending: set[asyncio.Task[None]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"]
        served = (one.path for one in scope["app"].routes if isinstance(one, Route))
        exchange = Exchange(scope["method"], path, is_known=path in served)
        started = time.perf_counter()

        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, sent)
        except Exception:
            exchange.status = 500
            raise
        finally:
            state = scope.get("state", {})
            exchange.run, exchange.failure = state.get("run"), state.get("failure")
            exchange.seconds = time.perf_counter() - started
            # The engine takes up to a round to end what was cancelled.
            task = asyncio.create_task(self._end(exchange))
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)

    async def _end(self, exchange: Exchange) -> None:
        run = exchange.run
        if run is not None:
            await asyncio.gather(*run.generations, return_exceptions=True)
            if run.left:
                exchange.status = LEFT
            elif run.failure is not None:
                exchange.status, exchange.failure = run.failure.status, run.failure
        for observer in self._observers:
            observer(exchange)
