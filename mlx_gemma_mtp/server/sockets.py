"""The sockets of a server: bound before a model is loaded, open to clients once it is there."""

from __future__ import annotations

import errno
import resource
import socket
from collections.abc import Sequence
from ipaddress import ip_address
from typing import Any

from mlx_gemma_mtp.errors import MgmError, UsageError

MAX_CONNECTIONS = 1000  # at once; others get a 503
OPEN_FILES = 4096  # macOS starts processes with 256

# A name may have addresses of a kind that is turned off here, such as IPv6.
MISSING = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


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
