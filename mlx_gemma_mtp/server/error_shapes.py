"""A failure as the clients of each protocol read it."""

from __future__ import annotations

from typing import Any

from starlette.responses import JSONResponse

from mlx_gemma_mtp.server.failures import Failure

ANTHROPIC_KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    500: "api_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def openai_error(failure: Failure) -> dict[str, Any]:
    """Return the body of an error as OpenAI's clients read it."""
    fields = {"type": failure.kind, "param": failure.field, "code": failure.code}
    return {"error": {"message": failure.message, **fields}}


def anthropic_error(failure: Failure) -> dict[str, Any]:
    """Return the body of an error as Anthropic's clients read it."""
    kind = ANTHROPIC_KINDS.get(failure.status, "invalid_request_error")
    return {"type": "error", "error": {"type": kind, "message": failure.message}}


def ollama_error(failure: Failure) -> dict[str, Any]:
    """Return the body of an error as Ollama's clients read it."""
    return {"error": failure.message}


def error_response(path: str, failure: Failure) -> JSONResponse:
    """Return the answer to a request of this path that failed."""
    shape = openai_error
    if path.startswith("/v1/messages"):
        shape = anthropic_error
    elif path.startswith("/api/"):
        shape = ollama_error
    retry = failure.retry_after
    headers = None if retry is None else {"Retry-After": str(retry)}
    return JSONResponse(shape(failure), failure.status, headers)
