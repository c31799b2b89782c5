"""All protocols as one ASGI app. Knows none of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from mlx_gemma_mtp.errors import MgmError
from mlx_gemma_mtp.server.error_shapes import error_response
from mlx_gemma_mtp.server.exchange import LEFT, Exchange, Exchanges
from mlx_gemma_mtp.server.failures import Failure, failure_of
from mlx_gemma_mtp.server.guard import guards
from mlx_gemma_mtp.server.metrics import Metrics
from mlx_gemma_mtp.server.page import page
from mlx_gemma_mtp.server.protocols import (
    anthropic,
    chat,
    completions,
    llama,
    models,
    ollama,
    ollama_models,
    responses,
)
from mlx_gemma_mtp.server.service import Service


def app_of(service: Service, observers: Sequence[Callable[[Exchange], object]] = ()) -> Starlette:
    """Return the app that serves this engine. Its errors have the shape of the path's protocol.

    observers: called with every request that has ended, as a log is.
    """
    metrics = Metrics(service.engine, service.model)
    app = Starlette(
        routes=[
            *models.routes,
            *chat.routes,
            *completions.routes,
            *responses.routes,
            *anthropic.routes,
            *ollama.routes,
            *ollama_models.routes,
            *llama.routes,
            *metrics.routes,
            *page.routes,
        ],
        middleware=[Middleware(Exchanges, [metrics, *observers]), *guards(service.settings)],
        exception_handlers={
            ClientDisconnect: _left,
            HTTPException: _refused,
            Exception: _failed,
            Failure: _failed,
            MgmError: _failed,
        },
    )
    app.state.service = service
    return app


async def _failed(request: Request, error: Exception) -> Response:
    failure = request.state.failure = failure_of(error)
    return error_response(request.url.path, failure)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    what = f"{request.method} {request.url.path:.200}"
    path = f"/v1{request.url.path}"
    allowed = (error.headers or {}).get("Allow", "")
    if error.status_code == 404:
        message = f"{what} is not served here"
        if any(isinstance(one, Route) and one.path == path for one in request.app.routes):
            message += f", but {path} is: end the client's base URL with /v1"
    elif error.status_code == 405:
        message = f"{what} is not served here: use {allowed.replace(', ', ' or ')}"
    else:
        message = f"{what}: {error.detail}"
    kind = "not_found_error" if error.status_code == 404 else "invalid_request_error"
    response = error_response(request.url.path, Failure(message, error.status_code, kind))
    response.headers.update(error.headers or {})
    return response


async def _left(_: Request, __: Exception) -> Response:
    return Response(status_code=LEFT)
