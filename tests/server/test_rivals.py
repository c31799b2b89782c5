"""What other servers of local models get wrong, asked of this one.

More of them are tested elsewhere: clients that hang up, and a second request that turns drafts off,
in test_fairness.py; addresses for others without a key in test_serve.py; web pages of any origin in
test_guard.py; calls without the marker that opens them in tests/text/test_unmarked.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest
from starlette.testclient import TestClient

from helpers import asking
from helpers.server import listening
from mlx_gemma_mtp import Engine, load
from mlx_gemma_mtp.server.app import app_of
from mlx_gemma_mtp.server.service import Service
from mlx_gemma_mtp.server.settings import Settings

CHAT = "/v1/chat/completions"
SUM, ANSWER = "What is 17 + 25?", "17 + 25 = 42"
MARKERS = ("<|", "|>", "thought\n", "<think>")


def asked(text: str, **others: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], "temperature": 0} | others


def whole(client: TestClient, body: dict[str, Any], path: str = CHAT) -> Any:
    return asking.answer(path, client, body)


def streamed(client: TestClient, body: dict[str, Any], path: str = CHAT) -> list[Any]:
    """The data of a stream's events, or its lines."""
    answer = client.post(path, json=body | {"stream": True})
    assert answer.status_code == 200, answer.text
    lines = (line.removeprefix("data: ") for line in answer.text.splitlines())
    return [json.loads(line) for line in lines if line.startswith("{")]


def deltas(events: list[Any], field: str, number: int = 0) -> str:
    """The whole of a field of the deltas of one choice."""
    choices = [one for event in events for one in event["choices"] if one["index"] == number]
    return "".join(one["delta"].get(field) or "" for one in choices)


