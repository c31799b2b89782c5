"""OpenAI's chat completions, and the list of models."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Literal

from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from mlx_gemma_mtp.decode.params import MAX_LOGPROBS, SamplingParams
from mlx_gemma_mtp.engine.results import Completion, FinishReason, TokenLogprobs
from mlx_gemma_mtp.server.answers import EventStream, begin, compact, event, whole
from mlx_gemma_mtp.server.asked import Asked
from mlx_gemma_mtp.server.background import priority_of
from mlx_gemma_mtp.server.body import Body, read
from mlx_gemma_mtp.server.content import as_turns, text_of
from mlx_gemma_mtp.server.failures import Failure
from mlx_gemma_mtp.server.protocols.openai import (
    NAMES,
    Common,
    Frame,
    statistics,
    token_text,
    without_end,
)
from mlx_gemma_mtp.server.run import Run
from mlx_gemma_mtp.server.service import Service
from mlx_gemma_mtp.server.shapes import openai_error
from mlx_gemma_mtp.text.calls import ToolCall
from mlx_gemma_mtp.text.messages import Message

EFFORTS = {"none": 0, "minimal": 0, "low": 1024, "medium": 4096, "high": None, "xhigh": None}

DONE = "data: [DONE]\n\n"


class NamedFunction(Body):
    """A function by its name."""

    name: str


class NamedTool(Body):
    """The tool that must be called."""

    function: NamedFunction


class TemplateOptions(Body):
    """Of the chat template, as vLLM and llama.cpp take them."""

    enable_thinking: bool | None = None


class ChatBody(Common):
    """A body of /v1/chat/completions."""

    messages: list[dict[str, Any]]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_LOGPROBS)
    tools: list[dict[str, Any]] | None = None
    tool_choice: Literal["auto", "none", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    chat_template_kwargs: TemplateOptions | None = None
    thinking_budget: int | None = None

    def asked(self, service: Service) -> Asked:
        """Return it in the engine's terms. Raises Failure."""
        messages = as_turns(
            _message(one, f"messages.{number}") for number, one in enumerate(self.messages)
        )
        tools, given = self.tools or (), self.priority
        return Asked(
            "chat",
            [messages],
            self._params(service),
            self.model,
            tools,
            self.n or 1,
            one_call=self.parallel_tool_calls is False,
            priority=priority_of(messages, tools) if given is None else -given,
            stream=bool(self.stream),
            names=NAMES,
        )

    def _params(self, service: Service) -> SamplingParams:
        most = self.max_completion_tokens
        choice = self.tool_choice
        logprobs = None
        if self.logprobs or self.top_logprobs is not None:
            logprobs = self.top_logprobs or 0
        thinks, budget = self._thought()
        if thinks and budget is None:
            budget = service.settings.thinking_budget
        return self.params(
            max_tokens=self.max_tokens if most is None else most,
            tool_choice=choice.function.name if isinstance(choice, NamedTool) else choice,
            logprobs=logprobs,
            thinking=thinks,
            thinking_budget=service.settings.thinking_budget
            if thinks and budget is None
            else budget,
        )

    def _thought(self) -> tuple[bool, int | None]:
        """Whether to think, and at most how many tokens."""
        budget = self.thinking_budget
        if self.reasoning_effort is not None:
            effort = EFFORTS[self.reasoning_effort]
            return effort != 0, budget if effort is None or budget is not None else effort or None
        options = self.chat_template_kwargs
        return bool(options and options.enable_thinking), budget


def _message(given: Mapping[str, Any], at: str) -> Message:
    """Return a message with its content as text. Its roles and calls are checked later."""
    role = given.get("role")
    if not isinstance(role, str):
        raise Failure(f"{at}.role must be a string", field=f"{at}.role")
    return {**given, "content": text_of(given.get("content"), f"{at}.content")}


