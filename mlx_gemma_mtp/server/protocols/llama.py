"""llama.cpp's endpoints next to OpenAI's: what the server is, what its slots do, and tokens."""

from __future__ import annotations

import asyncio

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from mlx_gemma_mtp import __version__
from mlx_gemma_mtp.server.body import Body, read
from mlx_gemma_mtp.server.failures import of_field
from mlx_gemma_mtp.server.service import Service


class TokenizeBody(Body):
    """A body of /tokenize. add_special: put <bos> first. with_pieces: tokens with their texts."""

    content: str
    add_special: bool | None = None
    with_pieces: bool | None = None


class DetokenizeBody(Body):
    """A body of /detokenize."""

    tokens: list[int]


async def props(request: Request) -> Response:
    """Answer /props."""
    service: Service = request.app.state.service
    engine, template = service.engine, service.template
    calls = "tools" in template
    abilities = ("supports_tools", "supports_tool_calls", "supports_parallel_tool_calls")
    return JSONResponse(
        {
            "default_generation_settings": {
                "n_ctx": engine.context,
                "speculative": engine.has_drafter,
            },
            "total_slots": engine.max_batch,
            "model_alias": service.model,
            "modalities": {"vision": False, "audio": False},
            "chat_template": template,
            "chat_template_caps": {
                "supports_system_role": bool(template),
                **dict.fromkeys(abilities, calls),
            },
            "build_info": f"mlx-gemma-mtp {__version__}",
            "is_sleeping": not engine.loaded,
        }
    )


async def slots(request: Request) -> Response:
    """Answer /slots: which rows of the batch are at work. No prompts are shown."""
    service: Service = request.app.state.service
    engine, status = service.engine, service.engine.status
    same = {"n_ctx": engine.context, "speculative": engine.has_drafter}
    at_work = status.reading + status.decoding
    return JSONResponse(
        [
            {"id": number, "is_processing": number < at_work, **same}
            for number in range(engine.max_batch)
        ]
    )


async def tokenize(request: Request) -> Response:
    """Answer /tokenize."""
    service: Service = request.app.state.service
    body = await read(request, TokenizeBody)
    with of_field("content"):
        encode = service.raw_ids if body.add_special else service.encode
        tokens = await asyncio.to_thread(encode, body.content)
    if not body.with_pieces:
        return JSONResponse({"tokens": tokens})
    pieces = [{"id": token, "piece": _piece(service, token)} for token in tokens]
    return JSONResponse({"tokens": pieces})


async def detokenize(request: Request) -> Response:
    """Answer /detokenize."""
    service: Service = request.app.state.service
    body = await read(request, DetokenizeBody)
    with of_field("tokens"):
        return JSONResponse({"content": service.engine.decode(body.tokens)})


def _piece(service: Service, token: int) -> str | list[int]:
    """Return the text of a token; its bytes if they are a part of a character."""
    raw = service.bytes_of(token)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return [*raw]


routes = [
    Route("/props", props),
    Route("/slots", slots),
    Route("/tokenize", tokenize, methods=["POST"]),
    Route("/detokenize", detokenize, methods=["POST"]),
]
