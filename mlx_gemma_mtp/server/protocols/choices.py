"""What OpenAI's chats and completions share: fields of their bodies, answers with choices.

Knows nothing of what is in a choice.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

from pydantic import Field

from mlx_gemma_mtp.decode.params import SamplingParams
from mlx_gemma_mtp.engine.results import Chunk, FinishReason
from mlx_gemma_mtp.server.answers import EventStream, event
from mlx_gemma_mtp.server.body import Body
from mlx_gemma_mtp.server.error_shapes import openai_error
from mlx_gemma_mtp.server.failures import Failure
from mlx_gemma_mtp.server.protocols.openai import OpenAIBody, answer_schema, statistics
from mlx_gemma_mtp.server.run import Run
from mlx_gemma_mtp.server.service import Service
from mlx_gemma_mtp.server.usage import Timings
from mlx_gemma_mtp.text.calls import new_id

MOST_COMPLETIONS = 128  # of one prompt, as OpenAI allows

DONE = "data: [DONE]\n\n"

Choice = Mapping[str, Any]


class StreamOptions(Body):
    """Options of a stream."""

    include_usage: bool | None = None


class JsonSchema(Body):
    """A schema and its name. A strict one is followed, and so is any other."""

    schema_: dict[str, Any] | None = Field(default=None, alias="schema")


class ResponseFormat(Body):
    """The form of an answer."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class ChoicesBody(OpenAIBody):
    """The fields that chats and completions share.

    timings_per_token: llama.cpp's, True for the speed so far in each event of a stream.
    """

    stream_options: StreamOptions | None = None
    n: int | None = Field(default=None, ge=1, le=MOST_COMPLETIONS)
    max_tokens: int | None = None
    response_format: ResponseFormat | None = None
    timings_per_token: bool | None = None

    @property
    def wanted(self) -> dict[str, bool]:
        """The options of `choice_stream`: if it ends with its usage, and has timings."""
        usage = self.stream_options and self.stream_options.include_usage
        return {"wants_usage": bool(usage), "wants_timings": bool(self.timings_per_token)}

    def params(
        self, names: Mapping[str, str], max_tokens: int | None, **others: Any
    ) -> SamplingParams:
        """Return the settings as the engine takes them. Raises Failure."""
        if (form := self.response_format) is not None:
            schema = form.json_schema.schema_ if form.json_schema else None
            field = "response_format.json_schema.schema"
            others["json_schema"] = answer_schema(form.type, schema, field)
        return super().params(names, max_tokens, **others)


class Frame:
    """What is the same in all events of an answer."""

    def __init__(self, service: Service, kind: str, object_: str) -> None:
        self._same = {
            "id": new_id(f"{kind}-"),
            "object": object_,
            "created": int(time.time()),
            "model": service.model,
        }

    def __call__(self, choices: Sequence[Choice], **others: Any) -> dict[str, Any]:
        return {**self._same, "choices": choices, **others}


def choice_stream(
    service: Service,
    run: Run,
    frame: Frame,
    choices_of: Callable[[int, Chunk], Iterable[Choice]],
    *,
    wants_usage: bool,
    wants_timings: bool,
) -> EventStream:
    """Return an answer that is sent as it comes.

    choices_of: the choices of a chunk of the completion of this number; the last one of each
    completion has a finish_reason. The last event of all says what it took.
    """

    async def events() -> AsyncIterator[str]:
        usage: dict[str, Any] = {"usage": None} if wants_usage else {}
        timings = Timings()
        left = len(run.generations)
        last: list[Choice] = []
        async for number, chunk in run.parts():
            so_far = {"timings": timings.after(len(chunk.tokens))} if wants_timings else {}
            for choice in choices_of(number, chunk):
                left -= choice["finish_reason"] is not None
                if left:
                    yield event(frame([choice], **usage, **so_far))
                else:
                    last.append(choice)
        took = statistics(run.results(), run.asked.n)
        if wants_usage:
            yield event(frame(last, **usage))
            yield event(frame([], **took))
        else:
            del took["usage"]
            yield event(frame(last, **took))
        yield DONE

    return EventStream(service, run, events(), _failed)


def finish_of(reason: FinishReason, *, has_calls: bool) -> str:
    """Return the finish_reason of a choice."""
    if has_calls and reason != "length":
        return "tool_calls"
    return "stop" if reason == "cancelled" else reason


def _failed(failure: Failure) -> str:
    return event(openai_error(failure)) + DONE
