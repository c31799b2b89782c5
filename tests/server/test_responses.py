"""OpenAI's responses, asked through the app with the demo pair."""

from __future__ import annotations

import json
from functools import partial
from itertools import chain, pairwise
from typing import Any

import pytest
from starlette.testclient import TestClient

from helpers import asking
from helpers.clock import QUESTION, RESPONSES_TOOL
from helpers.scripted import call_chunks, held_back, last_chunk, scripted
from mlx_gemma_mtp import Engine
from mlx_gemma_mtp.engine.results import Chunk, Stats
from mlx_gemma_mtp.errors import MgmError
from mlx_gemma_mtp.server.app import app_of
from mlx_gemma_mtp.server.protocols.responses_input import messages_of
from mlx_gemma_mtp.server.service import Service
from mlx_gemma_mtp.server.settings import Settings
from mlx_gemma_mtp.text.tokenizer import Text

PATH = "/v1/responses"
SUM: dict[str, Any] = {"input": "What is 17 + 25?", "temperature": 0}
CLOCK: dict[str, Any] = {"input": QUESTION, "temperature": 0, "tools": [RESPONSES_TOOL]}

# The events of a part, after those of its item.
TEXT = ["content_part.added", "output_text.delta", "output_text.done", "content_part.done"]
THOUGHT = ["content_part.added", "reasoning_text.delta", "reasoning_text.done", "content_part.done"]
SUMMARY = [
    "reasoning_summary_part.added",
    "reasoning_summary_text.delta",
    "reasoning_summary_text.done",
    "reasoning_summary_part.done",
]
CALL = ["function_call_arguments.delta", "function_call_arguments.done"]
CUSTOM = ["custom_tool_call_input.delta", "custom_tool_call_input.done"]

ask = partial(asking.answer, PATH)


def streamed(client: TestClient, body: dict[str, Any]) -> list[Any]:
    answer = client.post(PATH, json=body | {"stream": True})
    assert answer.status_code == 200, answer.text
    found = []
    for number, text in enumerate(answer.text.removesuffix("\n\n").split("\n\n")):
        name, data = text.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        assert event["sequence_number"] == number
        found.append(event)
    return found


def kinds(events: list[Any]) -> list[str]:
    """The types of events, without repeated deltas."""
    found = [one["type"].removeprefix("response.") for one in events]
    return [b for a, b in pairwise(["", *found]) if a != b or not b.endswith(".delta")]


def items(*parts: list[str], end: str = "completed") -> list[str]:
    """The types of events of a response with these items."""
    each = [["output_item.added", *part, "output_item.done"] for part in parts]
    return ["created", "in_progress", *chain(*each), end]


def without_chance(response: Any) -> Any:
    """A response without what differs from run to run."""
    chance = ("id", "call_id", "created_at", "timings", "metrics")
    if isinstance(response, dict):
        return {k: without_chance(v) for k, v in response.items() if k not in chance}
    return [*map(without_chance, response)] if isinstance(response, list) else response


def test_a_stream_has_the_whole_event_order_and_ends_with_the_whole_answer(
    client: TestClient,
) -> None:
    body = SUM | {"metadata": {"a": "b"}, "instructions": "Be brief.", "store": True}
    events = streamed(client, body)
    assert kinds(events) == items(TEXT)
    whole = ask(client, body)
    assert without_chance(events[-1]["response"]) == without_chance(whole)
    [message] = whole["output"]
    text = message["content"][0]["text"]
    assert text == "17 + 25 = 42"
    assert "".join(one["delta"] for one in events if one["type"].endswith("text.delta")) == text
    assert events[2]["item"] == {**message, "id": events[2]["item"]["id"]} | {
        "status": "in_progress",
        "content": [],
    }
    assert events[-2]["item"] == events[-1]["response"]["output"][0]
    own = [one for one in events if "item_id" in one]
    assert {(one["item_id"], one["output_index"]) for one in own} == {(events[2]["item"]["id"], 0)}
    assert events[0]["response"]["status"] == "in_progress"
    assert whole["status"] == "completed"
    assert whole["metadata"] == {"a": "b"}
    assert whole["instructions"] == "Be brief."
    assert whole["store"] is False
    usage = whole["usage"]
    assert usage["output_tokens"] == 13
    assert usage["total_tokens"] == usage["input_tokens"] + 13
    assert usage["input_tokens_details"]["cached_tokens"] >= 0


