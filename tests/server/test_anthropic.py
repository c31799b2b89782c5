"""Anthropic's messages, asked with its own client."""

from __future__ import annotations

import json
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from pydantic import BaseModel
from starlette.testclient import TestClient

from helpers.clock import ANTHROPIC_TOOL, QUESTION
from helpers.fake_target import SECONDS, fake_pair, fake_player
from mlx_gemma_mtp import Engine
from mlx_gemma_mtp.engine.results import Completion, Stats
from mlx_gemma_mtp.server.app import app_of
from mlx_gemma_mtp.server.protocols.anthropic_answer import reason_of
from mlx_gemma_mtp.server.service import Service
from mlx_gemma_mtp.server.settings import Settings

anthropic = pytest.importorskip("anthropic")

GREEDY = {"temperature": 0}  # the client has no name for it
SUM = {"role": "user", "content": "What is 17 + 25?"}
TIME = {"role": "user", "content": QUESTION}


@pytest.fixture(scope="module")
def claude(client: TestClient) -> Any:
    return anthropic.Anthropic(
        base_url="http://localhost", api_key="any", http_client=client, max_retries=0
    )


def asked(*messages: dict[str, Any], **others: Any) -> dict[str, Any]:
    body = {"model": "demo", "max_tokens": 200, "messages": [*messages]}
    return body | {"extra_body": GREEDY | others.pop("extra_body", {})} | others


