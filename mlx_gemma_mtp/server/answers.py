"""Answers over HTTP that end with the client: streams of events, and whole ones.

Knows nothing of protocols, whose files give the events.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from mlx_gemma_mtp.engine.results import Completion
from mlx_gemma_mtp.server.asked import Asked
from mlx_gemma_mtp.server.failures import Failure, failure_of
from mlx_gemma_mtp.server.run import Run
from mlx_gemma_mtp.server.service import Service

T = TypeVar("T")

COMMENT = ": working\n\n"  # clients of server-sent events skip it


def event(data: Any, name: str | None = None) -> str:
    """Return a server-sent event."""
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {compact(data)}\n\n"


def compact(data: Any) -> str:
    """Return JSON on one line, as UTF-8 text without needless spaces."""
    return json.dumps(data, ensure_ascii=False, separators=(",", ":"))


class EventStream(StreamingResponse):
    """Events as they come.

    heartbeat: makes what is sent after some silence. failed: the events of an error, for which
    another status comes too late. If the client leaves, the request ends within a round.
    """

    def __init__(
        self,
        service: Service,
        run: Run,
        events: AsyncIterator[str],
        failed: Callable[[Failure], str],
        *,
        heartbeat: Callable[[], str] = lambda: COMMENT,
        media_type: str = "text/event-stream",
    ) -> None:
        self._service = service
        self._run = run
        self._heartbeat = heartbeat
        super().__init__(
            self._sent(events, failed),
            headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
            media_type=media_type,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""

        async def sent(message: Message) -> None:
            self._last = time.monotonic()
            await send(message)

        self._run.left = True  # until all is sent
        self._last = time.monotonic()
        beating = asyncio.create_task(self._beat(sent))
        try:
            await super().__call__(scope, receive, sent)
        finally:
            beating.cancel()
            self._run.cancel()

    async def _sent(
        self, events: AsyncIterator[str], failed: Callable[[Failure], str]
    ) -> AsyncIterator[str]:
        """Yield events, and those of the error that ends them."""
        try:
            async for text in events:
                yield text
        except Exception as error:  # noqa: BLE001 - the client gets it
            self._run.failure = failure_of(error)
            yield failed(self._run.failure)
        self._run.left = False

    async def _beat(self, send: Send) -> None:
        """Send the heartbeat after each silence."""
        seconds = self._service.settings.heartbeat_seconds
        while True:
            await asyncio.sleep(self._last + seconds - time.monotonic())
            if time.monotonic() >= self._last + seconds:
                body = self._heartbeat().encode()
                await send({"type": "http.response.body", "body": body, "more_body": True})


async def start_stream(service: Service, request: Request, asked: Asked) -> Run:
    """Start a request, and wait a little for its first output, so that a refusal has a status.

    With that wait, the first heartbeat comes after ten seconds. Raises Failure, and
    ClientDisconnect if the client leaves.
    """
    run = request.state.run = service.start(asked)
    try:
        await _unless_left(request, run, run.ready(service.settings.heartbeat_seconds / 4))
    except BaseException:
        run.cancel()
        raise
    return run


async def whole(service: Service, request: Request, asked: Asked) -> tuple[Run, list[Completion]]:
    """Start a request, and wait for all of it. Raises as `start_stream`."""
    run = request.state.run = service.start(asked)
    try:
        return run, await _unless_left(request, run, run.completions())
    finally:
        run.cancel()


async def _unless_left(request: Request, run: Run, waiting: Coroutine[Any, Any, T]) -> T:
    """Wait for something, or raise ClientDisconnect if the client hangs up before."""
    done = asyncio.ensure_future(waiting)
    leaving = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({done, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if done.done():
            return done.result()
        run.left = True
        raise ClientDisconnect
    finally:
        leaving.cancel()
        done.cancel()


async def _left(request: Request) -> None:
    """Wait until the client hangs up. Its body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