def test_drafts_do_not_change_the_output(client: TestClient) -> None:
    drafted, plain = (ask(client, SUM | {"draft": draft}) for draft in (None, False))
    assert drafted["output_hash"] == plain["output_hash"]
    assert plain["timings"]["draft_n"] == 0


@pytest.mark.parametrize(("summary", "part"), [(None, THOUGHT), ("auto", SUMMARY)])
def test_a_thought_is_an_item_of_its_own(
    client: TestClient, summary: str | None, part: list[str]
) -> None:
    body = SUM | {"reasoning": {"effort": "low", "summary": summary}}
    events = streamed(client, body)
    assert kinds(events) == items(part, TEXT)
    response = events[-1]["response"]
    thought, message = response["output"]
    shown = thought["summary" if summary else "content"][0]["text"]
    assert "7 + 5 = 12" in shown
    assert message["content"][0]["text"] == "17 + 25 = 42"
    assert response["usage"]["output_tokens_details"]["reasoning_tokens"] > 0
    # The next turn takes all of it back.
    again = [{"role": "user", "content": SUM["input"]}, *response["output"]]
    ask(
        client, SUM | {"input": [*again, {"role": "user", "content": "Hi"}], "max_output_tokens": 1}
    )


def test_thoughts_one_after_another_are_one_thought_of_the_answer_that_follows() -> None:
    thoughts = [
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": t}]} for t in "ab"
    ]
    question = {"role": "user", "content": "Hi"}
    messages, _ = messages_of([question, *thoughts, {"role": "assistant", "content": "Hello"}])
    assert messages[1:] == [{"role": "assistant", "content": "Hello", "reasoning": "a\nb"}]


def test_a_tool_is_called_and_its_result_is_used(client: TestClient) -> None:
    events = streamed(client, CLOCK)
    assert kinds(events) == items(CALL)
    [call] = events[-1]["response"]["output"]
    assert call["name"] == "get_time"
    arguments = "".join(one["delta"] for one in events if one["type"].endswith("arguments.delta"))
    assert arguments == call["arguments"] == '{"city":"Paris"}'
    result = {
        "type": "function_call_output",
        "call_id": call["call_id"],
        "output": "9:30",
    }
    conversation = [{"role": "user", "content": CLOCK["input"]}, call, result]
    answer = ask(client, CLOCK | {"input": conversation})
    assert answer["output"][0]["content"][0]["text"] == "It is 9:30 in Paris."


def test_a_function_of_a_namespace_is_called_by_both_of_its_names(client: TestClient) -> None:
    group = {
        "type": "namespace",
        "name": "mcp__clock",
        "description": "",
        "tools": [RESPONSES_TOOL],
    }
    body = CLOCK | {"tools": [group], "tool_choice": "required"}
    [call] = ask(client, body)["output"]
    assert (call["namespace"], call["name"]) == ("mcp__clock", "get_time")
    result = {"type": "function_call_output", "call_id": call["call_id"], "output": "9:30"}
    conversation = [{"role": "user", "content": CLOCK["input"]}, call, result]
    ask(client, CLOCK | {"input": conversation, "tools": [group], "max_output_tokens": 1})


def test_a_model_may_leave_the_namespace_out_if_one_tool_alone_has_the_name() -> None:
    def called(*namespaces: str) -> tuple[Any, ...]:
        groups = [
            {"type": "namespace", "name": name, "tools": [RESPONSES_TOOL]} for name in namespaces
        ]
        client = scripted([*call_chunks(0, "get_time", "{}"), last_chunk()])
        [call] = ask(client, CLOCK | {"tools": groups})["output"]
        return call.get("namespace"), call["name"]

    assert called("mcp__clock") == ("mcp__clock", "get_time")
    assert called("mcp__clock", "mcp__watch") == (None, "get_time")


def test_a_custom_tool_gets_text(client: TestClient) -> None:
    tool = {
        "type": "custom",
        "name": "patch",
        "description": "Change files.",
        "format": {"type": "grammar", "syntax": "lark", "definition": "start: /.+/"},
    }
    body = {
        "input": "Change it.",
        "tools": [tool],
        "tool_choice": {"type": "custom", "name": "patch"},
    }
    patches = scripted([*call_chunks(0, "patch", '{"input": "+', ' a\\n"}'), last_chunk()])
    events = streamed(patches, body)
    assert kinds(events) == items(CUSTOM)
    [call] = events[-1]["response"]["output"]
    assert (call["type"], call["name"], call["input"]) == ("custom_tool_call", "patch", "+ a\n")
    result = {"type": "custom_tool_call_output", "call_id": call["call_id"], "output": "Done."}
    again = [{"role": "user", "content": "Change it."}, call, result]
    ask(client, {"input": again, "tools": [tool], "max_output_tokens": 1})