def events(client: TestClient, body: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The names and data of a stream's events."""
    extra = body.pop("extra_body")
    answer = client.post("/v1/messages?beta=true", json=body | extra | {"stream": True})
    found = []
    for one in answer.text.rstrip("\n").split("\n\n"):
        name, data = one.split("\n")
        found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


def test_an_answer_has_content_usage_and_the_reason_of_its_end(claude: Any) -> None:
    answer = claude.messages.create(**asked(SUM))
    assert [block.text for block in answer.content] == ["17 + 25 = 42"]
    assert (answer.type, answer.role, answer.model) == ("message", "assistant", "demo")
    assert answer.id.startswith("msg_")
    assert answer.stop_reason == "end_turn"
    assert (
        answer.usage.input_tokens
        == claude.messages.count_tokens(model="demo", messages=[SUM]).input_tokens
    )
    assert answer.usage.output_tokens > 5
    plain = claude.messages.create(**asked(SUM, extra_body={"draft": False}))
    assert plain.output_hash == answer.output_hash
    assert plain.metrics["speculative_decoding"]["num_draft_tokens"] == 0
    assert answer.timings["draft_n_accepted"] > 0


def test_a_stream_is_the_whole_answer_thought_included(claude: Any) -> None:
    thinks = asked(SUM, thinking={"type": "enabled", "budget_tokens": 1024})
    whole = claude.messages.create(**thinks)
    assert [block.type for block in whole.content] == ["thinking", "text"]
    assert whole.content[0].signature
    with claude.messages.stream(**thinks) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_message()
    assert {"thinking", "signature", "text"} <= {*kinds}
    assert [block.to_dict() for block in final.content] == [
        block.to_dict() for block in whole.content
    ]
    assert final.usage == whole.usage
    assert whole.usage.output_tokens_details.thinking_tokens > 10
    again = asked(SUM, {"role": "assistant", "content": whole.content}, SUM)
    assert claude.messages.create(**again).content[0].text == "17 + 25 = 42"


def test_the_events_of_a_stream_come_in_anthropics_order(client: TestClient) -> None:
    found = events(client, asked(TIME, tools=[ANTHROPIC_TOOL]))
    assert all(name == data["type"] for name, data in found)
    names = [name for name, _ in found if name != "content_block_delta"]
    assert names == [
        "message_start",
        "content_block_start",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    data = dict(found)
    assert data["message_start"]["message"]["content"] == []
    usages = [data["message_start"]["message"]["usage"], data["message_delta"]["usage"]]
    assert usages[0]["input_tokens"] == usages[1]["input_tokens"] > 50
    assert data["content_block_start"]["content_block"]["input"] == {}
    parts = [one["delta"]["partial_json"] for name, one in found if name == "content_block_delta"]
    assert json.loads("".join(parts)) == {"city": "Paris"}
    assert data["message_delta"]["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}


def test_a_stream_pings_while_its_prompt_is_read(engine: Engine) -> None:
    app = app_of(Service(engine, Settings(("demo",), heartbeat_seconds=0.01)))
    with TestClient(app, "http://localhost") as client:
        long = {"role": "user", "content": "Hello " * 100}
        found = events(client, asked(long, max_tokens=1))
    assert found[0][0] == "message_start"
    assert ("ping", {"type": "ping"}) in found


@pytest.mark.parametrize("failed", [False, True])
def test_a_tool_is_called_and_its_result_is_used(claude: Any, failed: bool) -> None:
    first = claude.messages.create(**asked(TIME, tools=[ANTHROPIC_TOOL]))
    assert first.stop_reason == "tool_use"
    [use] = first.content
    assert (use.type, use.name, use.input) == ("tool_use", "get_time", {"city": "Paris"})
    assert use.id.startswith("toolu_")
    result = {"type": "tool_result", "tool_use_id": use.id, "content": "9:30", "is_error": failed}
    messages = [TIME, {"role": "assistant", "content": first.content}]
    messages.append({"role": "user", "content": [result]})
    second = claude.messages.create(**asked(*messages, tools=[ANTHROPIC_TOOL]))
    assert second.content[0].text == "It is 9:30 in Paris."


def test_tool_choice_forces_forbids_and_names_a_tool(claude: Any) -> None:
    def kinds(choice: dict[str, Any], **others: Any) -> list[str]:
        answer = claude.messages.create(
            **asked(tools=[ANTHROPIC_TOOL], tool_choice=choice, **others)
        )
        return [block.type for block in answer.content]

    for choice in ({"type": "any", "disable_parallel_tool_use": True}, {"type": "tool"}):
        named = choice if choice["type"] == "any" else choice | {"name": "get_time"}
        assert kinds(named, messages=[SUM]) == ["tool_use"]
    assert kinds({"type": "none"}, messages=[TIME]) == ["text"]


def test_the_stop_sequence_that_was_met_is_named(claude: Any) -> None:
    answer = claude.messages.create(**asked(SUM, stop_sequences=["nine", " =", "42"]))
    assert answer.content[0].text == "17 + 25"
    assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", " =")


def test_an_answer_that_is_cut_says_whose_limit_was_met(claude: Any) -> None:
    assert claude.messages.create(**asked(SUM, max_tokens=3)).stop_reason == "max_tokens"
    full = Completion("17", [5] * 3, "length", Stats(generated_tokens=3), 0)
    for most in (None, 4):
        found = reason_of(full, has_calls=True, stops=(), max_tokens=most)
        assert found["stop_reason"] == "model_context_window_exceeded"


class Person(BaseModel):
    name: str
    age: int


@pytest.mark.parametrize("field", ["output_config", "output_format"])
def test_an_answer_follows_a_schema(claude: Any, client: TestClient, field: str) -> None:
    question = {"role": "user", "content": "JSON for: Anna is 31 years old."}
    if field == "output_config":
        parsed = claude.messages.parse(**asked(question, output_format=Person))
        assert parsed.parsed_output == Person(name="Anna", age=31)
        return
    form = {"type": "json_schema", "schema": Person.model_json_schema()}
    body = {"messages": [question], "temperature": 0, "output_format": form}
    answer = client.post("/v1/messages", json=body).json()
    assert json.loads(answer["content"][0]["text"]) == {"name": "Anna", "age": 31}


def test_an_answer_that_the_client_started_is_continued(claude: Any) -> None:
    started = {"role": "assistant", "content": "17 + 25 ="}
    assert claude.messages.create(**asked(SUM, started)).content[0].text == " 42"


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"model": "claude"}, anthropic.NotFoundError, "not served here: use demo"),
        ({"max_tokens": 0}, anthropic.BadRequestError, "max_tokens must be at least 1"),
        ({"messages": []}, anthropic.BadRequestError, "messages"),
        ({"stop_sequences": [""]}, anthropic.BadRequestError, "stop_sequences must be"),
        ({"tool_choice": {"type": "any"}}, anthropic.BadRequestError, "needs tools"),
        ({"tool_choice": {"type": "tool"}}, anthropic.BadRequestError, "tool_choice.name"),
        ({"thinking": {"budget_tokens": 5}}, anthropic.BadRequestError, "thinking.type"),
        ({"extra_body": {"temperature": 2}}, anthropic.BadRequestError, "temperature"),
        ({"extra_body": {"top_p": "a"}}, anthropic.BadRequestError, "top_p"),
    ],
)
def test_a_wrong_value_is_refused_in_anthropics_shape(
    claude: Any, change: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind) as caught:
        claude.messages.create(**asked(SUM, **change))
    error = caught.value.body["error"]  # type: ignore[attr-defined]
    assert message in error["message"]
    assert error["type"] in ("not_found_error", "invalid_request_error")


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_over_the_context_is_refused_in_the_words_that_make_clients_shorten_it(
    claude: Any, stream: bool
) -> None:
    long = {"role": "user", "content": "Hello " * 5000}
    counted = claude.messages.count_tokens(model="demo", messages=[long]).input_tokens
    with pytest.raises(anthropic.BadRequestError) as caught:
        claude.messages.create(**asked(long, stream=stream))
    expected = f"prompt is too long: {counted} tokens > 4095 maximum"
    assert caught.value.body["error"]["message"].startswith(expected)


