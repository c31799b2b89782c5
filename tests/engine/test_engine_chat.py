"""Chats: what the model calls is run, and the messages are those of turns that ended well."""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from mlx_gemma_mtp import Chunk, Completion, Engine, Generation, MgmError, SamplingParams, load
from mlx_gemma_mtp.engine.chat import Chat, first_messages
from mlx_gemma_mtp.engine.results import Stats
from mlx_gemma_mtp.engine.turn import ChatEvent
from mlx_gemma_mtp.errors import (
    CheckpointError,
    GenerationError,
    NotEnoughMemoryError,
    PromptTooLongError,
    UsageError,
)
from mlx_gemma_mtp.text.calls import ToolCall
from mlx_gemma_mtp.text.messages import Message
from mlx_gemma_mtp.text.tokenizer import Text

SECONDS = 60


def call(name: str, arguments: dict[str, Any] | None) -> ToolCall:
    return ToolCall(name, arguments, f"call:{name}{{}}")


class Endless(Generation):
    """A generation that ends only when it is cancelled, after the text "So far"."""

    def cancel(self) -> bool:
        super().cancel()
        if not self.done():
            self._finish(Completion("So far", [1], "cancelled", Stats(), 0))
        return False


Answer = str | ToolCall | tuple[str | ToolCall, ...] | MgmError | Endless


class Scripted:
    """Stands in for the engine: gives prepared answers, and remembers what it was asked."""

    def __init__(self, text: Text, *answers: Answer) -> None:
        self._text = text
        self._answers = list(answers)
        self.asked: list[list[Message]] = []
        self.params: list[SamplingParams] = []

    def submit(
        self, messages: Sequence[Message], params: SamplingParams, *, tools: Any, **_: Any
    ) -> Generation:
        self._text.chat(messages, tools)  # refuses what a model cannot be shown
        self.asked.append([*messages])
        self.params.append(params)
        answer = self._answers.pop(0)
        if isinstance(answer, Endless):
            answer._add(Chunk("So far", [1]))
            return answer
        generation = Generation()
        if isinstance(answer, MgmError):
            generation._fail(answer)
            return generation
        parts = answer if isinstance(answer, tuple) else (answer,)
        calls = tuple(part for part in parts if isinstance(part, ToolCall))
        said = [part for part in parts if isinstance(part, str)]
        for one in said:
            generation._add(Chunk(one, [1]))
        for made in calls:
            generation._add(Chunk("", [1], kind="tool_call", tool_call=made))
        generation._finish(Completion("".join(said), [1], "stop", Stats(), 0, tool_calls=calls))
        return generation

    def chat(self, *tools: Callable[..., Any], max_rounds: int = 8) -> Chat:
        return Chat(cast(Engine, self), [], tools, None, max_rounds, 0, None, cast(Any, None))


def add(a: int, b: int = 1) -> int:
    """Add two numbers."""
    return a + b


def fail(why: str) -> str:
    """Fail."""
    raise KeyError(why)


async def later(text: str) -> dict[str, str]:
    """Return a text, later."""
    await asyncio.sleep(0)
    return {"text": text}


def user(content: Any) -> Message:
    return {"role": "user", "content": content}


def shape(messages: Sequence[Message]) -> list[Any]:
    """Messages in short: what a user, an assistant and a tool said, and names of calls."""
    return [
        [one["function"]["name"] for one in m["tool_calls"]] if "tool_calls" in m else m["content"]
        for m in messages
    ]


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


FULL = PromptTooLongError("the prompt has 9 tokens: shorten it")


def test_a_full_chat_says_that_old_messages_can_be_dropped(text: Text) -> None:
    chat = Scripted(text, FULL, "Hello.", FULL).chat()
    with pytest.raises(PromptTooLongError, match=r"shorten it$"):
        chat.send("A long message")
    chat.send("Hi")
    with pytest.raises(PromptTooLongError, match=r"or drop old messages: chat\.messages = …$"):
        chat.send("Next")
    assert shape(chat.messages) == ["Hi", "Hello."]


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


# The demo pair


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with load("demo") as engine:
        yield engine


GREEDY = SamplingParams(temperature=0, max_tokens=60)


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
    generation = engine.stream("What time is it in Paris?", GREEDY, tools=[get_time])
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