def test_each_of_several_calls_is_an_item() -> None:
    chunks = [Chunk("I look.", [1]), *call_chunks(0, "f", '{"n": ', "0}")]
    chunks += [*call_chunks(1, "g", "{}"), last_chunk("Done.")]
    client = scripted(chunks)
    events = streamed(client, SUM)
    assert kinds(events) == items(TEXT, CALL, CALL, TEXT)
    output = events[-1]["response"]["output"]
    assert [one["output_index"] for one in events if one["type"].endswith("item.done")] == [
        0,
        1,
        2,
        3,
    ]
    assert [one.get("arguments") for one in output] == [None, '{"n": 0}', "{}", None]
    assert kinds(streamed(client, SUM | {"parallel_tool_calls": False})) == items(TEXT, CALL)


def test_a_call_that_is_cut_off_is_incomplete() -> None:
    first, second, *_ = call_chunks(0, "write", '{"text": "Once', '"}')
    end = Chunk("", [], "length", Stats(), kind="tool_call")
    events = streamed(scripted([first, second, end]), SUM)
    assert kinds(events) == items(CALL[:1], end="incomplete")
    response = events[-1]["response"]
    assert response["output"][0]["status"] == "incomplete"
    assert response["output"][0]["arguments"] == '{"text": "Once'
    assert response["incomplete_details"] == {"reason": "max_output_tokens"}


def test_too_few_tokens_make_a_response_incomplete(client: TestClient) -> None:
    answer = ask(client, SUM | {"max_output_tokens": 3})
    assert answer["status"] == "incomplete"
    assert answer["incomplete_details"] == {"reason": "max_output_tokens"}
    assert answer["output"][0]["status"] == "incomplete"


def test_logprobs_are_in_the_deltas_and_in_the_answer(client: TestClient) -> None:
    body = SUM | {"include": ["message.output_text.logprobs"], "top_logprobs": 1}
    body |= {"stop": ["= 43"]}  # text is held back that may become this
    events = streamed(client, body)
    found = [e for one in events if one["type"].endswith("text.delta") for e in one["logprobs"]]
    [part] = events[-1]["response"]["output"][0]["content"]
    assert part["logprobs"] == found
    assert "".join(one["token"] for one in found) == part["text"]
    assert [one["top_logprobs"][0]["token"] for one in found] == [one["token"] for one in found]
    assert ask(client, SUM)["output"][0]["content"][0]["logprobs"] == []


@pytest.mark.parametrize("cut", [None, -2])
def test_logprobs_wait_for_their_text(text: Text, cut: int | None) -> None:
    # cut: the text of the last tokens never comes, as before a stop string.
    chunks = [Chunk("It is ", [1]), *held_back(text)[:cut], last_chunk()]
    events = streamed(scripted(chunks, text=text), SUM | {"top_logprobs": 0})
    [part] = events[-1]["response"]["output"][0]["content"]
    assert [one["token"] for one in part["logprobs"]] == ["1", "+", "2"][: cut and cut + 1]
    deltas = [one for one in events if one["type"].endswith("text.delta")]
    assert [entry for one in deltas for entry in one["logprobs"]] == part["logprobs"]


def test_an_answer_follows_its_schema(client: TestClient) -> None:
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "name": "person", "strict": True, "schema": schema}
    body = {"input": "JSON for: Anna is 31 years old.", "temperature": 0, "text": {"format": form}}
    answer = ask(client, body)
    text = answer["output"][0]["content"][0]["text"]
    assert json.loads(text) == {"name": "Anna", "age": 31}
    assert answer["text"]["format"] == form


def test_an_error_after_output_is_a_failed_response() -> None:
    events = streamed(scripted([Chunk("Hel", [1])], MgmError("the device is gone")), SUM)
    assert events[-1]["type"] == "response.failed"
    assert events[-1]["response"]["status"] == "failed"
    assert events[-1]["response"]["error"]["code"] == "internal_error"


def test_a_stream_has_events_while_its_prompt_is_read(engine: Engine) -> None:
    app = app_of(Service(engine, Settings(("demo",), heartbeat_seconds=0.01)))
    with TestClient(app, "http://localhost") as client:
        found = streamed(client, {"input": "Hello " * 100, "max_output_tokens": 1})
    kinds = [one["type"].removeprefix("response.") for one in found]
    assert kinds[:3] == ["created", "in_progress", "in_progress"]
    assert kinds[-1] == "incomplete"


