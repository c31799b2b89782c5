"""Sockets, signals and the end of a server, on uvicorn. Knows nothing of what the app does."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from ipaddress import ip_address
from types import FrameType
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from mlx_gemma_mtp.errors import MgmError, UsageError

GRACE_SECONDS = 5.0  # that answers have after SIGTERM
END_SECONDS = 2  # that cancelled ones have to reach their clients

# Clients keep connections for reuse. If the server closes one first, a request fails now and then.
KEEP_ALIVE_SECONDS = 75
MAX_CONNECTIONS = 1000  # at once; others get a 503
OPEN_FILES = 4096  # macOS starts processes with 256

PARENT_SECONDS = 0.5  # between two looks at whether the parent is there

# A name may have addresses of a kind that is turned off here, such as IPv6.
MISSING = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def bind(host: str, port: int) -> list[socket.socket]:
    """Return sockets at all addresses of a host, and one port. They don't listen yet.

    port: 0 for any that is free. Raises UsageError, or MgmError for a port that is taken.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError):
        raise UsageError(f"--host {host} is not a name or an address of this machine") from None
    sockets: list[socket.socket] = []
    failed: OSError | None = None
    for family, _, _, _, (address, _, *scope) in found:
        one_port = port_of(sockets) if sockets else port
        try:
            sockets.append(_bound(family, (address, one_port, *scope)))
        except OSError as error:
            failed = error
            if error.errno not in MISSING:
                break
    if failed is not None and not (sockets and failed.errno in MISSING):
        for one in sockets:
            one.close()
        raise _not_bound(host, port, failed)
    return sockets


def _bound(family: int, address: tuple[Any, ...]) -> socket.socket:
    one = socket.socket(family, socket.SOCK_STREAM)
    try:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        one.bind(address)
    except OSError:
        one.close()
        raise
    return one


def listen(host: str, sockets: Sequence[socket.socket]) -> None:
    """Let clients connect. Raises MgmError if another program has taken the port meanwhile."""
    try:
        for one in sockets:
            one.listen(MAX_CONNECTIONS)
    except OSError as error:
        raise _not_bound(host, port_of(sockets), error) from None


def allow_connections() -> None:
    """Raise the limit of open files of this process, if it is lower than connections need."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def stop_with_parent() -> None:
    """Have this process get a SIGTERM once the process that started it has ended."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def port_of(sockets: Sequence[socket.socket]) -> int:
    """Return the port of bound sockets."""
    return int(sockets[0].getsockname()[1])


def only_local(sockets: Sequence[socket.socket]) -> bool:
    """Return True if only this machine reaches these sockets."""
    return all(ip_address(one.getsockname()[0]).is_loopback for one in sockets)


def _not_bound(host: str, port: int, error: OSError) -> MgmError:
    if error.errno == errno.EADDRINUSE:
        return MgmError(
            f"port {port} of {host} is in use: stop the program that uses it, or choose another "
            "port with --port, 0 for any that is free"
        )
    if error.errno == errno.EACCES:
        return UsageError(f"port {port} is reserved for the system: choose one from 1024 on")
    if error.errno in MISSING:
        return UsageError(f"--host {host} is not an address of this machine")
    return MgmError(f"port {port} of {host} cannot be opened: {error.strerror}")


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
