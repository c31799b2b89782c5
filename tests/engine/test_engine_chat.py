"""The messages of a chat: they can be replaced, and what is no message or tool is refused."""

import copy
import pickle
import re
from pathlib import Path
from typing import Any, cast

import pytest

from helpers.chat_script import Endless, Scripted, add, call, shape, user
from mlx_gemma_mtp import Engine
from mlx_gemma_mtp.engine.chat import Chat, first_messages
from mlx_gemma_mtp.errors import PromptTooLongError, UsageError
from mlx_gemma_mtp.text.messages import Message
from mlx_gemma_mtp.text.tokenizer import Text


def test_messages_without_words_are_refused(text: Text) -> None:
    chat = Scripted(text).chat()
    nothing: list[Any] = ["", " \n", [], [{"type": "text", "text": " "}]]
    for content in nothing:
        with pytest.raises(UsageError, match="the message is empty"):
            chat.send(content)


def test_messages_can_be_replaced_between_turns(text: Text) -> None:
    engine = Scripted(text, "Hello.", Endless(), "Bye.")
    chat = engine.chat()
    chat.send("Hi")
    chat.messages = []
    assert chat.messages == []
    other: list[Message] = [user("Hey"), {"role": "assistant", "content": "Ho"}]
    chat.messages = other
    other[0]["content"] = "changed"
    for wrong in ("Hi", [{"role": "me"}], [{"role": "tool", "content": "5"}]):
        with pytest.raises(UsageError, match="message"):
            chat.messages = cast(Any, wrong)
    assert shape(chat.messages) == ["Hey", "Ho"]
    events = cast(Any, iter(chat.stream("Wait")))
    next(events)
    with pytest.raises(UsageError, match="busy"):
        chat.messages = []
    events.close()
    chat.send("Bye")
    assert shape(engine.asked[-1]) == ["Hey", "Ho", "Wait", "So far", "Bye"]


def test_a_full_chat_says_that_old_messages_can_be_dropped(text: Text) -> None:
    full = PromptTooLongError("the prompt has 9 tokens: shorten it")
    chat = Scripted(text, full, "Hello.", full).chat()
    with pytest.raises(PromptTooLongError, match=r"shorten it$"):
        chat.send("A long message")
    chat.send("Hi")
    with pytest.raises(PromptTooLongError, match=r"or drop old messages: chat\.messages = …$"):
        chat.send("Next")
    assert shape(chat.messages) == ["Hi", "Hello."]


def test_a_chat_and_its_turns_are_not_copied(text: Text) -> None:
    chat = Scripted(text, "Hi").chat()
    for one, instead in ((chat, "fork() copies it"), (chat.stream("Hello"), "read its events")):
        for send in (copy.copy, copy.deepcopy, pickle.dumps):
            with pytest.raises(UsageError, match=re.escape(instead)):
                send(one)


def test_a_chat_and_its_turns_show_what_they_are(text: Text) -> None:
    chat = Scripted(text, call("add", {"a": 1}), "Two.").chat(add)
    turn = chat.stream("Hi")
    assert (repr(chat), repr(turn)) == ("<Chat 0 messages>", "<Turn new, 0 rounds>")
    for event in turn:
        if event.kind == "tool_result":
            assert (repr(chat), repr(turn)) == (
                "<Chat 0 messages, busy>",
                "<Turn running, 1 rounds>",
            )
            assert turn.completion is None
        elif event.kind == "text":
            assert turn.text == "Two."
    assert repr(chat) == "<Chat 4 messages>"
    assert turn.completion is not None
    assert turn.text == turn.completion.text == "Two."
    cancel = chat.stream("Hi")
    cancel.cancel()
    assert repr(cancel) == "<Turn cancelled, 0 rounds>"
    assert not {"claim", "release", "submit"} & {*dir(chat)}


def test_a_second_turn_at_the_same_time_is_refused(text: Text, tmp_path: Path) -> None:
    chat = Scripted(text, Endless()).chat()
    events = iter(chat.stream("Hi"))
    next(events)
    for use in (lambda: chat.send("Too"), chat.fork, lambda: chat.save(tmp_path / "chat")):
        with pytest.raises(UsageError, match="busy"):
            use()
    cast(Any, events).close()
    assert shape(chat.messages) == ["Hi", "So far"]


def test_a_chat_is_refused_what_it_cannot_use(text: Text) -> None:
    engine = cast(Engine, Scripted(text))
    wrong: list[Any] = [
        ("functions, not schemas", [{"name": "f"}], None, 8),
        ("two tools", [add, add], None, 8),
        ("SamplingParams", [], {"max_tokens": 3}, 8),
        ("max_rounds", [], None, 0),
    ]
    for why, tools, params, rounds in wrong:
        with pytest.raises(UsageError, match=why):
            Chat(engine, [], tools, params, rounds, 0, None, cast(Any, None))
    for name, priority, timeout in (("priority", "high", None), ("timeout", 0, -1)):
        with pytest.raises(UsageError, match=name):
            Chat(engine, [], None, None, 8, cast(Any, priority), timeout, cast(Any, None))
    with pytest.raises(UsageError, match="system"):
        first_messages(cast(Any, 5), [])
    with pytest.raises(UsageError, match="message 1"):
        first_messages(None, [{"role": "me"}])
    old = [{"role": "developer", "content": "Old."}, user("Hi")]
    assert shape(first_messages("New.", old)) == ["New.", "Hi"]
    assert shape(first_messages("", old)) == ["Hi"]
    with pytest.raises(UsageError, match="give one of them"):
        first_messages("New.", old, replace=False)
    assert Chat(engine, [], None, None, 8, 0, None, cast(Any, None)).tools == []
    with pytest.raises(UsageError, match="path"):
        Scripted(text).chat().save(cast(Any, None))