def test_a_stream_over_the_context_fails_with_the_code_that_codex_compacts_for(
    client: TestClient,
) -> None:
    body = SUM | {"input": "a " * 4096}
    events = streamed(client, body)
    assert kinds(events) == items(end="failed")
    error = events[-1]["response"]["error"]
    assert error["code"] == "context_length_exceeded"
    assert error["message"].startswith("prompt is too long: ")
    answer = client.post(PATH, json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "context_length_exceeded"
    assert answer.json()["error"]["param"] == "input"


@pytest.mark.parametrize(
    ("body", "field", "way_out"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id", "whole conversation"),
        ({"conversation": {"id": "c"}}, "conversation", "whole conversation"),
        ({"prompt": {"id": "p"}}, "prompt", "as input"),
        ({"background": True}, "background", "not supported"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input.0", "item itself"),
        ({"input": [{"type": "dream"}]}, "input.0.type", "'dream' is not supported"),
        ({"input": [{"content": "x"}]}, "input.0.role", "string"),
        ({"input": []}, "input", "no messages"),
        ({"input": 5}, "input", "input"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
            "input.0.content.0",
            "only text",
        ),
        (
            {
                "input": [
                    {"type": "web_search_call", "id": "w"},
                    {"role": "user", "content": "Hi"},
                    {"type": "function_call", "name": "f", "arguments": "{}", "call_id": "c"},
                ]
            },
            "input.2",
            "has no result",
        ),
        ({"tools": [{"type": "function"}]}, "tools.0.name", "text"),
        ({"tool_choice": "get_time"}, "tool_choice", "auto, none, required"),
        ({"tool_choice": {"type": "web_search"}}, "tool_choice", "auto, none, required"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format.schema", "missing"),
        ({"max_output_tokens": 0}, "max_output_tokens", "at least 1"),
        ({"top_logprobs": 21}, "top_logprobs", "20"),
        ({"reasoning": {"effort": "huge"}}, "reasoning.effort", "none"),
        ({"temperature": -1}, "temperature", "0"),
    ],
)
def test_what_a_response_cannot_have_is_refused(
    client: TestClient, body: dict[str, Any], field: str, way_out: str
) -> None:
    answer = client.post(PATH, json=SUM | body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == field
    assert way_out in error["message"]


def test_items_become_the_turns_that_they_came_from(client: TestClient) -> None:
    body = {
        "instructions": "You are brief.",
        "input": [
            {"role": "developer", "content": [{"type": "input_text", "text": "Use tools."}]},
            {"type": "message", "role": "user", "content": "What time is it in Rome?"},
            {"type": "reasoning", "id": "rs_1", "summary": [], "content": None},
            {
                "type": "reasoning",
                "summary": [{"type": "summary_text", "text": "I ask the clock."}],
                "encrypted_content": None,
            },
            {
                "type": "function_call",
                "name": "get_time",
                "arguments": '{"city":"Rome"}',
                "call_id": "a",
            },
            {
                "type": "function_call",
                "name": "get_time",
                "arguments": '{"city":"Oslo"}',
                "call_id": "b",
            },
            {
                "type": "function_call_output",
                "call_id": "b",
                "output": [{"type": "input_text", "text": "8:00"}],
            },
            {"type": "function_call_output", "call_id": "a", "output": "9:00"},
            {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "Nine."}]},
            {"type": "web_search_call", "id": "ws_1", "status": "completed"},
            {
                "type": "message",
                "role": "assistant",
                "content": [{"type": "output_text", "text": "9."}],
            },
            {"type": "agent_message", "content": [{"type": "input_text", "text": "And Oslo?"}]},
        ],
    }
    messages, fields = messages_of(body["input"])
    assert [one["role"] for one in messages] == [
        "developer",
        "user",
        "assistant",
        "tool",
        "tool",
        "assistant",
        "user",
    ]
    assert fields == [f"input.{number}" for number in (0, 1, 3, 6, 7, 8, 11)]
    assert (messages[5]["reasoning"], messages[5]["content"]) == ("Nine.", "9.")
    turn = messages[2]
    assert turn["reasoning"] == "I ask the clock."
    assert [one["id"] for one in turn["tool_calls"]] == ["a", "b"]
    assert (
        ask(client, body | {"max_output_tokens": 1, "tools": [RESPONSES_TOOL]})["status"]
        == "incomplete"
    )
