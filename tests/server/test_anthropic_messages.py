"""Anthropic's messages and tools in the engine's terms."""

from __future__ import annotations

from typing import Any

import pytest

from mlx_gemma_mtp.server.failures import Failure
from mlx_gemma_mtp.server.protocols.anthropic_messages import Turn, tools_of, turns_of
from mlx_gemma_mtp.text.messages import Message, check_messages

SCHEMA = {"type": "object", "properties": {"path": {"type": "string"}}}
READ = {"name": "Read", "description": "Read a file.", "input_schema": SCHEMA}
SEARCH = {"type": "web_search_20250305", "name": "web_search", "max_uses": 8}


def turn(role: str, content: Any) -> Turn:
    return Turn.model_validate({"role": role, "content": content})


def turns(*contents: Any, system: Any = None) -> list[Message]:
    """Turns of the user and the assistant, one after another."""
    roles = ("user", "assistant") * len(contents)
    found = turns_of(system, [*map(turn, roles, contents)])
    check_messages(found)
    return found


def use(id_: str, **arguments: Any) -> dict[str, Any]:
    return {"type": "tool_use", "id": id_, "name": "Read", "input": arguments}


def result(id_: str, content: Any = None, **others: Any) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": id_, "content": content, **others}


def text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text, "cache_control": {"type": "ephemeral"}}


def refused(*contents: Any, system: Any = None) -> Failure:
    with pytest.raises(Failure) as caught:
        turns(*contents, system=system)
    assert caught.value.status == 400
    return caught.value


def test_the_results_of_tools_follow_their_calls_whatever_else_the_user_says() -> None:
    thought = {"type": "thinking", "thinking": "Look.\n", "signature": "unsigned"}
    redacted = {"type": "redacted_thinking", "data": "x"}
    calls = [thought, redacted, text("I look."), use("toolu_1", path="a"), use("x y", path="b")]
    results = [text("<reminder>"), result("x y", [text("B"), text("b")]), result("toolu_1", "A")]
    question, called, second, first, reminder = turns("Read.", calls, results)
    assert question == {"role": "user", "content": "Read."}
    assert called["content"] == "I look."
    assert called["reasoning"] == "Look."
    assert [one["function"]["arguments"] for one in called["tool_calls"]] == [
        {"path": "a"},
        {"path": "b"},
    ]
    assert second == {"role": "tool", "tool_call_id": "x y", "content": "B\nb"}
    assert first == {"role": "tool", "tool_call_id": "toolu_1", "content": "A"}
    assert reminder == {"role": "user", "content": "<reminder>"}


def test_an_error_of_a_tool_is_told_from_its_result() -> None:
    failed = [result("1", "no such file", is_error=True), result("2", is_error=False)]
    *_, first, second = turns("Read.", [use("1"), use("2")], failed)
    assert first["content"] == {"error": "no such file"}
    assert second["content"] == ""


def test_an_image_in_a_result_does_not_end_the_conversation() -> None:
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "="}}
    found = {"type": "tool_reference", "tool_name": "Grep"}
    *_, shown = turns("Read.", [use("1")], [result("1", [text("a.png:"), image, found])])
    assert shown["content"] == (
        "a.png:\n[image: it cannot be shown, only text can]\nThe tool Grep is available."
    )


def test_a_document_of_text_is_text() -> None:
    source = {"type": "text", "media_type": "text/plain", "data": "To be"}
    [shown] = turns([{"type": "document", "source": source, "title": "Hamlet"}, text("Continue.")])
    assert shown["content"] == "To be\nContinue."


def test_instructions_are_the_same_in_all_requests_of_claude_code() -> None:
    def asked(number: str) -> list[Message]:
        line = f"x-anthropic-billing-header: cc_version=2.1; cc_entrypoint=cli; cch={number};"
        return turns("Hi", system=[text(line), text("You are an agent."), text("Be short.")])

    assert asked("a1b2c") == asked("00000")
    assert asked("a1b2c")[0] == {"role": "system", "content": "You are an agent.\n\nBe short."}
    assert turns("Hi", system="x-anthropic-billing-header: cch=1;\nYou are.")[0]["content"] == (
        "You are."
    )


def test_instructions_in_mid_conversation_stay_where_they_are() -> None:
    each = [("user", "Hi"), ("system", "Speak French."), ("assistant", "Salut"), ("user", "?")]
    found = turns_of("You are.", [turn(*one) for one in each])
    assert [one["content"] for one in found] == ["You are.", "Hi", "Speak French.", "Salut", "?"]
    assert [one["role"] for one in found][:3] == ["system", "user", "user"]


@pytest.mark.parametrize(
    ("contents", "at"),
    [
        (([{"type": "image", "source": {}}],), "messages.0.content.0"),
        (([text("a"), {"type": "document", "source": {"type": "url"}}],), "messages.0.content.1"),
        (([{"type": "text"}],), "messages.0.content.0"),
        (([{}],), "messages.0.content.0"),
        (([use("1")],), "messages.0.content.0"),
        (("a", [result("1")]), "messages.1.content.0"),
        (("a", [{"type": "tool_use", "id": "1", "name": "Read"}]), "messages.1.content.0"),
        (("a", [{"type": "server_tool_use", "id": "1"}]), "messages.1.content.0"),
        (("a", [use("1")], [result("1", 5)]), "messages.2.content.0.content"),
        (("a", [use("1")], [result("1", [{"no": 1}])]), "messages.2.content.0.content.0"),
        (("a", [use("1")], [result("1", ["text"])]), "messages.2.content.0.content.0"),
        (("a", [use("1")], [result("2")]), "messages.1"),
        (("a", [use("1")], "b"), "messages.1"),
        (("a", "b", [result("1")]), "messages.2"),
    ],
)
def test_a_block_that_is_wrong_is_named(contents: tuple[Any, ...], at: str) -> None:
    failure = refused(*contents)
    assert failure.field == at
    assert failure.message.startswith(at)


def test_tools_that_come_and_go_in_mid_conversation_are_named() -> None:
    changes = [
        {"type": kind, "tool": {"type": "tool_reference", "name": "Grep"}}
        for kind in ("tool_addition", "tool_removal")
    ]
    *_, told = turns_of(None, [turn("user", "Hi"), turn("system", changes)])
    assert told["content"] == "The tool Grep is available.\nThe tool Grep is no longer available."


def test_tools_of_anthropics_servers_are_left_out_next_to_others() -> None:
    [found] = tools_of([READ | {"strict": True, "defer_loading": True}, SEARCH])
    assert found["function"] == {
        "name": "Read",
        "description": "Read a file.",
        "parameters": SCHEMA,
    }
    assert tools_of([READ | {"type": "custom"}]) == [found]
    assert tools_of([]) == []


@pytest.mark.parametrize("tools", [[SEARCH], [{"name": "Read"}], [{"type": "custom"}], [{}]])
def test_tools_that_nobody_can_call_are_refused(tools: list[dict[str, Any]]) -> None:
    with pytest.raises(Failure, match="input_schema"):
        tools_of(tools)
