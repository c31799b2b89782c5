"""OpenAI's chat completions, asked through the app with the demo pair."""

from __future__ import annotations

import json
from typing import Any

import pytest
from starlette.testclient import TestClient

PATH = "/v1/chat/completions"
SUM: dict[str, Any] = {
    "messages": [{"role": "user", "content": "What is 17 + 25?"}],
    "temperature": 0,
}


def events(client: TestClient, body: dict[str, Any]) -> list[Any]:
    lines = client.post(PATH, json=body | {"stream": True}).text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]


def test_a_stream_has_the_text_of_the_whole_answer(client: TestClient) -> None:
    whole = client.post(PATH, json=SUM).json()
    assert whole["choices"][0]["message"]["content"] == "17 + 25 = 42"
    *stream, last = events(client, SUM | {"stream_options": {"include_usage": True}})
    deltas = [one["choices"][0]["delta"] for one in stream]
    assert "".join(delta.get("content", "") for delta in deltas) == "17 + 25 = 42"
    assert stream[-1]["choices"][0]["finish_reason"] == "stop"
    assert last["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]
    assert last["output_hash"] == whole["output_hash"]


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


def test_the_arguments_of_a_call_are_streamed(client: TestClient) -> None:
    function = {"name": "get_time", "description": "Get the time in a city."}
    city = {"type": "string", "description": "The city."}
    function |= {"parameters": {"properties": {"city": city}, "required": ["city"]}}
    asked = {
        "messages": [{"role": "user", "content": "What time is it in Paris?"}],
        "tools": [{"type": "function", "function": function}],
        "temperature": 0,
    }
    stream = [one["choices"][0] for one in events(client, asked | {"draft": False})]
    deltas = [call for one in stream for call in one["delta"].get("tool_calls", ())]
    whole = client.post(PATH, json=asked).json()["choices"][0]["message"]["tool_calls"][0]
    assert len(deltas) > 2
    assert deltas[0]["id"]
    assert {delta["index"] for delta in deltas} == {0}
    assert [one for delta in deltas if (one := delta["function"].get("name"))] == ["get_time"]
    arguments = "".join(delta["function"]["arguments"] for delta in deltas)
    assert arguments == whole["function"]["arguments"] == '{"city":"Paris"}'
    assert stream[-1]["finish_reason"] == "tool_calls"
