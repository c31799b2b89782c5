"""Ollama's lists of models, which have the one that is served, and what cannot be done with it."""

from __future__ import annotations

import hashlib
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from mlx_gemma_mtp.server.body import Body, read
from mlx_gemma_mtp.server.failures import Failure
from mlx_gemma_mtp.server.protocols.models import embeddings, time_of
from mlx_gemma_mtp.server.service import Service

# The version of Ollama whose API this is: the first one with log-probabilities. Clients such as
# Copilot and Raycast refuse servers before 0.6.4.
VERSION = "0.12.11"

LATEST = ":latest"  # the tag of names that have none
FAMILY = "gemma4"
NEVER = "9999-12-31T23:59:59Z"  # when the model leaves the memory

# What would change the models of a machine.
REFUSED = ("blobs/{digest}", "copy", "create", "delete", "pull", "push")


class ShowBody(Body):
    """A body of /api/show. name: what old clients call the model."""

    model: str | None = None
    name: str | None = None


def name_of(service: Service, model: str | None) -> str | None:
    """Return the name of a model without the tag that Ollama's clients add."""
    if model is None or model in service.settings.served:
        return model
    return model.removesuffix(LATEST)


async def version(_: Request) -> Response:
    """Answer /api/version."""
    return JSONResponse({"version": VERSION})


async def tags(request: Request) -> Response:
    """Answer /api/tags: the models that can be asked for."""
    service: Service = request.app.state.service
    modified = {"modified_at": time_of(service.created)}
    return JSONResponse({"models": [one | modified for one in _models(service)]})


async def running(request: Request) -> Response:
    """Answer /api/ps: the models in memory."""
    service: Service = request.app.state.service
    about = {"expires_at": NEVER, "context_length": service.engine.context}
    about["size_vram"] = service.engine.status.memory_bytes
    found = _models(service) if service.engine.loaded else []
    return JSONResponse({"models": [one | about for one in found]})


async def show(request: Request) -> Response:
    """Answer /api/show."""
    service: Service = request.app.state.service
    body = await read(request, ShowBody)
    service.check_model(name_of(service, body.model or body.name))
    config, template = service.engine.config, service.template
    abilities = {"tools": "tools", "thinking": "enable_thinking"}
    return JSONResponse(
        {
            "modified_at": time_of(service.created),
            "modelfile": "",
            "parameters": "",
            "template": template,
            "details": _details(),
            "model_info": {
                "general.architecture": FAMILY,
                "general.basename": service.model,
                f"{FAMILY}.attention.head_count": config.num_attention_heads,
                f"{FAMILY}.block_count": len(config.layers),
                f"{FAMILY}.context_length": service.engine.context,
                f"{FAMILY}.embedding_length": config.hidden_size,
                f"{FAMILY}.vocab_size": config.vocab_size,
            },
            "capabilities": [
                "completion",
                *(name for name, variable in abilities.items() if variable in template),
            ],
        }
    )


async def refused(request: Request) -> Response:
    """Refuse what would change the models of this machine."""
    raise Failure(
        f"{request.url.path:.80} is not supported: the server has the model that it was started "
        "with, and mgm pull downloads others",
        501,
    )


def _models(service: Service) -> list[dict[str, Any]]:
    """Return what both lists have of each name. Clients tell models apart by their digest."""
    found = []
    for one in service.settings.served:
        name = one if ":" in one else one + LATEST
        found.append(
            {
                "name": name,
                "model": name,
                "size": service.engine.status.memory_bytes,
                "digest": hashlib.sha256(name.encode()).hexdigest(),
                "details": _details(),
            }
        )
    return found


def _details() -> dict[str, Any]:
    return {
        "parent_model": "",
        "format": "safetensors",
        "family": FAMILY,
        "families": [FAMILY],
        "parameter_size": "",
        "quantization_level": "",
    }


routes = [
    Route("/api/version", version),
    Route("/api/tags", tags),
    Route("/api/ps", running),
    Route("/api/show", show, methods=["POST"]),
    *(Route(f"/api/{one}", embeddings, methods=["POST"]) for one in ("embed", "embeddings")),
    *(Route(f"/api/{one}", refused, methods=["POST", "DELETE", "HEAD"]) for one in REFUSED),
]