async def chat(request: Request) -> Response:
    """Answer /v1/chat/completions."""
    service: Service = request.app.state.service
    body = await read(request, ChatBody)
    asked = body.asked(service)
    if not asked.stream:
        _, completions = await whole(service, request, asked)
        frame = Frame(service, "chatcmpl", "chat.completion")
        choices = [_choice(service, number, one) for number, one in enumerate(completions)]
        return JSONResponse(frame(choices, **statistics(completions, asked.n)))
    run = await begin(service, request, asked)
    wants_usage = bool(body.stream_options and body.stream_options.include_usage)
    return EventStream(service, run, _events(service, run, wants_usage), _failed)


def _choice(service: Service, number: int, completion: Completion) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": completion.text}
    if completion.thought:
        message["reasoning_content"] = completion.thought
    if completion.tool_calls:
        message["content"] = completion.text or None
        message["tool_calls"] = [_call(one) for one in completion.tool_calls]
    return {
        "index": number,
        "message": message,
        "logprobs": _logprobs(service, completion.logprobs),
        "finish_reason": _finish(completion.finish_reason, bool(completion.tool_calls)),
    }


def _call(call: ToolCall) -> dict[str, Any]:
    arguments = compact(call.function["arguments"])
    return {
        "id": call.id,
        "type": "function",
        "function": {"name": call.name, "arguments": arguments},
    }


def _finish(reason: FinishReason, has_calls: bool) -> str:
    if has_calls and reason != "length":
        return "tool_calls"
    return "stop" if reason == "cancelled" else reason


def _logprobs(service: Service, given: Sequence[TokenLogprobs] | None) -> dict[str, Any] | None:
    found = without_end(given, service)
    if found is None:
        return None

    def entry(token: int, logprob: float) -> dict[str, Any]:
        text, raw = token_text(service, token)
        return {"token": text, "logprob": logprob, "bytes": raw}

    content = [
        {**entry(one.token, one.logprob), "top_logprobs": [entry(*top) for top in one.top]}
        for one in found
    ]
    return {"content": content, "refusal": None}


async def _events(service: Service, run: Run, wants_usage: bool) -> AsyncIterator[str]:
    """Yield the events of all completions, each with a first and a last one of its own."""
    frame = Frame(service, "chatcmpl", "chat.completion.chunk")
    calls = [0] * len(run.generations)
    opened: set[int] = set()

    def choice(number: int, delta: Mapping[str, Any], **others: Any) -> str:
        shared = {"index": number, "delta": delta, "logprobs": None, "finish_reason": None}
        return event(frame([{**shared, **others}]))

    async for number, chunk in run.parts():
        if number not in opened:
            opened.add(number)
            yield choice(number, {"role": "assistant", "content": ""})
        logprobs = _logprobs(service, chunk.logprobs)
        if chunk.kind == "answer" and (chunk.text or (logprobs and logprobs["content"])):
            yield choice(number, {"content": chunk.text}, logprobs=logprobs)
        elif chunk.kind == "thought" and chunk.text:
            yield choice(number, {"reasoning_content": chunk.text})
        if chunk.tool_call is not None:
            delta = {"index": calls[number], **_call(chunk.tool_call)}
            calls[number] += 1
            yield choice(number, {"tool_calls": [delta]})
        if chunk.finish_reason is not None:
            finish = _finish(chunk.finish_reason, calls[number] > 0)
            yield choice(number, {}, finish_reason=finish)
    completions = [one.result() for one in run.generations]
    if wants_usage:
        yield event(frame([], **statistics(completions, run.asked.n)))
    yield DONE


def _failed(failure: Failure) -> str:
    return event(openai_error(failure)) + DONE


async def models(request: Request) -> Response:
    """Answer /v1/models and /v1/models/NAME."""
    service: Service = request.app.state.service
    name = request.path_params.get("name")
    service.check_model(name)
    found = [
        {
            "id": one,
            "object": "model",
            "created": service.created,
            "owned_by": "local",
            "context_length": service.context,
            "max_model_len": service.context,
        }
        for one in service.settings.served
        if name in (None, one)
    ]
    return JSONResponse(found[0] if name else {"object": "list", "data": found})


routes = [
    Route("/v1/chat/completions", chat, methods=["POST"]),
    Route("/v1/models", models),
    Route("/v1/models/{name:path}", models),
]