@pytest.mark.parametrize("stop", ["=", ["?", "= 4"]])
def test_stop_is_not_ignored(client: TestClient, stop: Any) -> None:
    body = asked(SUM, stop=stop)
    choice = whole(client, body)["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("17 + 25 ", "stop")
    assert deltas(streamed(client, body), "content") == "17 + 25 "


def test_response_format_is_neither_ignored_nor_refused_with_drafts(client: TestClient) -> None:
    schema = {
        "type": "object",
        "properties": {"years": {"type": "integer"}, "who": {"enum": ["Anna", "Ben"]}},
        "required": ["years", "who"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "age", "schema": schema}}
    found = whole(client, asked("Tell me a story.", response_format=form, max_tokens=60))
    answer = json.loads(found["choices"][0]["message"]["content"])
    assert [*answer] == ["years", "who"]
    assert answer["who"] in ("Anna", "Ben")
    assert found["metrics"]["speculative_decoding"]["num_draft_tokens"] > 0


def test_n_is_not_silently_one(client: TestClient) -> None:
    body = asked("Tell me a story.", n=3, temperature=5, seed=5, max_tokens=16)
    texts = [one["message"]["content"] for one in whole(client, body)["choices"]]
    assert len({*texts}) == 3
    third = whole(client, body | {"n": 1, "seed": 7})["choices"][0]
    assert third["message"]["content"] == texts[2]
    events = streamed(client, body)
    assert [deltas(events, "content", number) for number in range(3)] == texts


def test_streams_have_logprobs(client: TestClient) -> None:
    body = asked(SUM, logprobs=True, top_logprobs=2)
    right = whole(client, body)["choices"][0]["logprobs"]["content"]
    choices = [one for event in streamed(client, body) for one in event["choices"]]
    found = [entry for one in choices if one["logprobs"] for entry in one["logprobs"]["content"]]
    assert [one["token"] for one in found] == [one["token"] for one in right]
    assert "".join(one["token"] for one in found) == ANSWER
    for one, other in zip(found, right, strict=True):
        assert one["logprob"] == pytest.approx(other["logprob"], abs=1e-4)
        assert len(one["top_logprobs"]) == 2


@pytest.mark.parametrize("path", [CHAT, "/v1/messages", "/api/chat"])
def test_an_unknown_model_does_not_unload_the_good_one(
    client: TestClient, engine: Engine, path: str
) -> None:
    before = engine.status.memory_bytes
    answer = client.post(path, json=asked(SUM, model="gpt-4o", max_tokens=9))
    assert answer.status_code == 404
    assert "demo" in answer.text  # what is served
    assert engine.loaded
    assert engine.status.memory_bytes > before / 2  # what other tests left may go meanwhile
    assert whole(client, asked(SUM, model="demo"))["choices"][0]["message"]["content"] == ANSWER


@pytest.fixture(scope="module")
def caching_url() -> Iterator[str]:
    """The demo as `mgm serve` has it, with a cache of prefixes."""
    with (
        load("demo", warm_up=False, probe=False, prefix_cache=1 << 26) as engine,
        listening(app_of(Service(engine, Settings(("demo",))))) as url,
    ):
        yield url


def test_eight_requests_at_once_read_their_common_prefix_once(caching_url: str, seed: int) -> None:
    system = " ".join(f"Rule {(number * 7919 + seed) % 997}." for number in range(60))

    def ask(number: int) -> tuple[int, int]:
        body = asked(f"What is {number} + 25?", max_tokens=8)
        body["messages"].insert(0, {"role": "system", "content": system})
        answer = httpx2.post(caching_url + CHAT, json=body, timeout=120)
        used = answer.json()["usage"]
        return used["prompt_tokens"], used["prompt_tokens_details"]["cached_tokens"]

    with ThreadPoolExecutor(8) as pool:
        found = [*pool.map(ask, range(8))]
    prefix = min(tokens for tokens, _ in found) - 30  # the question and the template around it
    assert prefix > 400
    assert sum(tokens - cached for tokens, cached in found) < prefix + 8 * 60


def test_arguments_of_a_call_are_not_silent_until_they_are_complete(client: TestClient) -> None:
    tool = function("write", text={"type": "string", "minLength": 40, "maxLength": 60})
    body = asked("Tell me a story.", tools=[tool], tool_choice="required", max_tokens=200)
    events = streamed(client, body | {"draft": False})  # with drafts, pieces have several tokens
    calls = [
        call["function"].get("arguments", "")
        for event in events
        for one in event["choices"]
        for call in one["delta"].get("tool_calls", ())
    ]
    assert len(calls) > 10
    assert len(json.loads("".join(calls))["text"]) >= 40
    assert max(map(len, calls)) < 20


def function(name: str, **properties: Any) -> dict[str, Any]:
    schema = {"type": "object", "properties": properties, "required": [*properties]}
    described = {"name": name, "description": f"Use {name}.", "parameters": schema}
    return {"type": "function", "function": described}


@pytest.mark.parametrize(
    "code",
    ['if (a) { return {"b": [1, 2]}; }', "}}{", 'call:f{x:"y"}', "'\"`\\", "<tool_call|>"],
)
def test_calls_with_braces_and_quotes_in_strings_are_not_lost(
    client: TestClient, code: str
) -> None:
    tool = function("run", code={"type": "string", "enum": [code]})
    body = asked("Tell me a story.", tools=[tool], tool_choice="required", max_tokens=200)
    [call] = whole(client, body)["choices"][0]["message"]["tool_calls"]
    assert json.loads(call["function"]["arguments"]) == {"code": code}
    arguments = "".join(
        one["function"].get("arguments", "")
        for event in streamed(client, body)
        for choice in event["choices"]
        for one in choice["delta"].get("tool_calls", ())
    )
    assert json.loads(arguments) == {"code": code}


def chat_thought(client: TestClient, *, stream: bool) -> tuple[str, str]:
    body = asked(SUM, reasoning_effort="high")
    if stream:
        events = streamed(client, body)
        return deltas(events, "reasoning_content"), deltas(events, "content")
    message = whole(client, body)["choices"][0]["message"]
    return message["reasoning_content"], message["content"]


def anthropic_thought(client: TestClient, *, stream: bool) -> tuple[str, str]:
    thinking = {"type": "enabled", "budget_tokens": 1024}
    body, path = asked(SUM, thinking=thinking, max_tokens=2048), "/v1/messages"
    if stream:
        parts = [one["delta"] for one in streamed(client, body, path) if "delta" in one]
        return (
            "".join(one.get("thinking", "") for one in parts),
            "".join(one.get("text", "") for one in parts),
        )
    thought, text = whole(client, body, path)["content"]
    return thought["thinking"], text["text"]


def responses_thought(client: TestClient, *, stream: bool) -> tuple[str, str]:
    body = {"input": SUM, "temperature": 0, "reasoning": {"effort": "high"}}
    if stream:
        events = streamed(client, body, "/v1/responses")
        kinds = ("response.reasoning_text.delta", "response.output_text.delta")
        thought, text = (
            "".join(one["delta"] for one in events if one["type"] == kind) for kind in kinds
        )
        return thought, text
    thought, text = (
        item["content"][0]["text"] for item in whole(client, body, "/v1/responses")["output"]
    )
    return thought, text


def ollama_thought(client: TestClient, *, stream: bool) -> tuple[str, str]:
    body = {"messages": asked(SUM)["messages"], "options": {"temperature": 0}, "think": True}
    if stream:
        parts = [one["message"] for one in streamed(client, body, "/api/chat")]
        return (
            "".join(one.get("thinking", "") for one in parts),
            "".join(one["content"] for one in parts),
        )
    message = whole(client, body | {"stream": False}, "/api/chat")["message"]
    return message["thinking"], message["content"]


@pytest.mark.parametrize(
    "thought_and_text", [chat_thought, anthropic_thought, responses_thought, ollama_thought]
)
@pytest.mark.parametrize("stream", [False, True])
def test_thoughts_do_not_leak_into_the_answer(
    client: TestClient, thought_and_text: Any, stream: bool
) -> None:
    thought, text = thought_and_text(client, stream=stream)
    assert thought
    assert text == ANSWER
    assert not any(marker in thought + text for marker in MARKERS)


def test_a_thought_without_end_is_ended_by_the_limit_of_the_server(engine: Engine) -> None:
    app = app_of(Service(engine, Settings(("demo",), thinking_budget=12)))
    # With a bias against the marker that closes it, this model does not stop by itself.
    assert engine.text is not None
    closing = engine.text.encode("<channel|>")[-1]
    body = asked(SUM, reasoning_effort="high", logit_bias={closing: -90}, max_tokens=60)
    with TestClient(app, "http://localhost") as client:
        found = whole(client, body)
    message, used = found["choices"][0]["message"], found["usage"]
    assert used["completion_tokens_details"]["reasoning_tokens"] <= 12 + 4  # with its markers
    assert message["content"]
