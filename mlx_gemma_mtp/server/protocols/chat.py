"""OpenAI's chat completions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from mlx_gemma_mtp.decode.params import MAX_LOGPROBS
from mlx_gemma_mtp.engine.results import Chunk, Completion
from mlx_gemma_mtp.server.answers import compact, start_stream, whole
from mlx_gemma_mtp.server.asked import Asked, schemas_of
from mlx_gemma_mtp.server.background import priority_of
from mlx_gemma_mtp.server.body import Body, read, refused
from mlx_gemma_mtp.server.content import as_turns, checked, content_of, text_of
from mlx_gemma_mtp.server.failures import Failure
from mlx_gemma_mtp.server.logprobs import logprob_entries, reported
from mlx_gemma_mtp.server.protocols.choices import (
    Choice,
    ChoicesBody,
    Frame,
    choice_stream,
    finish_of,
)
from mlx_gemma_mtp.server.protocols.openai import NAMES, choice_of, statistics
from mlx_gemma_mtp.server.run import Run
from mlx_gemma_mtp.server.service import Service
from mlx_gemma_mtp.server.thinking import Effort, thinking_of
from mlx_gemma_mtp.text.call_stream import CallDelta
from mlx_gemma_mtp.text.calls import ToolCall
from mlx_gemma_mtp.text.messages import Message

# What a model is shown of a message. Clients send back all that an answer had.
KEPT = ("role", "tool_calls", "tool_call_id", "name", "reasoning", "reasoning_content")

FIELDS = NAMES | {"prompt": "messages"}

OldTools = Annotated[Any, refused("not supported any more; give tools and tool_choice")]


class TemplateOptions(Body):
    """Options of the chat template, as vLLM and llama.cpp take them."""

    enable_thinking: bool | None = None


class ChatBody(ChoicesBody):
    """A body of /v1/chat/completions."""

    messages: list[dict[str, Any]]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_LOGPROBS)
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: Effort | None = None
    chat_template_kwargs: TemplateOptions | None = None
    thinking_budget: int | None = None
    modalities: list[str] | None = None
    functions: OldTools = None
    function_call: OldTools = None

    def asked(self, service: Service) -> Asked:
        """Return it in the engine's terms. Raises Failure."""
        self._check()
        places = [f"messages.{number}" for number in range(len(self.messages))]
        given = [*map(_message, self.messages, places)]
        messages, schemas = as_turns(checked(given, "messages", places)), schemas_of(self.tools)
        most, options, fields = self.max_completion_tokens, self.chat_template_kwargs, FIELDS
        if most is not None:
            fields = FIELDS | {"max_tokens": "max_completion_tokens"}
        return Asked(
            "chat",
            [messages],
            self.params(
                fields,
                self.max_tokens if most is None else most,
                tool_choice=choice_of(self.tool_choice),
                logprobs=(self.top_logprobs or 0) if self._wants_logprobs else None,
                **thinking_of(
                    service,
                    self.reasoning_effort,
                    asked=bool(options and options.enable_thinking),
                    budget=self.thinking_budget,
                ),
            ),
            self.model,
            schemas,
            self.n or 1,
            one_call=self.parallel_tool_calls is False,
            priority=self.engine_priority(priority_of(messages, schemas)),
            stream=bool(self.stream),
            names=fields,
        )

    @property
    def _wants_logprobs(self) -> bool:
        return bool(self.logprobs) or self.top_logprobs is not None

    def _check(self) -> None:
        """Refuse what would silently be left out."""
        for number, tool in enumerate(self.tools or ()):
            if (kind := tool.get("type", "function")) != "function":
                field = f"tools.{number}.type"
                raise Failure(f"{field}: {kind!r:.40} is not supported, only function", field=field)
        if not {*(self.modalities or ())} <= {"text"}:
            raise Failure("modalities: only text is supported", field="modalities")


