"""What OpenAI's endpoints for chats and for completions share: settings, answers' frames.

Fields of vLLM's and llama.cpp's servers are taken as well. Knows neither endpoint.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field

from mlx_gemma_mtp.decode.params import SamplingParams
from mlx_gemma_mtp.engine.results import Completion, TokenLogprobs
from mlx_gemma_mtp.server.asked import params_of
from mlx_gemma_mtp.server.body import Body
from mlx_gemma_mtp.server.failures import Failure
from mlx_gemma_mtp.server.service import Service
from mlx_gemma_mtp.server.usage import hash_of, metrics_of, timings_of, usage_of

MOST_COMPLETIONS = 128  # of one prompt, as OpenAI allows


class StreamOptions(Body):
    """Of a stream."""

    include_usage: bool | None = None


class JsonSchema(Body):
    """A schema and its name. A strict one is followed, and so is any other."""

    schema_: dict[str, Any] | None = Field(default=None, alias="schema")


class ResponseFormat(Body):
    """The form of an answer."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class Forms(Body):
    """vLLM's forms of an answer."""

    json_: dict[str, Any] | None = Field(default=None, alias="json")
    regex: str | None = None
    choice: list[str] | None = None


class Common(Body):
    """The fields that chats and completions share.

    draft: False decodes without drafts, to compare. priority: as vLLM's, lower ones come first.
    """

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = Field(default=None, ge=1, le=MOST_COMPLETIONS)
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = Field(default=None, ge=-1)
    min_p: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: Forms | None = None
    priority: int | None = None
    draft: bool | None = None

    def params(self, **others: Any) -> SamplingParams:
        """Return the settings as the engine takes them. Raises Failure."""
        same = ("temperature", "top_p", "top_k", "min_p", "seed", "stop_token_ids", "ignore_eos")
        penalties = ("presence_penalty", "frequency_penalty", "repetition_penalty")
        given = {name: getattr(self, name) for name in ("max_tokens", *same, *penalties)}
        given["stop"] = self.stop or None
        given["logit_bias"] = self._bias()
        given["num_draft_tokens"] = 0 if self.draft is False else None
        return params_of(NAMES, **(given | self._form() | others))

    def _bias(self) -> dict[int, float] | None:
        given = self.logit_bias or {}
        wrong = next((key for key in given if not key.isdecimal()), None)
        if wrong is not None:
            raise Failure(
                f"logit_bias: {wrong!r:.40} is not a token id", field=f"logit_bias.{wrong:.40}"
            )
        return {int(key): bias for key, bias in given.items()} or None

    def _form(self) -> dict[str, Any]:
        wanted, others = self.response_format, self.structured_outputs
        found: dict[str, Any] = {}
        if others is not None:
            found = {"json_schema": others.json_, "regex": others.regex, "choices": others.choice}
        if wanted is not None and wanted.type == "json_object":
            found["json_schema"] = {"type": "object", "additionalProperties": True}
        elif wanted is not None and wanted.type == "json_schema":
            schema = wanted.json_schema and wanted.json_schema.schema_
            if schema is None:
                field = "response_format.json_schema.schema"
                raise Failure(f"{field} is missing", field=field)
            found["json_schema"] = schema
        return found


NAMES = {name: name for name in Common.model_fields} | {
    "json_schema": "response_format",
    "regex": "structured_outputs.regex",
    "choices": "structured_outputs.choice",
    "num_draft_tokens": "draft",
}


def new_id(kind: str) -> str:
    """Return a random id of an answer or a part of it."""
    return f"{kind}-{secrets.token_hex(12)}"


class Frame:
    """What is the same in all events of an answer."""

    def __init__(self, service: Service, kind: str, object_: str) -> None:
        self._same = {
            "id": new_id(kind),
            "object": object_,
            "created": int(time.time()),
            "model": service.model,
        }

    def __call__(self, choices: Sequence[Mapping[str, Any]], **others: Any) -> dict[str, Any]:
        return {**self._same, "choices": choices, **others}


def statistics(completions: Sequence[Completion], n: int) -> dict[str, Any]:
    """Return the fields of an answer that say what it took. n: completions of each prompt."""
    found = {
        "usage": usage_of(completions, n),
        "metrics": metrics_of(completions),
        "output_hash": hash_of(completions),
    }
    if len(completions) == 1:
        found["timings"] = timings_of(completions[0].stats)
    return found


def token_text(service: Service, token: int) -> tuple[str, list[int]]:
    """Return the text of a token and its bytes, which may be part of a character."""
    text = service.engine.text
    raw = b"" if text is None else text.bytes_of(token)
    return raw.decode(errors="replace"), [*raw]


def without_end(
    logprobs: Sequence[TokenLogprobs] | None, service: Service
) -> Sequence[TokenLogprobs] | None:
    """Return log-probabilities without those of the token that ends the turn."""
    if logprobs is None:
        return None
    return [one for one in logprobs if one.token not in service.ends]
