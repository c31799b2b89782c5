"""Anthropic's messages, and how many tokens they have."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Literal

from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from mlx_gemma_mtp.decode.params import SamplingParams
from mlx_gemma_mtp.engine.results import Completion
from mlx_gemma_mtp.server.answers import EventStream, event, start_stream, whole
from mlx_gemma_mtp.server.asked import Asked, params_of
from mlx_gemma_mtp.server.background import priority_of
from mlx_gemma_mtp.server.body import Body, read
from mlx_gemma_mtp.server.error_shapes import anthropic_error
from mlx_gemma_mtp.server.failures import Failure
from mlx_gemma_mtp.server.protocols.anthropic_answer import (
    Blocks,
    blocks_of,
    first_usage,
    reason_of,
    usage_of,
)
from mlx_gemma_mtp.server.protocols.anthropic_messages import Content, Turn, tools_of, turns_of
from mlx_gemma_mtp.server.run import Run
from mlx_gemma_mtp.server.service import Service
from mlx_gemma_mtp.server.thinking import Effort, thinking_of
from mlx_gemma_mtp.server.usage import statistics_of
from mlx_gemma_mtp.text.calls import new_id

CHOICES = {"auto": "auto", "any": "required", "none": "none"}  # Anthropic's, and the engine's

NAMES = {
    "max_tokens": "max_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "seed": "seed",
    "stop": "stop_sequences",
    "json_schema": "output_config.format.schema",
    "thinking_budget": "thinking.budget_tokens",
    "tool_choice": "tool_choice",
    "prompt": "messages",
}


class Thinking(Body):
    """Whether to think: with all types but "disabled". Only "enabled" has a budget."""

    type: str
    budget_tokens: int | None = Field(default=None, ge=0)


class ToolChoice(Body):
    """Which tools are called."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Format(Body):
    """The form of the answer."""

    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(Body):
    """How long to think, and the form of the answer."""

    effort: Effort | None = None
    format: Format | None = None


class MessagesBody(Body):
    """A body of /v1/messages and /v1/messages/count_tokens.

    output_format: an older name of the format in output_config. draft, seed: as in OpenAI's chat
    completions here.
    """

    model: str | None = None
    messages: list[Turn] = Field(min_length=1)
    system: Content | None = None
    max_tokens: int | None = None
    stream: bool | None = None
    temperature: float | None = Field(default=None, ge=0, le=1)
    top_p: float | None = None
    top_k: int | None = None
    stop_sequences: list[str] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    output_format: Format | None = None
    draft: bool | None = None
    seed: int | None = None

    @property
    def thinks(self) -> bool:
        """True if a thought is asked for."""
        return self.thinking is not None and self.thinking.type != "disabled"

    def asked(self, service: Service) -> Asked:
        """Return it in the engine's terms. Raises Failure."""
        messages, tools = turns_of(self.system, self.messages), tools_of(self.tools or ())
        choice = self.tool_choice
        return Asked(
            "messages",
            [messages],
            self._params(service),
            self.model,
            tools,
            one_call=bool(choice and choice.disable_parallel_tool_use),
            priority=priority_of(messages, tools),
            stream=bool(self.stream),
            names=NAMES,
        )

    def _params(self, service: Service) -> SamplingParams:
        form = self.output_format
        if self.output_config and self.output_config.format:
            form = self.output_config.format
        return params_of(
            NAMES,
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            seed=self.seed,
            stop=self.stop_sequences,
            num_draft_tokens=0 if self.draft is False else None,
            json_schema=form and form.schema_,
            tool_choice=self._choice(),
            **self._thought(service),
        )

    def _choice(self) -> str | None:
        choice = self.tool_choice
        if choice is None:
            return None
        if choice.type != "tool":
            return CHOICES[choice.type]
        if not choice.name:
            raise Failure("tool_choice.name is missing", field="tool_choice.name")
        return choice.name

    def _thought(self, service: Service) -> Any:
        """Return the settings of the thought. An effort alone asks for none."""
        if not self.thinking or not self.thinks:
            return {}
        effort = self.output_config.effort if self.output_config else None
        return thinking_of(service, effort, asked=True, budget=self.thinking.budget_tokens)


async def messages(request: Request) -> Response:
    """Answer /v1/messages."""
    service: Service = request.app.state.service
    body = await read(request, MessagesBody)
    asked = body.asked(service)
    if asked.stream:
        run = await start_stream(service, request, asked)
        ping = event({"type": "ping"}, "ping")
        return EventStream(service, run, _events(service, run), _failed, heartbeat=lambda: ping)
    run, [completion] = await whole(service, request, asked)
    blocks = Blocks()
    events = [one for _, chunk in run.seen for one in blocks.add(chunk)]
    content = blocks_of([*events, *blocks.end()], completion.tool_calls)
    answer = _message(service, content, usage_of(completion)) | _reason(run, completion, blocks)
    return JSONResponse(answer | statistics_of([completion]))


def _message(service: Service, content: list[Any], usage: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": new_id("msg_"),
        "type": "message",
        "role": "assistant",
        "model": service.model,
        "content": content,
        "stop_reason": None,
        "stop_sequence": None,
        "usage": usage,
    }


def _reason(run: Run, completion: Completion, blocks: Blocks) -> dict[str, str | None]:
    params = run.asked.params
    return reason_of(
        completion,
        has_calls=blocks.num_calls > 0,
        stops=params.stop_strings,
        max_tokens=params.max_tokens,
    )


async def _events(service: Service, run: Run) -> AsyncIterator[str]:
    blocks = Blocks()

    def sent(one: dict[str, Any]) -> str:
        return event(one, one["type"])

    usage = first_usage(run.generations[0].prompt_tokens or 0)
    yield sent({"type": "message_start", "message": _message(service, [], usage)})
    async for _, chunk in run.parts():
        for one in blocks.add(chunk):
            yield sent(one)
    for one in blocks.end():
        yield sent(one)
    [completion] = run.results()
    reason, usage = _reason(run, completion, blocks), usage_of(completion)
    yield sent(
        {"type": "message_delta", "delta": reason, "usage": usage, **statistics_of([completion])}
    )
    yield sent({"type": "message_stop"})


def _failed(failure: Failure) -> str:
    return event(anthropic_error(failure), "error")


async def count_tokens(request: Request) -> Response:
    """Answer /v1/messages/count_tokens. Nothing is asked of the model."""
    service: Service = request.app.state.service
    body = await read(request, MessagesBody)
    service.check_model(body.model)
    prompt, tools = turns_of(body.system, body.messages), tools_of(body.tools or ())
    count = service.engine.count_tokens
    tokens = await asyncio.to_thread(count, prompt, tools, thinking=body.thinks)
    return JSONResponse({"input_tokens": tokens})


routes = [
    Route("/v1/messages", messages, methods=["POST"]),
    Route("/v1/messages/count_tokens", count_tokens, methods=["POST"]),
]