def _message(given: Mapping[str, Any], at: str) -> Message:
    """Return a message with its content as text. Its calls are checked later."""
    role, called = given.get("role"), given.get("function_call")
    if not isinstance(role, str):
        raise Failure(f"{at}.role must be a string", field=f"{at}.role")
    if role == "function" or called:
        new = "the role tool, with a tool_call_id" if role == "function" else "tool_calls"
        raise Failure(f"{at}: functions are an old form: give {new}", field=at)
    content = content_of(given, at) + text_of(given.get("refusal"), f"{at}.refusal")
    shown = {name: given[name] for name in KEPT if given.get(name) is not None}
    return {**shown, "content": content}


async def chat(request: Request) -> Response:
    """Answer /v1/chat/completions."""
    service: Service = request.app.state.service
    body = await read(request, ChatBody)
    asked = body.asked(service)
    if not asked.stream:
        run, completions = await whole(service, request, asked)
        frame = Frame(service, "chatcmpl", "chat.completion")
        choices = [_choice(service, run, number, one) for number, one in enumerate(completions)]
        return JSONResponse(frame(choices, **statistics(completions, asked.n)))
    run = await start_stream(service, request, asked)
    frame = Frame(service, "chatcmpl", "chat.completion.chunk")
    choices_of = _Deltas(service, asked).choices
    return choice_stream(service, run, frame, choices_of, **body.wanted)


def _choice(service: Service, run: Run, number: int, completion: Completion) -> Choice:
    calls = [one for one in completion.tool_calls if one.name]
    message: dict[str, Any] = {"role": "assistant", "content": completion.text, "refusal": None}
    if completion.thought:
        message["reasoning_content"] = completion.thought
    if calls:
        message["content"] = completion.text or None
        message["tool_calls"] = [_call(one) for one in calls]
    return {
        "index": number,
        "message": message,
        "logprobs": _logprobs(service, run.asked, run.chunks(number, "answer")),
        "finish_reason": finish_of(completion.finish_reason, has_calls=bool(calls)),
    }


def _call(call: ToolCall) -> dict[str, Any]:
    arguments = compact(call.function["arguments"])  # as in a stream
    function = {"name": call.name, "arguments": arguments}
    return {"id": call.id, "type": "function", "function": function}


def _call_delta(delta: CallDelta) -> dict[str, Any]:
    function = {"arguments": delta.arguments}
    if delta.name is None:
        return {"index": delta.index, "function": function}
    return {
        "index": delta.index,
        "id": delta.id,
        "type": "function",
        "function": {"name": delta.name, **function},
    }


def _logprobs(service: Service, asked: Asked, chunks: Sequence[Chunk]) -> dict[str, Any] | None:
    """Return the log-probabilities of an answer; None if they are not asked for."""
    if asked.params.logprobs is None:
        return None
    found = [one for chunk in chunks for one in reported(service, asked, chunk)]
    return {"content": logprob_entries(service, found), "refusal": None}


class _Deltas:
    """Makes the choices of a stream: a first one of each completion, its pieces, and a last one."""

    def __init__(self, service: Service, asked: Asked) -> None:
        self._service = service
        self._asked = asked
        self._opened: set[int] = set()
        self._calls: Counter[int] = Counter()

    def choices(self, number: int, chunk: Chunk) -> Iterator[Choice]:
        """Yield those of one chunk of the completion of this number."""

        def choice(delta: Mapping[str, Any], **others: Any) -> Choice:
            empty = {"logprobs": None, "finish_reason": None}
            return {"index": number, "delta": delta, **empty, **others}

        if number not in self._opened:
            self._opened.add(number)
            yield choice({"role": "assistant", "content": ""})
        if chunk.kind == "answer":
            logprobs = _logprobs(self._service, self._asked, [chunk])
            if chunk.text or (logprobs and logprobs["content"]):
                yield choice({"content": chunk.text}, logprobs=logprobs)
        elif chunk.kind == "thought" and chunk.text:
            yield choice({"reasoning_content": chunk.text})
        if chunk.call_deltas:
            self._calls[number] += sum(one.done for one in chunk.call_deltas)
            yield choice({"tool_calls": [*map(_call_delta, chunk.call_deltas)]})
        if chunk.finish_reason is not None:
            finish = finish_of(chunk.finish_reason, has_calls=self._calls[number] > 0)
            yield choice({}, finish_reason=finish)


routes = [Route("/v1/chat/completions", chat, methods=["POST"])]
