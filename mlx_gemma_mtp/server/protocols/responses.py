"""OpenAI's responses, without a store: each body has the whole conversation."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator, Mapping
from itertools import chain, starmap
from typing import Any, Literal

from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from mlx_gemma_mtp.decode.params import MAX_LOGPROBS
from mlx_gemma_mtp.engine.results import Chunk, Completion
from mlx_gemma_mtp.server.answers import EventStream, begin, event, whole
from mlx_gemma_mtp.server.asked import Asked
from mlx_gemma_mtp.server.background import priority_of
from mlx_gemma_mtp.server.body import Body, read
from mlx_gemma_mtp.server.content import as_turns, checked
from mlx_gemma_mtp.server.failures import Failure
from mlx_gemma_mtp.server.protocols.openai import (
    NAMES,
    Effort,
    OpenAIBody,
    choice_of,
    form_of,
    logprob_entries,
    new_id,
    reported,
    statistics,
    thinking_of,
)
from mlx_gemma_mtp.server.protocols.responses_input import messages_of
from mlx_gemma_mtp.server.protocols.responses_output import (
    DONE,
    INCOMPLETE,
    SUMMARY,
    THOUGHT,
    WORKING,
    Event,
    Output,
)
from mlx_gemma_mtp.server.protocols.responses_tools import ResponseTools
from mlx_gemma_mtp.server.run import Run
from mlx_gemma_mtp.server.service import Service

TOO_LONG = "context_length_exceeded"
LOGPROBS = "message.output_text.logprobs"  # in `include`

FIELDS = NAMES | {
    "json_schema": "text.format",
    "max_tokens": "max_output_tokens",
    "logprobs": "top_logprobs",
    "prompt": "input",
}

# What needs a store, or a server that works on without its client.
STORED = {
    "previous_response_id": "nothing is stored here: give the whole conversation as input",
    "conversation": "nothing is stored here: give the whole conversation as input",
    "prompt": "nothing is stored here: give its text as instructions",
    "background": "is not supported: a response ends with its request",
}


class Format(Body):
    """The form of an answer."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    strict: bool | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")


class TextOptions(Body):
    """Of the answer."""

    format: Format | None = None


class Reasoning(Body):
    """Of the thought."""

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
    previous_response_id: Any = None
    conversation: Any = None
    prompt: Any = None
    background: bool | None = None

    def asked(self, service: Service, tools: ResponseTools) -> Asked:
        """Return it in the engine's terms. Raises Failure."""
        for field, why in STORED.items():
            if getattr(self, field):
                raise Failure(f"{field}: {why}", field=field)
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
                json_schema=form and form_of(form.type, form.schema_, "text.format.schema"),
                logprobs=(self.top_logprobs or 0) if self._wants_logprobs else None,
                **thinking_of(service, reasoning.effort, asked=False, budget=None),
            ),
            self.model,
            tools.schemas,
            one_call=self.parallel_tool_calls is False,
            priority=self.served_at(priority_of(messages, tools.schemas)),
            stream=bool(self.stream),
            names=FIELDS,
        )

    @property
    def _wants_logprobs(self) -> bool:
        return self.top_logprobs is not None or LOGPROBS in (self.include or ())

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


class Answer:
    """A response that grows, and the events that say so.

    response: as it is so far.
    """

    def __init__(self, service: Service, body: ResponsesBody) -> None:
        """Raises Failure."""
        tools = ResponseTools(body.tools or ())
        self.asked = body.asked(service, tools)
        self.response = body.echoed(service, tools)
        self._service = service
        shows_summary = body.reasoning and body.reasoning.summary not in (None, "none")
        self._output = Output(tools, SUMMARY if shows_summary else THOUGHT)
        self._number = 0  # of the next event

    def start(self) -> Iterator[Event]:
        """Yield the first events."""
        yield "response.created", {"response": self.response}
        yield "response.in_progress", {"response": self.response}

    def add(self, chunk: Chunk) -> Iterator[Event]:
        """Yield the events of a chunk."""
        is_answer = chunk.kind == "answer"
        found = reported(self._service, self.asked, chunk) if is_answer else ()
        yield from self._output.add(chunk, logprob_entries(self._service, found))

    def end(self, completion: Completion) -> Iterator[Event]:
        """Yield the last events."""
        status = INCOMPLETE if completion.finish_reason == "length" else DONE
        yield from self._output.close(status)
        took = statistics([completion], 1)
        details = {"reason": "max_output_tokens"} if status == INCOMPLETE else None
        self.response |= took | {
            "status": status,
            "incomplete_details": details,
            "output": self._output.items,
            "usage": _usage(took["usage"]),
        }
        yield f"response.{status}", {"response": self.response}

    def fail(self, failure: Failure) -> str:
        """Return the last event, of an error, as it is sent."""
        error = {"code": failure.code or "server_error", "message": failure.message}
        self.response |= {"status": "failed", "error": error, "output": self._output.items}
        return self.sent("response.failed", {"response": self.response})

    def sent(self, kind: str, fields: Mapping[str, Any]) -> str:
        """Return the next event as it is sent."""
        number, self._number = self._number, self._number + 1
        return event({"type": kind, "sequence_number": number, **fields}, kind)


def _usage(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the usage of a chat in the words of responses."""
    cached = given["prompt_tokens_details"]["cached_tokens"]
    return {
        "input_tokens": given["prompt_tokens"],
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
        "output_tokens": given["completion_tokens"],
        "output_tokens_details": given["completion_tokens_details"],
        "total_tokens": given["total_tokens"],
    }


async def responses(request: Request) -> Response:
    """Answer /v1/responses."""
    service: Service = request.app.state.service
    answer = Answer(service, await read(request, ResponsesBody))
    if not answer.asked.stream:
        run, [completion] = await whole(service, request, answer.asked)
        for _ in chain(*(answer.add(chunk) for _, chunk in run.seen), answer.end(completion)):
            pass  # the events leave their traces in the response
        return JSONResponse(answer.response)
    try:
        run = await begin(service, request, answer.asked)
    except Failure as failure:
        if failure.code != TOO_LONG:
            raise
        # Codex compacts a conversation if a stream says so, not for a status.
        events = [*starmap(answer.sent, answer.start()), answer.fail(failure)]
        return StreamingResponse(iter(events), media_type="text/event-stream")
    return EventStream(service, run, _events(answer, run), answer.fail)


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
