"""Ollama's chats and completions, as lines of JSON or in one answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Literal

from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from mlx_gemma_mtp.decode.params import MAX_LOGPROBS, SamplingParams
from mlx_gemma_mtp.engine.results import Chunk, Completion
from mlx_gemma_mtp.server.answers import EventStream, compact, start_stream, whole
from mlx_gemma_mtp.server.asked import ANY_OBJECT, Asked, params_of, schemas_of
from mlx_gemma_mtp.server.background import priority_of
from mlx_gemma_mtp.server.body import Body, read
from mlx_gemma_mtp.server.content import as_turns, checked, content_of
from mlx_gemma_mtp.server.error_shapes import ollama_error
from mlx_gemma_mtp.server.failures import Failure
from mlx_gemma_mtp.server.logprobs import logprob_entries, reported
from mlx_gemma_mtp.server.protocols.models import time_of
from mlx_gemma_mtp.server.protocols.ollama_models import name_of
from mlx_gemma_mtp.server.run import Run
from mlx_gemma_mtp.server.service import Service
from mlx_gemma_mtp.server.thinking import thinking_of
from mlx_gemma_mtp.text.calls import ToolCall
from mlx_gemma_mtp.text.messages import Message, Prompt

LINES = "application/x-ndjson"

# What Ollama calls the settings of SamplingParams; the others have the same name in its options.
RENAMED = {"max_tokens": "num_predict", "repetition_penalty": "repeat_penalty"}
PENALTIES = ("presence_penalty", "frequency_penalty")
SAME = ("temperature", "top_k", "top_p", "min_p", "seed", "stop", *PENALTIES)
NAMES = {name: f"options.{RENAMED.get(name, name)}" for name in (*RENAMED, *SAME)}
NAMES |= {"json_schema": "format", "logprobs": "top_logprobs"}

# What a model is shown of a message besides its role and content, and the engine's names of it.
KEPT = {
    "tool_calls": "tool_calls",
    "tool_call_id": "tool_call_id",
    "tool_name": "name",
    "thinking": "reasoning",
}


class Options(Body):
    """Settings of an answer. Those of the model, such as num_ctx, are the server's."""

    temperature: float | None = None
    top_k: int | None = Field(default=None, ge=-1)
    top_p: float | None = None
    min_p: float | None = None
    seed: int | None = None
    num_predict: int | None = None
    stop: str | list[str] | None = None
    repeat_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None


class Common(Body):
    """The fields that chats and completions share. keep_alive is ignored: the server decides."""

    model: str | None = None
    stream: bool | None = None
    options: Options | None = None
    format: Literal["", "json"] | dict[str, Any] | None = None
    think: bool | Literal["low", "medium", "high", "max"] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_LOGPROBS)

    def params(self, service: Service) -> SamplingParams:
        """Return the settings as the engine takes them. Raises Failure."""
        options = self.options or Options()
        given = {name: getattr(options, name) for name in SAME}
        given |= {name: getattr(options, other) for name, other in RENAMED.items()}
        if (most := options.num_predict) is not None and most < 0:  # until the context is full
            given["max_tokens"] = None
        given["stop"] = options.stop or None
        given["json_schema"] = ANY_OBJECT if self.format == "json" else self.format or None
        if self.logprobs:
            given["logprobs"] = self.top_logprobs or 0
        effort = self.think if isinstance(self.think, str) else None
        thought = thinking_of(service, effort, asked=bool(self.think), budget=None)
        return params_of(NAMES, **given, **thought)


class ChatBody(Common):
    """A body of /api/chat. Without messages, it only asks for the model to be loaded."""

    messages: list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None


class GenerateBody(Common):
    """A body of /api/generate. Without a prompt, it only asks for the model to be loaded."""

    prompt: str | None = None
    system: str | None = None
    suffix: str | None = None
    template: str | None = None
    raw: bool | None = None
    images: list[Any] | None = None

    def to_prompt(self, service: Service) -> Prompt:
        """Return its prompt. Raises a Failure for what is not supported."""
        wrong = {
            "suffix": self.suffix and "suffix is not supported: the model only writes what follows",
            "template": self.template
            and "template is not supported: give the whole prompt, with raw",
            "images": self.images and "images are not supported, only text",
        }
        for field, message in wrong.items():
            if message:
                raise Failure(message, field=field)
        if self.raw:
            return service.raw_ids(self.prompt or "")
        return as_turns(
            [
                {"role": "system", "content": self.system or ""},
                {"role": "user", "content": self.prompt or ""},
            ]
        )


def _message(given: Mapping[str, Any], at: str) -> Message:
    """Return a message as the engine takes it. Its calls are checked later."""
    if given.get("images"):
        field = f"{at}.images"
        raise Failure(f"{field}: images are not supported, only text", field=field)
    found = {new: given[old] for old, new in KEPT.items() if given.get(old)}
    return {"role": given.get("role"), "content": content_of(given, at), **found}


