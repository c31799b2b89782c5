"""OpenAI's responses, without a store: each body has the whole conversation."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from itertools import chain, starmap
from typing import Annotated, Any, Literal

from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from mlx_gemma_mtp.decode.params import MAX_LOGPROBS
from mlx_gemma_mtp.server.answers import EventStream, start_stream, whole
from mlx_gemma_mtp.server.asked import Asked
from mlx_gemma_mtp.server.background import priority_of
from mlx_gemma_mtp.server.body import Body, read, refused
from mlx_gemma_mtp.server.content import as_turns, checked
from mlx_gemma_mtp.server.failures import Failure
from mlx_gemma_mtp.server.protocols.openai import NAMES, OpenAIBody, answer_schema, choice_of
from mlx_gemma_mtp.server.protocols.responses_answer import Answer
from mlx_gemma_mtp.server.protocols.responses_input import messages_of
from mlx_gemma_mtp.server.protocols.responses_output import (
    SUMMARY,
    THOUGHT,
    WORKING,
    Output,
)
from mlx_gemma_mtp.server.protocols.responses_tools import ResponseTools
from mlx_gemma_mtp.server.run import Run
from mlx_gemma_mtp.server.service import Service
from mlx_gemma_mtp.server.thinking import Effort, thinking_of
from mlx_gemma_mtp.text.calls import new_id

TOO_LONG = "context_length_exceeded"
LOGPROBS = "message.output_text.logprobs"  # in `include`

FIELDS = NAMES | {
    "json_schema": "text.format",
    "max_tokens": "max_output_tokens",
    "logprobs": "top_logprobs",
    "prompt": "input",
}

Stored = Annotated[Any, refused("nothing is stored here: give the whole conversation as input")]


class Format(Body):
    """The form of an answer."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    strict: bool | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")


class TextOptions(Body):
    """Options of the answer."""

    format: Format | None = None


class Reasoning(Body):
    """Options of the thought."""

    effort: Effort | None = None
    summary: str | None = None


class ResponsesBody(OpenAIBody):
    """A body of /v1/responses."""

    input: str | list[dict[str, Any]]
    instructions: str | None = None
    max_output_tokens: int | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_LOGPROBS)
    include: list[str] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    reasoning: Reasoning | None = None
    metadata: dict[str, Any] | None = None
    user: str | None = None
    previous_response_id: Stored = None
    conversation: Stored = None
    prompt: Annotated[Any, refused("nothing is stored here: give its text as input")] = None
    background: Annotated[Any, refused("not supported, as a response ends with its request")] = None

    def asked(self, service: Service, tools: ResponseTools) -> Asked:
        """Return it in the engine's terms. Raises Failure."""
        given, fields = messages_of(self.input)
        if self.instructions:
            given.insert(0, {"role": "system", "content": self.instructions})
            fields.insert(0, "instructions")
        messages = as_turns(checked(given, "input", fields))
        form, reasoning = self.text and self.text.format, self.reasoning or Reasoning()
        return Asked(
            "responses",
            [messages],
            self.params(
                FIELDS,
                self.max_output_tokens,
                tool_choice=choice_of(self.tool_choice),
                json_schema=form and answer_schema(form.type, form.schema_, "text.format.schema"),
                logprobs=(self.top_logprobs or 0) if self._wants_logprobs else None,
                **thinking_of(service, reasoning.effort, asked=False, budget=None),
            ),
            self.model,
            tools.schemas,
            one_call=self.parallel_tool_calls is False,
            priority=self.engine_priority(priority_of(messages, tools.schemas)),
            stream=bool(self.stream),
            names=FIELDS,
        )

    @property
    def _wants_logprobs(self) -> bool:
        return self.top_logprobs is not None or LOGPROBS in (self.include or ())

    @property
    def shows_summary(self) -> bool:
        """True if the client shows summaries of thoughts: it gets the thought in their place."""
        return self.reasoning is not None and self.reasoning.summary not in (None, "none")

    def echoed(self, service: Service, tools: ResponseTools) -> dict[str, Any]:
        """Return a response that has not started: the fields of the body, as clients expect them.

        tools: those that the model is shown.
        """
        form, reasoning = self.text and self.text.format, self.reasoning or Reasoning()
        shown = form.model_dump(by_alias=True, exclude_none=True) if form else {"type": "text"}
        return {
            "id": new_id("resp_"),
            "object": "response",
            "created_at": int(time.time()),
            "status": WORKING,
            "background": False,
            "error": None,
            "incomplete_details": None,
            "instructions": self.instructions,
            "max_output_tokens": self.max_output_tokens,
            "metadata": self.metadata or {},
            "model": service.model,
            "output": [],
            "parallel_tool_calls": self.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": reasoning.model_dump(),
            "store": False,
            "temperature": self.temperature,
            "text": {"format": shown},
            "tool_choice": self.tool_choice or "auto",
            "tools": tools.used,
            "top_logprobs": self.top_logprobs or 0,
            "top_p": self.top_p,
            "truncation": "disabled",
            "usage": None,
            "user": self.user,
        }


async def responses(request: Request) -> Response:
    """Answer /v1/responses."""
    service: Service = request.app.state.service
    body = await read(request, ResponsesBody)
    tools = ResponseTools(body.tools or ())
    asked = body.asked(service, tools)
    output = Output(tools, SUMMARY if body.shows_summary else THOUGHT)
    answer = Answer(service, asked, body.echoed(service, tools), output)
    if not asked.stream:
        run, [completion] = await whole(service, request, asked)
        for _ in chain(*(answer.add(chunk) for _, chunk in run.seen), answer.end(completion)):
            pass  # the events leave their traces in the response
        return JSONResponse(answer.response)
    try:
        run = await start_stream(service, request, asked)
    except Failure as failure:
        if failure.code != TOO_LONG:
            raise
        # Codex compacts a conversation if a stream says so, not for a status.
        events = [*starmap(answer.sent, answer.start()), answer.fail(failure)]
        return StreamingResponse(iter(events), media_type="text/event-stream")
    return EventStream(service, run, _events(answer, run), answer.fail, heartbeat=answer.beat)


async def _events(answer: Answer, run: Run) -> AsyncIterator[str]:
    for one in answer.start():
        yield answer.sent(*one)
    async for _, chunk in run.parts():
        for one in answer.add(chunk):
            yield answer.sent(*one)
    [completion] = run.results()
    for one in answer.end(completion):
        yield answer.sent(*one)


routes = [Route("/v1/responses", responses, methods=["POST"])]
