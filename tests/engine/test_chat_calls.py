"""What a chat's model calls is run, and results and errors go back to it."""

import asyncio
import threading
from typing import Any, cast

import pytest

from helpers.chat_script import Scripted, add, call, later, shape
from mlx_gemma_mtp import MgmError, SamplingParams
from mlx_gemma_mtp.engine.turn import ChatEvent
from mlx_gemma_mtp.errors import (
    GenerationError,
    NotEnoughMemoryError,
    PromptTooLongError,
    UsageError,
)
from mlx_gemma_mtp.text.tokenizer import Text

FULL = PromptTooLongError("the prompt has 9 tokens: shorten it")


def fail(why: str) -> str:
    """Fail."""
    raise KeyError(why)


def test_calls_are_run_and_the_model_answers_with_their_results(text: Text) -> None:
    calls = (call("add", {"a": 2, "b": 3}), call("later", {"text": "x"}), call("add", {"a": 1.0}))
    engine = Scripted(text, ("Let me see.", *calls), "It is 5.", "Bye.")
    chat = engine.chat(add, later)
    assert chat.send("What is 2 + 3?").text == "It is 5."
    results = [{"value": 5}, {"text": "x"}, {"value": 2}]
    assert shape(chat.messages) == [
        "What is 2 + 3?", ["add", "later", "add"], *results, "It is 5.",
    ]  # fmt: skip
    called, *answers = chat.messages[1:5]
    assert called["content"] == "Let me see."
    assert [one["id"] for one in called["tool_calls"]] == [m["tool_call_id"] for m in answers]
    assert chat.send([{"type": "text", "text": "Bye"}]).text == "Bye."
    assert engine.asked[-1] == chat.messages[:-1]


def test_what_goes_wrong_in_a_call_goes_back_to_the_model(text: Text) -> None:
    wrong = {
        "there is no tool named sub": call("sub", {}),
        "unknown arguments: c": call("add", {"a": 1, "c": 2}),
        "missing arguments: a": call("add", {}),
        "a must be an integer": call("add", {"a": "1"}),
        "cannot be read": call("add", None),
        "KeyError: 'no'": call("fail", {"why": "no"}),
    }
    chat = Scripted(text, tuple(wrong.values()), "Sorry.").chat(add, fail)
    chat.send("Hi")
    for why, message in zip(wrong, chat.messages[2:], strict=False):
        assert why in message["content"]["error"]


def test_after_the_last_round_the_model_must_answer(text: Text) -> None:
    one = call("add", {"a": 1})
    engine = Scripted(text, one, one, ("Well.", one))
    chat = engine.chat(add, max_rounds=2)
    events = list(chat.stream("Hi"))
    assert [params.tool_choice for params in engine.params] == ["auto", "auto", "none"]
    assert shape(chat.messages) == ["Hi", ["add"], {"value": 2}, ["add"], {"value": 2}, "Well."]
    assert [event.kind for event in events] == [*["tool_call", "tool_result"] * 2, "text", "end"]


def test_a_call_that_must_be_made_is_made_once(text: Text) -> None:
    engine = Scripted(text, call("add", {"a": 1}), "2")
    chat = engine.chat(add)
    chat.params = SamplingParams(tool_choice="required")
    chat.send("Hi")
    assert [params.tool_choice for params in engine.params] == ["required", "auto"]


def test_the_events_are_the_same_in_an_event_loop(text: Text) -> None:
    made = call("add", {"a": 1})
    script = (("Let ", "me see.", made, call("later", {"text": "x"})), "Done.")

    async def awaited() -> list[ChatEvent]:
        return [event async for event in Scripted(text, *script).chat(add, later).stream("Hi")]

    events = list(Scripted(text, *script).chat(add, later).stream("Hi"))
    assert asyncio.run(awaited()) == events
    kinds = ["text", "text", "tool_call", "tool_call", "tool_result", "tool_result", "text", "end"]
    assert [event.kind for event in events] == kinds
    assert (events[2].call, events[4].result) == (made, {"value": 2})


def test_functions_run_where_the_turn_is_read_and_never_on_the_worker(text: Text) -> None:
    threads = []

    def here() -> None:
        """Note the thread."""
        threads.append(threading.get_ident())

    async def in_loop() -> None:
        """Note the thread."""
        here()

    both = (call("here", {}), call("in_loop", {}))
    Scripted(text, both, "").chat(here, in_loop).send("Hi")
    asyncio.run(Scripted(text, both, "").chat(here, in_loop).asend("Hi"))
    mine = threading.get_ident()
    assert [one == mine for one in threads] == [True, True, False, True]


def test_async_functions_in_a_loop_need_its_own_way(text: Text) -> None:
    async def blocked() -> None:
        Scripted(text).chat(later).send("Hi")

    with pytest.raises(UsageError, match="asend"):
        asyncio.run(blocked())


def test_a_turn_that_fails_leaves_no_trace_but_calls_that_were_run(text: Text) -> None:
    made, broken = call("add", {"a": 1}), GenerationError("broken")
    chat = Scripted(text, "Hello.", broken, made, broken, "Again.").chat(add)
    chat.send("Hi")
    before = chat.messages
    with pytest.raises(GenerationError):
        chat.send("Add")
    assert chat.messages == before
    with pytest.raises(UsageError, match="content"):
        chat.send(cast(Any, 5))
    assert chat.messages == before
    with pytest.raises(GenerationError):
        chat.send("Add")
    chat.send("And?")
    assert shape(chat.messages[2:]) == ["Add", ["add"], {"value": 2}, "And?", "Again."]


def read(pages: int) -> str:
    """Read pages."""
    return "word " * 100 * pages


@pytest.mark.parametrize("error", [FULL, NotEnoughMemoryError("no memory: shorten the request")])
def test_the_model_is_asked_again_without_a_result_that_is_too_long(
    text: Text, error: MgmError
) -> None:
    calls = (call("read", {"pages": 1}), call("read", {"pages": 9}))
    script = (calls, error, "Done.")
    chat = Scripted(text, *script).chat(read)
    assert chat.send("Read").text == "Done."
    *_, first, second, _ = chat.messages
    assert first["content"] == read(1)
    note = "the result of read is too long: 4,502 characters. Ask for less."
    assert second["content"] == {"error": note}
    other = Scripted(text, *script).chat(read)
    assert asyncio.run(other.asend("Read")).text == "Done."
    assert shape(other.messages) == shape(chat.messages)


def test_calls_that_were_run_are_kept_if_no_prompt_with_them_fits(text: Text) -> None:
    chat = Scripted(text, call("read", {"pages": 1}), FULL, FULL).chat(read)
    with pytest.raises(PromptTooLongError, match="the calls of read are kept"):
        chat.send("Read")
    assert shape(chat.messages)[:2] == ["Read", ["read"]]
    assert "too long" in chat.messages[2]["content"]["error"]