async def chat(request: Request) -> Response:
    """Answer /api/chat."""
    service: Service = request.app.state.service
    body = await read(request, ChatBody)
    fields = [f"messages.{number}" for number in range(len(body.messages or ()))]
    messages = [*map(_message, body.messages or (), fields)]
    if messages:
        messages = as_turns(checked(messages, "messages", fields))
    schemas = schemas_of(body.tools)
    asked = Asked(
        "ollama",
        [messages],
        body.params(service),
        name_of(service, body.model),
        schemas,
        priority=priority_of(messages, schemas),
        stream=body.stream is not False,
        names=NAMES | {"prompt": "messages"},
    )
    return await _answer(request, service, asked, _Frame(service, body.model, chats=True))


async def generate(request: Request) -> Response:
    """Answer /api/generate."""
    service: Service = request.app.state.service
    body = await read(request, GenerateBody)
    prompt = await asyncio.to_thread(body.to_prompt, service) if body.prompt else []
    asked = Asked(
        "ollama",
        [prompt],
        body.params(service),
        name_of(service, body.model),
        stream=body.stream is not False,
        names=NAMES | {"prompt": "prompt"},
    )
    return await _answer(request, service, asked, _Frame(service, body.model, chats=False))


class _Frame:
    """What is the same in all parts of an answer."""

    def __init__(self, service: Service, model: str | None, *, chats: bool) -> None:
        """model: as the client names it. chats: for /api/chat, else for /api/generate."""
        self._model = model or service.model
        self._chats = chats

    def __call__(
        self, text: str = "", thought: str = "", calls: Sequence[ToolCall] = (), **others: Any
    ) -> dict[str, Any]:
        said: dict[str, Any] = {"thinking": thought} if thought else {}
        if self._chats:
            said = {"role": "assistant", "content": text, **said}
            if calls:
                said["tool_calls"] = [{"id": one.id, "function": one.function} for one in calls]
            said = {"message": said}
        else:
            said["response"] = text
        same = {"model": self._model, "created_at": time_of(time.time())}
        return {**same, **said, "done": False, **others}


async def _answer(request: Request, service: Service, asked: Asked, frame: _Frame) -> Response:
    if not asked.prompts[0]:
        service.check_model(asked.model)
        return JSONResponse(frame(done=True, done_reason="load"))
    if not asked.stream:
        run, [completion] = await whole(service, request, asked)
        calls = [one for one in completion.tool_calls if one.name]
        found = _logprobs(service, asked, run.chunks(0, "answer"))
        said = frame(completion.text, completion.thought, calls, **found, **_end(completion))
        return JSONResponse(said)
    run = await start_stream(service, request, asked)
    return EventStream(
        service,
        run,
        _lines(service, run, frame),
        lambda failure: _line(ollama_error(failure)),
        heartbeat=lambda: _line(frame()),
        media_type=LINES,
    )


async def _lines(service: Service, run: Run, frame: _Frame) -> AsyncIterator[str]:
    async for _, chunk in run.parts():
        answer, thought = (
            chunk.text if chunk.kind == kind else "" for kind in ("answer", "thought")
        )
        call = chunk.tool_call
        calls = [call] if call is not None and call.name else []
        found = _logprobs(service, run.asked, [chunk] if chunk.kind == "answer" else [])
        if answer or thought or calls or found:
            yield _line(frame(answer, thought, calls, **found))
    [completion] = run.results()
    yield _line(frame(**_end(completion)))


def _line(data: Mapping[str, Any]) -> str:
    return f"{compact(data)}\n"


def _logprobs(service: Service, asked: Asked, chunks: Sequence[Chunk]) -> dict[str, Any]:
    """Return the field of the log-probabilities of an answer; none if there are none."""
    found = [one for chunk in chunks for one in reported(service, asked, chunk)]
    return {"logprobs": logprob_entries(service, found)} if found else {}


def _end(completion: Completion) -> dict[str, Any]:
    """Return the fields that end an answer. Durations are nanoseconds."""
    stats = completion.stats
    seconds = (stats.queue_seconds, stats.first_token_seconds, stats.decode_seconds)
    return {
        "done": True,
        "done_reason": "length" if completion.finish_reason == "length" else "stop",
        "total_duration": _nanoseconds(sum(seconds)),
        "load_duration": _nanoseconds(seconds[0]),
        "prompt_eval_count": stats.prompt_tokens,
        "prompt_eval_duration": _nanoseconds(seconds[1]),
        "eval_count": stats.generated_tokens,
        "eval_duration": _nanoseconds(seconds[2]),
    }


def _nanoseconds(seconds: float) -> int:
    return round(1e9 * seconds)


routes = [
    Route("/api/chat", chat, methods=["POST"]),
    Route("/api/generate", generate, methods=["POST"]),
]