def test_a_prompt_far_over_the_context_is_not_counted(claude: Any) -> None:
    long = {"role": "user", "content": "Hello " * 50_000}
    for use in (
        lambda: claude.messages.create(**asked(long)),
        lambda: claude.messages.count_tokens(model="demo", messages=[long]),
    ):
        with pytest.raises(anthropic.BadRequestError) as caught:
            use()
        message = caught.value.body["error"]["message"]
        assert re.match(r"prompt is too long: \d{5} tokens > 4095 maximum, .* at least", message)


def test_tokens_are_counted_with_tools_instructions_and_thinking(claude: Any) -> None:
    def count(**others: Any) -> int:
        found = claude.messages.count_tokens(model="demo", messages=[TIME], **others)
        return int(found.input_tokens)

    everything = {"tools": [ANTHROPIC_TOOL], "system": [{"type": "text", "text": "Be short."}]}
    thinking = {"thinking": {"type": "adaptive"}}
    assert len({count(), count(**everything), count(**everything, **thinking)}) == 3
    answer = claude.messages.create(**asked(TIME, max_tokens=1, **everything, **thinking))
    assert answer.usage.input_tokens == count(**everything, **thinking)
    with pytest.raises(anthropic.BadRequestError, match="not supported"):
        claude.messages.count_tokens(
            model="demo", messages=[{"role": "user", "content": [{"type": "image"}]}]
        )


def test_the_models_that_are_served_are_listed(claude: Any) -> None:
    assert [one.display_name for one in claude.models.list()] == ["demo", "other"]
    assert claude.models.retrieve("other").created_at.year >= 2026


class Slow(Engine):
    """Counts only when it is told to."""

    counting, resume = threading.Event(), threading.Event()

    def count_tokens(self, *arguments: Any, **options: Any) -> int:
        self.counting.set()
        assert self.resume.wait(SECONDS)
        return 7


def test_others_are_served_while_a_long_prompt_is_counted() -> None:
    body = {"messages": [SUM]}
    with Slow(fake_pair(), player=fake_player) as engine, ThreadPoolExecutor(1) as thread:
        client = TestClient(app_of(Service(engine, Settings(("fake",)))), "http://localhost")
        with client:
            counted = thread.submit(client.post, "/v1/messages/count_tokens", json=body)
            assert engine.counting.wait(SECONDS)
            assert client.get("/v1/models").status_code == 200
            assert not counted.done()
            engine.resume.set()
            assert counted.result(SECONDS).json() == {"input_tokens": 7}
