"""Who may use the server: names of hosts, origins of web pages, the key, and the size of bodies.

Pure ASGI, around everything else. Knows nothing of models and protocols.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import socket
from contextlib import suppress
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mlx_gemma_mtp.server.error_shapes import error_response
from mlx_gemma_mtp.server.failures import Failure
from mlx_gemma_mtp.server.settings import Settings

BODY_SECONDS = 30.0  # the longest silence in the middle of a body

# Paths that need no key: health checks have none, and the page asks for it.
PUBLIC = ("/", "/health")
PUBLIC_FOLDER = "/page/"

# Names that no DNS server on the internet can give out, so that a web page cannot use them for
# DNS rebinding. Containers reach the machine they run on by the last two.
LOCAL_NAMES = ("localhost", "host.docker.internal", "host.containers.internal")


def guards(settings: Settings) -> list[Middleware]:
    """Return all guards, the outermost first."""
    origins = settings.origins
    found = [Middleware(KnownCallers, settings)]
    if origins:  # outside of the key: a browser asks first whether it may send one
        found.append(
            Middleware(
                CORSMiddleware,
                origins,
                allow_methods="*",
                allow_headers="*",
                allow_private_network=True,
            )
        )
    if settings.api_key is not None:
        found.append(Middleware(NeedsKey, settings.api_key))
    return [*found, Middleware(BodyLimit, settings.body_limit)]


class KnownCallers:
    """Refuses requests to names of others, and those of web pages that are not named.

    A page of another site can send requests to this machine, and by DNS rebinding it can read the
    answers: then the Host header has the name of that site.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._names = {*LOCAL_NAMES, *(one.lower() for one in (settings.host, *settings.hosts))}
        self._local = settings.local
        if not self._local:
            own = socket.gethostname().lower()
            self._names |= {own, f"{own.partition('.')[0]}.local"}
        self._origins = settings.origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (failure := self._check(Headers(scope=scope))):
            await error_response(scope["path"], failure)(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _check(self, headers: Headers) -> Failure | None:
        host, origin = headers.get("host", ""), headers.get("origin")
        if not self._is_known(host):
            return _forbidden(
                f"the host name {_name(host)[:100]!r} is not known here: start mgm serve with "
                "--allow-host NAME"
            )
        if origin is None or {origin, "*"} & {*self._origins}:  # without one, it is not a page
            return None
        if _netloc(origin) == host.lower():
            return None
        return _forbidden(
            f"pages from {origin[:100]} may not use this server: start mgm serve with "
            f"--allow-origin {origin[:100]}"
        )

    def _is_known(self, host: str) -> bool:
        name = _name(host)
        if name in self._names or name.endswith(".localhost"):
            return True
        with suppress(ValueError):
            address = ipaddress.ip_address(name)
            return address.is_loopback or not self._local  # DNS rebinding needs a name
        return False


def _forbidden(message: str) -> Failure:
    return Failure(message, 403, "permission_error", code="forbidden")


def _name(host: str) -> str:
    """Return a Host header without its port, in lower case; "" if it is not valid."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _netloc(origin: str) -> str | None:
    """Return the host and port of an origin, in lower case; None if it is not valid."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return None


class NeedsKey:
    """Refuses requests without the key: as `Authorization: Bearer` or `x-api-key`."""

    def __init__(self, app: ASGIApp, key: str) -> None:
        self._app, self._key = app, key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        public = path in PUBLIC or path.startswith(PUBLIC_FOLDER)
        if public or scope["type"] != "http" or self._has_key(scope):
            await self._app(scope, receive, send)
            return
        failure = Failure(
            "this server needs its API key, as Authorization: Bearer KEY or x-api-key: KEY",
            401,
            "authentication_error",
            code="invalid_api_key",
        )
        response = error_response(scope["path"], failure)
        response.headers["WWW-Authenticate"] = "Bearer"
        await response(scope, receive, send)

    def _has_key(self, scope: Scope) -> bool:
        headers = Headers(scope=scope)
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        given = [headers.get("x-api-key", "")]
        if scheme.lower() == "bearer":
            given.append(bearer.strip())
        return any(hmac.compare_digest(one.encode(), self._key) for one in given)


class BodyLimit:
    """Ends requests whose body is too large or stops coming, also without a Content-Length.

    Raises a Failure out of `receive`, which the app answers as any other.
    """

    def __init__(self, app: ASGIApp, limit: int, seconds: float = BODY_SECONDS) -> None:
        """limit: in bytes. seconds: the longest silence in the middle of a body."""
        self._app, self._limit, self._seconds = app, limit, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = Headers(scope=scope).get("content-length", "0")
        size, complete = 0, False

        async def limited() -> Message:
            nonlocal size, complete
            if complete:  # the next message is that the client has left
                return await receive()
            if declared.isdecimal() and int(declared) > self._limit:
                raise self._too_large()
            try:
                async with asyncio.timeout(self._seconds):
                    message = await receive()
            except TimeoutError:
                raise Failure("the rest of the request did not come", 408) from None
            size += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if size > self._limit:
                raise self._too_large()
            return message

        await self._app(scope, limited, send)

    def _too_large(self) -> Failure:
        return Failure(
            f"the request is larger than {self._limit:,} bytes: shorten it, or start mgm serve "
            "with a larger --max-body",
            413,
            code="request_too_large",
        )
