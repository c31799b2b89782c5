"""A turn of a chat: the user's message, and what the model says and calls until it has answered.

The functions run where the turn is read: on that thread, or in that event loop. Knows nothing of
how requests are served.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import takewhile
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from mlx_gemma_mtp.decode.params import SamplingParams
from mlx_gemma_mtp.engine.callbacks import running_loop
from mlx_gemma_mtp.engine.generation import Generation
from mlx_gemma_mtp.engine.results import Chunk, Completion
from mlx_gemma_mtp.engine.runner import Result, Runner
from mlx_gemma_mtp.engine.worker import only_here
from mlx_gemma_mtp.errors import NotEnoughMemoryError, PromptTooLongError, UsageError
from mlx_gemma_mtp.text.calls import ToolCall
from mlx_gemma_mtp.text.messages import INSTRUCTIONS, Message

if TYPE_CHECKING:
    from mlx_gemma_mtp.engine.chat import Chat

SHORT = 200  # characters of a result, or of an error in its place, that hardly fill a context
TOO_LONG = (PromptTooLongError, NotEnoughMemoryError)


class ChatEvent(NamedTuple):
    """What happens in a turn.

    "text" and "thought" have a piece of `text`. "tool_call" has the `call`, "tool_result" also its
    `result`, as the model gets it if it is not too long. "end" has the last `completion`.
    """

    kind: Literal["text", "thought", "tool_call", "tool_result", "end"]
    text: str = ""
    call: ToolCall | None = None
    result: str | Mapping[str, Any] | None = None
    completion: Completion | None = None


class Turn:
    """The events of one turn, made by `Chat.stream`: read it once, with `for` or `async for`.

    It starts with the first event that is asked for. If reading stops early, or `cancel` is called,
    the chat keeps the calls that have results and the text so far, or nothing if there is neither.
    If it raises, the chat keeps the calls that have results, or is as it was before. Of a result
    that leaves no room for an answer, the model only gets to know its length.
    """

    __reduce__ = only_here("a turn", "read its events, or fork() its chat")

    def __init__(self, chat: Chat, content: str | Sequence[Message]) -> None:
        """Raises UsageError for content that is empty."""
        if _is_empty(content):
            raise UsageError("the message is empty")
        self._chat = chat
        self._added: list[Message] = [{"role": "user", "content": content}]
        self._said = ""  # of the answer that is being generated
        self._has_answered = False  # True once there is a piece of that answer
        self._rounds = 0
        self._round: list[Message] = []  # a message with calls, and the results so far
        self._over = False  # True if the model need not be asked again
        self._state: Literal["new", "running", "over"] = "new"
        self._generation: Generation | None = None
        self._completion: Completion | None = None
        self._runner = Runner(chat._functions)

    def __repr__(self) -> str:
        return f"<Turn {'cancelled' if self.cancelled else self._state}, {self._rounds} rounds>"

    @property
    def completion(self) -> Completion | None:
        """The last Completion; None before the end, or if it failed or was left early."""
        return self._completion

    @property
    def text(self) -> str:
        """The answer so far: what the model has said since its last calls."""
        return self._said if self._completion is None else self._completion.text

    def cancel(self) -> None:
        """End it within a round, from any thread.

        An async function that is running is cancelled; another one returns first.
        """
        self._runner.cancel()
        if self._generation is not None:
            self._generation.cancel()

    @property
    def cancelled(self) -> bool:
        """True once it is cancelled."""
        return self._runner.cancelled

    def __iter__(self) -> Iterator[ChatEvent]:
        if self._chat._has_coroutines and running_loop() is not None:
            raise UsageError("in an event loop, functions that are async need asend or async for")
        return self._events()

    def __aiter__(self) -> AsyncIterator[ChatEvent]:
        return _AsyncEvents(self, self._async_events())

    def _events(self) -> Iterator[ChatEvent]:
        self._start()
        try:
            while True:
                try:
                    generation = self._ask()
                    for chunk in generation:
                        yield from self._seen(chunk)
                    done = generation.result()
                except TOO_LONG as error:
                    self._shorten(error)
                    continue
                for call in self._answered(done):
                    if (result := self._runner.run(call)) is not None:
                        yield self._ran(call, result)
                if self._over:
                    break
            self._completion = done
            self._stop()
            yield ChatEvent("end", completion=done)
        except (GeneratorExit, KeyboardInterrupt):
            self._stop()
            raise
        finally:
            self._fail()

    async def _async_events(self) -> AsyncGenerator[ChatEvent, None]:
        self._start()
        try:
            while True:
                try:
                    generation = self._ask()
                    async for chunk in generation:
                        for event in self._seen(chunk):
                            yield event
                    done = await generation
                except TOO_LONG as error:
                    self._shorten(error)
                    continue
                for call in self._answered(done):
                    if (result := await self._runner.run_async(call)) is not None:
                        yield self._ran(call, result)
                if self._over:
                    break
            self._completion = done
            self._stop()
            yield ChatEvent("end", completion=done)
        except (GeneratorExit, asyncio.CancelledError):
            self._stop()
            raise
        finally:
            self._fail()

    def _start(self) -> None:
        if self._state != "new":
            raise UsageError("a turn can be read once: stream another message")
        self._chat._claim(self)
        self._state = "running"

    def _ask(self) -> Generation:
        """Ask the model, who must answer once the rounds are used up."""
        chat, self._said, self._has_answered = self._chat, "", False
        params = chat.params or SamplingParams()
        if self._rounds and params.tool_choice != "none":
            params = replace(params, tool_choice="auto")  # it has made the call it had to
        if self._rounds == chat.max_rounds and chat.tools:
            params = replace(params, tool_choice="none")
        self._generation = generation = chat._submit(self._added, params)
        if self.cancelled:
            generation.cancel()
        return generation

    def _seen(self, chunk: Chunk) -> Iterator[ChatEvent]:
        self._has_answered = True
        if chunk.kind == "answer":
            self._said += chunk.text
        if chunk.text and chunk.kind != "tool_call":
            yield ChatEvent("thought" if chunk.kind == "thought" else "text", chunk.text)
        if chunk.tool_call is not None and chunk.tool_call.name and self._may_call:
            yield ChatEvent("tool_call", call=chunk.tool_call)

    def _shorten(self, error: UsageError | NotEnoughMemoryError) -> None:
        """Leave the longest result of the last round out, so that the model can be asked again.

        Raises an error like the given one if there is none, or if the model has answered.
        """
        if self._has_answered:
            raise error
        results = [*takewhile(lambda one: one["role"] == "tool", reversed(self._added))]
        longest = max(results, key=_length, default=None)
        if longest is not None and (length := _length(longest)) > SHORT:
            long = f"the result of {longest['name']:.80} is too long: {length:,} characters"
            longest["content"] = {"error": f"{long}. Ask for less."}
            return
        ran = ", ".join(dict.fromkeys(one["name"] for one in self._added if one["role"] == "tool"))
        if ran or any(one["role"] not in INSTRUCTIONS for one in self._chat._messages):
            kept = f"; the calls of {ran} are kept, with their results" if ran else ""
            longer = f"{error}, or drop old messages: chat.messages = …{kept}"
            raise type(error)(longer) from error.__cause__
        raise error

    @property
    def _may_call(self) -> bool:
        return bool(self._chat.tools) and self._rounds < self._chat.max_rounds

    def _answered(self, done: Completion) -> Iterator[ToolCall]:
        """Give the calls to run, one after another. If none may be run, this is the answer."""
        called = done.message if self._may_call else {}
        if done.finish_reason == "cancelled" or not called.get("tool_calls"):
            if done.finish_reason != "cancelled":
                message = {key: one for key, one in done.message.items() if key != "tool_calls"}
                self._added.append(message)
                self._said = ""
            self._over = True
            return
        self._round = [called]
        for call in done.tool_calls:
            if call.name and not self.cancelled:
                yield call
        self._over = self.cancelled

    def _ran(self, call: ToolCall, result: Result) -> ChatEvent:
        """Keep a result; the round with its calls is whole once all have one."""
        about = {"role": "tool", "tool_call_id": call.id, "name": call.name}
        self._round.append(about | {"content": result})
        if len(self._round) > len(self._round[0]["tool_calls"]):
            self._added += self._round
            self._said, self._rounds, self._round = "", self._rounds + 1, []
        return ChatEvent("tool_result", call=call, result=result)

    def _stop(self) -> None:
        """End it here, and keep what there is."""
        self._end([{"role": "assistant", "content": self._said}] if self._said else [])

    def _fail(self) -> None:
        self._end([])

    def _end(self, said: Sequence[Message]) -> None:
        if self._state == "running":
            self._state = "over"
            if self._generation is not None:
                self._generation.cancel()
            if len(self._round) > 1:  # calls after the last result are left out
                called, *results = self._round
                kept = {one["tool_call_id"] for one in results}
                calls = [one for one in called["tool_calls"] if one["id"] in kept]
                said = [called | {"tool_calls": calls}, *results]
            added = [*self._added, *said]
            self._chat._release(added if len(added) > 1 else [])


class _AsyncEvents:
    """Reads a turn in an event loop; dropped by a loop that was left, it stops the turn at once."""

    def __init__(self, turn: Turn, events: AsyncGenerator[ChatEvent, None]) -> None:
        self._turn = turn
        self._events = events

    def __aiter__(self) -> _AsyncEvents:
        return self

    async def __anext__(self) -> ChatEvent:
        return await self._events.__anext__()

    async def aclose(self) -> None:
        """Stop the turn."""
        await self._events.aclose()

    def __del__(self) -> None:
        self._turn._stop()


def _is_empty(content: object) -> bool:
    """True for text without words, and for parts that have none."""
    parts = content if isinstance(content, (list, tuple)) else [{"text": content}]
    texts = [one.get("text") if isinstance(one, Mapping) else None for one in parts]
    return all(isinstance(one, str) and not one.strip() for one in texts)


def _length(message: Message) -> int:
    """Return the characters of a result of a tool."""
    return len(json.dumps(message["content"], ensure_ascii=False))
