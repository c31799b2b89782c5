"""A route that streams an answer, and stops generating when the client leaves.

Needs fastapi and uvicorn. Try: curl -N localhost:8000/ask --json '{"prompt": "Tell me a story."}'
"""

import argparse
import logging
import sys
from collections.abc import AsyncIterator

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel
from starlette.types import Receive, Scope, Send

from mlx_gemma_mtp import Engine, Generation, MgmError, QueueFullError, SamplingParams, load

log = logging.getLogger("uvicorn.error")


class Question(BaseModel):
    prompt: str
    max_tokens: int = 1000


class Answer(StreamingResponse):
    """The answer, piece by piece."""

    def __init__(self, generation: Generation) -> None:
        super().__init__(pieces(generation), media_type="text/plain; charset=utf-8")
        self.generation = generation

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.generation.cancel()  # the client may have left; nothing happens after the end
            log.info("%r", self.generation)


async def pieces(generation: Generation) -> AsyncIterator[str]:
    try:
        async for chunk in generation:
            if chunk.kind == "answer":
                yield chunk.text
    except MgmError as error:  # too late for another status
        yield f"\n[{error}]"


def app_of(engine: Engine) -> FastAPI:
    app = FastAPI()

    @app.post("/ask")
    async def ask(question: Question) -> Answer:  # pyright: ignore[reportUnusedFunction]
        params = SamplingParams(max_tokens=question.max_tokens)
        return Answer(engine.stream(question.prompt, params, timeout=60))

    @app.get("/status")
    async def status() -> dict[str, int]:  # pyright: ignore[reportUnusedFunction]
        return engine.status._asdict()

    @app.exception_handler(MgmError)
    async def failed(_: Request, error: MgmError) -> JSONResponse:  # pyright: ignore[reportUnusedFunction]
        status = 503 if isinstance(error, QueueFullError) else 400
        return JSONResponse({"detail": str(error)}, status)

    return app


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8000, help="0 for any that is free")
    parser.add_argument("model", nargs="?", default="demo", help="a folder, a Hub name, or a size")
    given = parser.parse_args()
    try:
        with load(given.model, max_queue=100) as engine:
            uvicorn.run(app_of(engine), port=given.port, timeout_graceful_shutdown=1)
    except MgmError as error:
        sys.exit(str(error))
