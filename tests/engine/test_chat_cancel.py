"""Turns that are left early or cancelled: they end, and only what has a result is kept."""

import asyncio
import threading
from typing import Any

import pytest

from helpers.chat_script import Endless, Scripted, add, call, shape
from mlx_gemma_mtp.engine.chat import Chat
from mlx_gemma_mtp.errors import UsageError
from mlx_gemma_mtp.text.tokenizer import Text

SECONDS = 60


def test_a_turn_that_is_left_early_keeps_calls_with_results_and_the_text_so_far(text: Text) -> None:
    made = call("add", {"a": 1})
    for stop_at, kept in {
        "tool_call": [],
        "tool_result": ["Hi", ["add"], {"value": 2}],
        "text": ["Hi", ["add"], {"value": 2}, "So far"],
    }.items():
        chat = Scripted(text, made, Endless(), "Next.").chat(add)
        for event in chat.stream("Hi"):
            if event.kind == stop_at:
                break
        assert shape(chat.messages) == kept, stop_at
        chat = Scripted(text, made, Endless(), "Next.").chat(add)

        async def leave(chat: Chat = chat, stop_at: str = stop_at) -> list[Any]:
            async for event in chat.stream("Hi"):
                if event.kind == stop_at:
                    break
            return shape(chat.messages)  # at once

        assert asyncio.run(leave()) == kept, stop_at
    chat = Scripted(text, Endless(), "Next.").chat()
    next(iter(chat.stream("Hi")))
    chat.send("Next")
    assert shape(chat.messages) == ["Hi", "So far", "Next", "Next."]


def test_a_turn_can_be_cancelled_from_elsewhere(text: Text) -> None:
    chat = Scripted(text, Endless(), "Next.").chat()
    turn, seen = chat.stream("Hi"), []
    for event in turn:
        seen.append(event.kind)
        threading.Thread(target=chat.cancel).start()
    assert seen == ["text", "end"]
    assert shape(chat.messages) == ["Hi", "So far"]
    with pytest.raises(UsageError, match="once"):
        list(turn)
    chat.cancel()  # nothing is under way
    assert chat.send("Next").text == "Next."


def test_a_cancelled_task_cancels_the_turn(text: Text) -> None:
    endless = Endless()
    chat = Scripted(text, endless).chat()

    async def cancelled() -> None:
        task = asyncio.create_task(chat.asend("Hi"))
        while not endless._chunks:
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
    assert endless._stopping
    assert shape(chat.messages) in ([], ["Hi", "So far"])  # by what the task had read


def test_no_more_calls_are_run_once_a_turn_is_cancelled(text: Text) -> None:
    ran = []

    def stop() -> None:
        """Cancel the turn."""
        ran.append(1)
        chat.cancel()

    chat = Scripted(text, ("Well.", call("stop", {}), call("stop", {}))).chat(stop)
    assert chat.send("Hi").tool_calls
    assert ran == [1]
    assert shape(chat.messages) == ["Hi", ["stop"], {"value": None}]
    assert chat.messages[1]["content"] == "Well."


@pytest.mark.parametrize("in_loop", [True, False])
def test_an_async_function_is_cancelled_with_its_turn(text: Text, in_loop: bool) -> None:
    ended = []

    async def wait() -> None:
        """Wait."""
        threading.Thread(target=chat.cancel).start()
        try:
            await asyncio.sleep(SECONDS)
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise
        ended.append("slept")

    chat = Scripted(text, (call("add", {"a": 1}), call("wait", {}))).chat(add, wait)
    done = asyncio.run(chat.asend("Hi")) if in_loop else chat.send("Hi")
    assert [one.name for one in done.tool_calls] == ["add", "wait"]
    assert ended == ["cancelled"]
    assert shape(chat.messages) == ["Hi", ["add"], {"value": 2}]


def test_a_function_that_cancels_itself_has_failed(text: Text) -> None:
    async def quit() -> None:
        """Quit."""
        raise asyncio.CancelledError

    chat = Scripted(text, call("quit", {}), "Well.").chat(quit)
    assert asyncio.run(chat.asend("Hi")).text == "Well."
    assert "cancelled" in chat.messages[2]["content"]["error"]
