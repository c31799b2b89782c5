"""The life of a server on uvicorn: it starts, gets signals, and ends. Knows nothing of the app."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from mlx_gemma_mtp.server.sockets import MAX_CONNECTIONS

GRACE_SECONDS = 5.0  # that answers have after SIGTERM
END_SECONDS = 2  # that cancelled ones have to reach their clients

# Clients keep connections for reuse. If the server closes one first, a request fails now and then.
KEEP_ALIVE_SECONDS = 75

PARENT_SECONDS = 0.5  # between two looks at whether the parent is there

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Server(uvicorn.Server):
    """Ends as people and service managers expect.

    Ctrl-C ends all answers within a round, and a second one the process at once. SIGTERM lets
    answers finish for some seconds.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        on_start: Callable[[], object],
        on_stop: Callable[[bool], object],
        cancel: Callable[[], object],
        at_once: int,
    ) -> None:
        """on_start: called when it listens. on_stop: when it is asked to stop, True if by Ctrl-C.

        cancel: ends all answers. All are called in the event loop. at_once: the exit code after a
        second signal.
        """
        super().__init__(
            uvicorn.Config(
                app,
                http="h11",  # one parser, wherever it runs
                loop="asyncio",
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                limit_concurrency=MAX_CONNECTIONS,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                backlog=MAX_CONNECTIONS,
            )
        )
        self._on_start, self._on_stop, self._cancel = on_start, on_stop, cancel
        self._at_once = at_once
        self.was_interrupted = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen."""
        await super().startup(sockets)
        self._on_start()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let answers end, and close all connections."""
        self._on_stop(self.was_interrupted)
        grace = 0.0 if self.was_interrupted else GRACE_SECONDS
        cancelling = asyncio.get_running_loop().call_later(grace, self._cancel)
        self.config.timeout_graceful_shutdown = int(grace) + END_SECONDS
        await super().shutdown(sockets)
        cancelling.cancel()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle signals within it."""
        before = {number: signal.signal(number, self.handle_exit) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Start to end; the second time, end the process at once."""
        if self.should_exit:
            os._exit(self._at_once)
        self.was_interrupted = sig == signal.SIGINT
        self.should_exit = True


@contextmanager
def leaving_at_sigterm() -> Iterator[None]:
    """Inside the block, SIGTERM ends the process with exit code 0, as it does a server."""

    def leave(number: int, frame: FrameType | None) -> None:
        os._exit(0)  # an exception could get lost in an import, and nothing is under way

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def stop_with_parent() -> None:
    """Have this process get a SIGTERM once the process that started it has ended."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
