"""The list of models, as OpenAI and Anthropic have it: one model, under each of its names.

Also says that it has no embeddings, which OpenAI's clients and Ollama's ask for.
"""

from __future__ import annotations

from datetime import UTC, datetime

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from mlx_gemma_mtp.server.failures import Failure
from mlx_gemma_mtp.server.service import Service


def time_of(seconds: float) -> str:
    """Return a time, in seconds since 1970, as Anthropic and Ollama write it."""
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")


async def models(request: Request) -> Response:
    """Answer /v1/models and /v1/models/NAME, for OpenAI's clients and Anthropic's."""
    service: Service = request.app.state.service
    name = request.path_params.get("name") or None
    service.check_model(name)
    found = [
        {
            "id": one,
            "object": "model",
            "created": service.created,
            "owned_by": "local",
            "context_length": service.engine.context,
            "max_model_len": service.engine.context,
            "type": "model",
            "display_name": one,
            "created_at": time_of(service.created),
        }
        for one in service.settings.served
        if name in (None, one)
    ]
    pages = {"has_more": False, "first_id": found[0]["id"], "last_id": found[-1]["id"]}
    return JSONResponse(found[0] if name else {"object": "list", "data": found, **pages})


async def embeddings(_: Request) -> Response:
    """Refuse /v1/embeddings, and Ollama's paths for them."""
    raise Failure("this model has no embeddings", 501)


routes = [
    Route("/v1/models", models),
    Route("/v1/models/{name:path}", models),
    Route("/v1/embeddings", embeddings, methods=["POST"]),
]
