"""OpenAI's chat completions, asked through the app with the demo pair."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import pytest
from starlette.testclient import TestClient

from helpers import asking
from helpers.clock import CHAT_TOOL, QUESTION
from helpers.scripted import call_chunks, held_back, last_chunk, scripted
from mlx_gemma_mtp import Engine
from mlx_gemma_mtp.engine.results import Chunk
from mlx_gemma_mtp.errors import MgmError
from mlx_gemma_mtp.server.protocols.chat import ChatBody
from mlx_gemma_mtp.server.service import Service
from mlx_gemma_mtp.server.settings import Settings
from mlx_gemma_mtp.text.tokenizer import Text

PATH = "/v1/chat/completions"
SUM: dict[str, Any] = {
    "messages": [{"role": "user", "content": "What is 17 + 25?"}],
    "temperature": 0,
}
CLOCK: dict[str, Any] = {
    "messages": [{"role": "user", "content": QUESTION}],
    "temperature": 0,
    "tools": [CHAT_TOOL],
}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}

events = partial(asking.events, PATH)


def choice(client: TestClient, body: dict[str, Any]) -> Any:
    return asking.answer(PATH, client, body)["choices"][0]


def error(client: TestClient, body: dict[str, Any]) -> Any:
    answer = client.post(PATH, json=SUM | body)
    assert answer.status_code == 400, answer.text
    return answer.json()["error"]


def test_a_stream_has_the_text_of_the_whole_answer(client: TestClient) -> None:
    whole = client.post(PATH, json=SUM).json()
    assert whole["choices"][0]["message"]["content"] == "17 + 25 = 42"
    *stream, last = events(client, SUM | {"stream_options": {"include_usage": True}})
    deltas = [one["choices"][0]["delta"] for one in stream]
    assert "".join(delta.get("content", "") for delta in deltas) == "17 + 25 = 42"
    assert stream[-1]["choices"][0]["finish_reason"] == "stop"
    assert last["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]
    assert last["output_hash"] == whole["output_hash"]


def test_without_usage_the_last_event_of_a_stream_has_the_timings(client: TestClient) -> None:
    *first, last = events(client, SUM | {"stream_options": {}})
    assert last["choices"][0]["finish_reason"] == "stop"
    assert last["timings"]["predicted_n"] == 13
    assert "usage" not in last
    assert not any("timings" in one for one in first)


def test_logprobs_of_a_stream_are_those_of_the_whole_answer(client: TestClient) -> None:
    # With a thought before, and text held back that may become the stop string.
    body = SUM | {"reasoning_effort": "low", "stop": ["= 43"], "logprobs": True, "top_logprobs": 1}
    whole = choice(client, body)
    stream = [one["choices"][0] for one in events(client, body)]
    found = [entry for one in stream if one["logprobs"] for entry in one["logprobs"]["content"]]
    assert found == whole["logprobs"]["content"]
    assert "".join(one["token"] for one in found) == whole["message"]["content"] == "17 + 25 = 42"
    assert all(one["top_logprobs"][0]["token"] == one["token"] for one in found)
    thoughts = "".join(one["delta"].get("reasoning_content", "") for one in stream)
    assert thoughts == whole["message"]["reasoning_content"]


def test_logprobs_are_sent_while_their_text_is_held_back(text: Text) -> None:
    stream = events(scripted(held_back(text), text=text), SUM | {"logprobs": True})
    sent = [one["choices"][0] for one in stream if one["choices"][0]["logprobs"]]
    assert [one["delta"]["content"] for one in sent] == ["", "", "1+2"]
    tokens = [entry["token"] for one in sent for entry in one["logprobs"]["content"]]
    assert tokens == ["1", "+", "2"]


def test_drafts_change_neither_the_text_nor_its_hash(client: TestClient) -> None:
    drafted, plain = (
        client.post(PATH, json=SUM | {"seed": 7, "temperature": 1, "draft": draft}).json()
        for draft in (None, False)
    )
    assert drafted["choices"] == plain["choices"]
    assert drafted["output_hash"] == plain["output_hash"]
    assert plain["timings"]["draft_n"] == 0


def test_a_stream_of_several_completions_has_all_of_each(client: TestClient) -> None:
    body = {
        "messages": [{"role": "user", "content": "Tell me a story."}],
        "n": 3,
        "seed": 5,
        "max_tokens": 8,
    }
    whole = client.post(PATH, json=body).json()
    *stream, last = events(client, body | {"stream_options": {"include_usage": True}})
    assert all(one["usage"] is None for one in stream)
    assert last["usage"] == whole["usage"]
    assert last["usage"]["completion_tokens"] == 24
    for number, expected in enumerate(whole["choices"]):
        own = [one["choices"][0] for one in stream if one["choices"][0]["index"] == number]
        assert own[0]["delta"] == {"role": "assistant", "content": ""}
        text = "".join(one["delta"].get("content", "") for one in own)
        assert text == expected["message"]["content"]
        assert [one["finish_reason"] for one in own if one["finish_reason"]] == ["length"]


@pytest.mark.parametrize("parallel", [True, False])
def test_arguments_of_a_call_are_the_same_in_a_stream(client: TestClient, parallel: bool) -> None:
    body = CLOCK | {"parallel_tool_calls": parallel, "draft": False}
    whole = choice(client, body)
    assert whole["finish_reason"] == "tool_calls"
    assert whole["message"]["content"] is None
    [call] = whole["message"]["tool_calls"]
    stream = [one["choices"][0] for one in events(client, body)]
    deltas = [one for each in stream for one in each["delta"].get("tool_calls", ())]
    assert len(deltas) > 2
    assert deltas[0]["function"]["name"] == call["function"]["name"] == "get_time"
    assert deltas[0]["id"]
    arguments = "".join(one["function"]["arguments"] for one in deltas)
    assert arguments == call["function"]["arguments"] == '{"city":"Paris"}'
    assert stream[-1]["finish_reason"] == "tool_calls"


def test_parallel_tool_calls_false_gives_one_call() -> None:
    chunks = [*call_chunks(0, "f", "{", "}"), *call_chunks(1, "g", "{", "}"), last_chunk("Hi")]
    client, body = scripted(chunks), SUM | {"parallel_tool_calls": False}
    whole = choice(client, body)
    assert [one["function"]["name"] for one in whole["message"]["tool_calls"]] == ["f"]
    assert whole["message"]["content"] is None
    stream = [one["choices"][0] for one in events(client, body)]
    deltas = [one for each in stream for one in each["delta"].get("tool_calls", ())]
    assert {one["index"] for one in deltas} == {0}
    assert stream[-1]["finish_reason"] == "tool_calls"
    both = choice(client, SUM)["message"]["tool_calls"]
    assert [one["function"]["name"] for one in both] == ["f", "g"]


def test_an_answer_with_a_form_may_have_a_thought_before(client: TestClient) -> None:
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
        "required": ["name", "age"],
    }
    body = {
        "messages": [{"role": "user", "content": "JSON for: Anna is 31 years old."}],
        "temperature": 0,
        "reasoning_effort": "low",
        "response_format": {"type": "json_schema", "json_schema": {"name": "p", "schema": schema}},
    }
    message = choice(client, body)["message"]
    assert json.loads(message["content"]) == {"name": "Anna", "age": 31}
    assert message["reasoning_content"]


@pytest.mark.parametrize(
    ("body", "thinks", "budget"),
    [
        ({}, False, None),
        ({"reasoning_effort": "none", "thinking_budget": 9}, False, 9),
        ({"reasoning_effort": "low"}, True, 1024),
        ({"reasoning_effort": "high"}, True, 16_384),
        ({"reasoning_effort": "low", "thinking_budget": 9}, True, 9),
        ({"chat_template_kwargs": {"enable_thinking": True}}, True, 16_384),
        ({"chat_template_kwargs": {"enable_thinking": False}}, False, None),
    ],
)
def test_a_thought_is_as_long_as_the_client_asks(
    engine: Engine, body: dict[str, Any], thinks: bool, budget: int | None
) -> None:
    service = Service(engine, Settings(("demo",)))
    params = ChatBody.model_validate(SUM | body).asked(service).params
    assert (params.thinking, params.thinking_budget) == (thinks, budget)


def test_a_message_of_the_assistant_at_the_end_is_continued(client: TestClient) -> None:
    messages = [*SUM["messages"], {"role": "assistant", "content": "17 +"}]
    assert choice(client, SUM | {"messages": messages})["message"]["content"] == " 25 = 42"


@pytest.mark.parametrize(
    "before",
    [
        [{"role": "developer", "content": "Be brief."}],
        [{"role": "system", "content": []}, {"role": "system", "content": ""}],
        [
            {"role": "user", "content": [{"type": "text", "text": "Hi"}], "name": None},
            {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
        ],
        [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": None, "refusal": "No.", "tool_calls": None},
            {"role": "system", "content": "Be brief."},
        ],
        [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": None, "tool_calls": [CALL], "audio": None},
            {"role": "tool", "content": [], "tool_call_id": "c1"},
            {"role": "assistant", "content": "", "reasoning_content": "Hm.", "annotations": []},
        ],
    ],
)
def test_unusual_messages_of_clients_are_taken(client: TestClient, before: Any) -> None:
    nulls = dict.fromkeys(
        ("stop", "seed", "tools", "tool_choice", "logit_bias", "n", "top_p", "functions", "user")
    )
    body = SUM | nulls | {"messages": [*before, *SUM["messages"]], "max_tokens": 1}
    ignored = {"store": True, "metadata": {"a": "b"}, "service_tier": "auto", "user": "me"}
    assert choice(client, body | ignored)["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("body", "field", "way_out"),
    [
        ({"functions": [{"name": "f"}]}, "functions", "give tools"),
        ({"function_call": "auto"}, "function_call", "tool_choice"),
        ({"grammar": "root ::= x"}, "grammar", "response_format"),
        ({"guided_json": {"type": "object"}}, "guided_json", "response_format"),
        ({"structured_outputs": {"grammar": "x"}}, "structured_outputs.grammar", "not supported"),
        ({"max_completion_tokens": 0}, "max_completion_tokens", "at least 1"),
        ({"tools": [{"type": "custom", "custom": {"name": "f"}}]}, "tools.0.type", "only function"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools", "needs a name"),
        (
            {"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto"}}},
            "tool_choice",
            "give only the allowed ones",
        ),
        ({"tool_choice": {"type": "function"}}, "tool_choice", "name"),
        ({"tool_choice": "required"}, "tool_choice", "needs tools"),
        ({"modalities": ["text", "audio"]}, "modalities", "only text"),
        ({"messages": [{"role": "function", "content": "x"}]}, "messages.0", "tool_call_id"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0", "one of system"),
        ({"messages": []}, "messages", "no messages"),
        (
            {"messages": [*SUM["messages"], {"role": "assistant", "tool_calls": [CALL]}]},
            "messages.1",
            "has no result",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages.0.content.0",
            "only text",
        ),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema", ""),
        ({"logit_bias": {"9" * 5000: 1}}, f"logit_bias.{'9' * 40}", "not a token id"),
    ],
)
def test_what_is_not_supported_says_so(
    client: TestClient, body: dict[str, Any], field: str, way_out: str
) -> None:
    found = error(client, body)
    assert found["param"] == field
    assert way_out in found["message"]


def test_a_prompt_over_the_context_has_a_code_of_its_own(client: TestClient) -> None:
    found = error(client, {"messages": [{"role": "user", "content": "a " * 4096}]})
    assert found["code"] == "context_length_exceeded"
    assert found["param"] == "messages"
    assert found["message"].startswith("prompt is too long: ")


def test_an_error_after_output_ends_the_stream() -> None:
    client = scripted([Chunk("Hel", [1])], MgmError("the device is gone"))
    first, piece, last = events(client, SUM)
    assert first["choices"][0]["delta"]["role"] == "assistant"
    assert piece["choices"][0]["delta"]["content"] == "Hel"
    assert last["error"]["type"] == "server_error"


def test_an_answer_survives_whoever_counts_it() -> None:
    def fails(_: object) -> None:
        raise RuntimeError

    client = scripted([last_chunk("Hi")], observers=[fails])
    assert choice(client, SUM)["message"]["content"] == "Hi"
    assert events(client, SUM)[-1]["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model", "nope"),
        ("temperature", "warm"),
        ("temperature", -1),
        ("n", 0),
        ("top_p", 7),
        ("stop", 5),
        ("stop", [5]),
        ("tool_choice", "any"),
        ("max_tokens", 0),
        ("logit_bias", {"x": 1}),
        ("top_logprobs", 99),
        ("response_format", {"type": "yaml"}),
    ],
)
def test_a_wrong_value_is_refused_with_the_name_of_its_field(
    client: TestClient, field: str, value: object
) -> None:
    answer = client.post(PATH, json=SUM | {field: value})
    assert answer.status_code == (404 if field == "model" else 400)
    error = answer.json()["error"]
    assert error["param"].split(".")[0] == field
    assert field.split("_")[0] in error["message"]
