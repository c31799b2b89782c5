"""Chats with the demo pair: it calls functions, and a chat is forked and saved."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from helpers.chat_script import user
from mlx_gemma_mtp import Engine, MgmError, SamplingParams, load
from mlx_gemma_mtp.errors import CheckpointError, UsageError

GREEDY = SamplingParams(temperature=0, max_tokens=60)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with load("demo") as engine:
        yield engine


def get_time(city: str) -> dict[str, str]:
    """Get the time in a city.

    Args:
        city: The city.
    """
    return {"time": "9:30" if city == "Paris" else "?"}


def test_the_demo_calls_a_function_and_answers(engine: Engine) -> None:
    chat = engine.chat(tools=[get_time], params=GREEDY)
    events = list(chat.stream("What time is it in Paris?"))
    (called,) = [event for event in events if event.kind == "tool_result"]
    assert called.result == {"time": "9:30"}
    done = events[-1].completion
    assert done is not None
    assert "9:30" in done.text
    assert done.stats.reused_tokens > 0  # the session was used


def test_the_demo_takes_functions_as_tools_in_every_way(engine: Engine) -> None:
    question, tools = "What time is it in Paris?", [get_time]
    done = [
        engine.submit(question, GREEDY, tools=tools).result(),
        engine.stream([user(question)], GREEDY, tools=tools).result(),
        *engine.generate([question, question], GREEDY, tools=tools),
    ]
    for one in done:
        (made,) = one.tool_calls
        assert (made.name, made.arguments) == ("get_time", {"city": "Paris"})
        assert one.tokens == done[0].tokens
    assert len({one.tool_calls[0].id for one in done}) == len(done)
    for wrong in ({"type": "function"}, [5], "f"):
        with pytest.raises(UsageError, match="tool"):
            engine.submit(question, GREEDY, tools=cast(Any, wrong))
    with pytest.raises(UsageError, match="chat template"):
        engine.submit([5, 6], GREEDY, tools=tools)


def test_the_arguments_of_a_call_come_as_json_before_it_is_complete(engine: Engine) -> None:
    plain = replace(GREEDY, num_draft_tokens=0)  # a chunk for each token
    generation = engine.stream("What time is it in Paris?", plain, tools=[get_time])
    deltas = [(delta, chunk.tool_call) for chunk in generation for delta in chunk.call_deltas]
    (call,) = generation.result().tool_calls
    assert {delta.id for delta, _ in deltas} == {call.id}
    assert "".join(delta.name or "" for delta, _ in deltas) == call.name
    assert json.loads("".join(delta.arguments for delta, _ in deltas)) == call.arguments
    early = "".join(delta.arguments for delta, complete in deltas if complete is None)
    assert early == '{"city":"Paris'


def test_a_chat_is_forked_saved_and_restored_with_its_session(
    engine: Engine, tmp_path: Path
) -> None:
    path = tmp_path / "chat"
    engine.chat().save(path)  # nothing was said yet
    assert engine.chat(saved=path).messages == []
    chat = engine.chat("Be brief.", params=GREEDY)
    chat.send("What is 17 + 25?")
    chat.save(path)
    restored, fork = engine.chat(saved=path, params=GREEDY), chat.fork()
    assert restored.messages == fork.messages == chat.messages
    assert len(chat.messages) == 3
    done = [one.send("And what is 3 + 4?") for one in (chat, fork, restored)]
    assert len({one.text for one in done}) == 1
    assert len({one.stats.reused_tokens for one in done}) == 1
    assert done[0].stats.reused_tokens > 0
    assert fork.send("Hi").text == chat.send("Hi").text  # neither disturbs the other
    assert len(restored.messages) == 5
    with pytest.raises(UsageError, match="one or the other"):
        engine.chat(saved=path, messages=[user("Hi")])


def test_a_saved_chat_does_not_need_its_session(engine: Engine, tmp_path: Path) -> None:
    path = tmp_path / "chat"
    chat = engine.chat(params=GREEDY)
    chat.send("Hi")
    chat.save(path)
    cache = tmp_path / "chat.safetensors"
    for damage in (lambda: cache.write_bytes(b"{}"), cache.unlink):
        damage()
        assert engine.chat(saved=path).messages == chat.messages
    with pytest.raises(UsageError, match="no saved chat"):
        engine.chat(saved=tmp_path / "other")
    for written in (
        "",
        "{}",
        '{"format": "mgm chat 1"}',
        '{"format": "mgm chat 1", "messages": 5}',
    ):
        path.write_text(written)
        with pytest.raises(CheckpointError):
            engine.chat(saved=path)
    with pytest.raises(MgmError, match="written"):
        chat.save(tmp_path / "nowhere" / "chat")
