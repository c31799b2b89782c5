"""What OpenAI's endpoints share: settings of a body, tool choices, statistics.

Fields of vLLM's and llama.cpp's servers are taken as well. Knows none of the endpoints.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field

from mlx_gemma_mtp.decode.params import FORMS, SamplingParams
from mlx_gemma_mtp.engine.results import Completion
from mlx_gemma_mtp.server.asked import ANY_OBJECT, params_of
from mlx_gemma_mtp.server.body import Body, refused
from mlx_gemma_mtp.server.failures import Failure
from mlx_gemma_mtp.server.usage import statistics_of, usage_of

MOST_DIGITS = 9  # of a token id
NO_LIMIT = -1  # a max_tokens, as llama.cpp's clients send it

# A form of an answer in words of llama.cpp, or of older versions of vLLM.
OtherForm = Annotated[
    Any, refused("not supported; give a schema as response_format, or structured_outputs")
]


class Forms(Body):
    """vLLM's forms of an answer."""

    json_: dict[str, Any] | None = Field(default=None, alias="json")
    regex: str | None = None
    choice: list[str] | None = None
    grammar: OtherForm = None
    structural_tag: OtherForm = None


class OpenAIBody(Body):
    """The fields that all endpoints take.

    draft: False decodes without drafts, to compare. priority: as vLLM's, lower ones come first.
    """

    model: str | None = None
    stream: bool | None = None
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
    structured_outputs: Forms | None = None
    grammar: OtherForm = None
    guided_choice: OtherForm = None
    guided_grammar: OtherForm = None
    guided_json: OtherForm = None
    guided_regex: OtherForm = None
    json_schema: OtherForm = None
    priority: int | None = None
    draft: bool | None = None

    def params(
        self, names: Mapping[str, str], max_tokens: int | None, **others: Any
    ) -> SamplingParams:
        """Return the settings as the engine takes them. names: as of `Asked`. Raises Failure."""
        same = ("temperature", "top_p", "top_k", "min_p", "seed", "stop_token_ids", "ignore_eos")
        penalties = ("presence_penalty", "frequency_penalty", "repetition_penalty")
        given = {name: getattr(self, name) for name in (*same, *penalties)}
        given["max_tokens"] = None if max_tokens == NO_LIMIT else max_tokens
        given["stop"] = self.stop or None
        given["logit_bias"] = self._bias()
        given["num_draft_tokens"] = 0 if self.draft is False else None
        if (form := self.structured_outputs) is not None:
            given |= {"json_schema": form.json_, "regex": form.regex, "choices": form.choice}
        given |= {name: value for name, value in others.items() if value is not None}
        if given.get("tool_choice", "auto") not in ("auto", "none"):  # no answer, so no form
            given |= dict.fromkeys(FORMS)
        return params_of(names, **given)

    def engine_priority(self, background: int = 0) -> int:
        """Return the priority as of `Engine.submit`. background: if the client asks for none."""
        return background if self.priority is None else -self.priority

    def _bias(self) -> dict[int, float] | None:
        given = self.logit_bias or {}
        for key in given:
            if not key.isdecimal() or len(key) > MOST_DIGITS:
                name = f"logit_bias.{key:.40}"
                raise Failure(f"{name}: {key!r:.40} is not a token id", field=name)
        return {int(key): bias for key, bias in given.items()} or None


NAMES = {name: name for name in (*OpenAIBody.model_fields, "max_tokens")} | {
    "json_schema": "response_format",
    "regex": "structured_outputs.regex",
    "choices": "structured_outputs.choice",
    "num_draft_tokens": "draft",
    "tool_choice": "tool_choice",
}


def answer_schema(
    kind: str, schema: Mapping[str, Any] | None, field: str
) -> Mapping[str, Any] | None:
    """Return the schema of an answer; None if it is free. field: where the schema must be."""
    if kind == "json_schema" and schema is None:
        raise Failure(f"{field} is missing", field=field)
    return {"text": None, "json_object": ANY_OBJECT}.get(kind, schema)


def choice_of(given: str | Mapping[str, Any] | None) -> str | None:
    """Return a tool_choice as the engine takes it. Raises Failure."""
    field = "tool_choice"
    match given:
        case None | "auto" | "none" | "required":
            return given
        case {"type": "function" | "custom" as kind, **others}:
            inner = others.get(kind, others)  # flat in responses
            name = inner.get("name") if isinstance(inner, Mapping) else None
            if isinstance(name, str) and name:
                return name
            raise Failure(f"{field}: the name of the {kind} is missing", field=field)
        case {"type": "allowed_tools"}:
            message = "allowed_tools is not supported: give only the allowed ones as tools"
            raise Failure(f"{field}: {message}", field=field)
    raise Failure(f"{field} must be auto, none, required or a function", field=field)


def statistics(completions: Sequence[Completion], n: int) -> dict[str, Any]:
    """Return the fields of an answer that say what it took. n: completions of each prompt."""
    return {"usage": usage_of(completions, n), **statistics_of(completions)}
