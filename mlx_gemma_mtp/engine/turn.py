"""A turn of a chat: the user's message, and what the model says and calls until it has answered.

The functions run where the turn is read: on that thread, or in that event loop. Knows nothing of
how requests are served.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from mlx_gemma_mtp.decode.params import SamplingParams
from mlx_gemma_mtp.engine.results import Chunk, Completion
from mlx_gemma_mtp.errors import UsageError, one_line
from mlx_gemma_mtp.text.calls import ToolCall
from mlx_gemma_mtp.text.functions import Function, result_of
from mlx_gemma_mtp.text.messages import Message

if TYPE_CHECKING:
    from mlx_gemma_mtp.engine.chat import Chat
    from mlx_gemma_mtp.engine.generation import Generation


class ChatEvent(NamedTuple):
    """What happens in a turn.

    "text" and "thought" have a piece of `text`. "tool_call" has the `call`, "tool_result" also its
    `result`, as the model gets it. "end" has the last `completion`.
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
    If it raises, the chat is as it was before.
    """

    def __init__(self, chat: Chat, content: str | Sequence[Message]) -> None:
        self._chat = chat
        self._added: list[Message] = [{"role": "user", "content": content}]
        self._said = ""  # of the answer that is being generated
        self._rounds = 0
        self._round: list[Message] = []  # a message with calls, and the results so far
        self._over = False  # True if the model need not be asked again
        self._state: Literal["new", "running", "over"] = "new"
        self._generation: Generation | None = None
        self.cancelled = False

    def cancel(self) -> None:
        """End it within a round, or when the function that is running returns. Any thread may."""
        self.cancelled = True
        if self._generation is not None:
            self._generation.cancel()

    def __iter__(self) -> Iterator[ChatEvent]:
        if self._chat.has_coroutines and _in_event_loop():
            raise UsageError("in an event loop, functions that are async need asend or async for")
        return self._events()

    def __aiter__(self) -> AsyncIterator[ChatEvent]:
        return _AsyncEvents(self, self._async_events())

    def _events(self) -> Iterator[ChatEvent]:
        self._start()
        try:
            while True:
                generation = self._ask()
                for chunk in generation:
                    yield from self._seen(chunk)
                done = generation.result()
                for call in self._answered(done):
                    yield self._ran(call, self._run(call))
                if self._over:
                    break
            self.stop()
            yield ChatEvent("end", completion=done)
        except (GeneratorExit, KeyboardInterrupt):
            self.stop()
            raise
        finally:
            self._fail()

    async def _async_events(self) -> AsyncGenerator[ChatEvent, None]:
        self._start()
        try:
            while True:
                generation = self._ask()
                async for chunk in generation:
                    for event in self._seen(chunk):
                        yield event
                done = await generation
                for call in self._answered(done):
                    yield self._ran(call, await self._run_async(call))
                if self._over:
                    break
            self.stop()
            yield ChatEvent("end", completion=done)
        except (GeneratorExit, asyncio.CancelledError):
            self.stop()
            raise
        finally:
            self._fail()

    def _start(self) -> None:
        if self._state != "new":
            raise UsageError("a turn can be read once: stream another message")
        self._chat.claim(self)
        self._state = "running"

    def _ask(self) -> Generation:
        """Ask the model, who must answer once the rounds are used up."""
        chat, self._said = self._chat, ""
        params = chat.params or SamplingParams()
        if self._rounds and params.tool_choice != "none":
            params = replace(params, tool_choice="auto")  # it has made the call it had to
        if self._rounds == chat.max_rounds and chat.tools:
            params = replace(params, tool_choice="none")
        self._generation = generation = chat.submit(self._added, params)
        if self.cancelled:
            generation.cancel()
        return generation

    def _seen(self, chunk: Chunk) -> Iterator[ChatEvent]:
        if chunk.kind == "answer":
            self._said += chunk.text
        if chunk.text and chunk.kind != "tool_call":
            yield ChatEvent("thought" if chunk.kind == "thought" else "text", chunk.text)
        if chunk.tool_call is not None and chunk.tool_call.name and self._may_call:
            yield ChatEvent("tool_call", call=chunk.tool_call)

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
            self._over = self.cancelled
            if call.name and not self._over:
                yield call

    def _ran(self, call: ToolCall, result: str | Mapping[str, Any]) -> ChatEvent:
        """Keep a result; the round with its calls is whole once all have one."""
        about = {"role": "tool", "tool_call_id": call.id, "name": call.name}
        self._round.append(about | {"content": result})
        if len(self._round) > len(self._round[0]["tool_calls"]):
            self._added += self._round
            self._said, self._rounds, self._over = "", self._rounds + 1, self.cancelled
        return ChatEvent("tool_result", call=call, result=result)

    def _bound(self, call: ToolCall) -> tuple[Function, dict[str, Any]]:
        """Return the function and its arguments. Raises ValueError, in words for a model."""
        function = self._chat.functions.get(call.name)
        if function is None:
            named = ", ".join(self._chat.functions)
            raise ValueError(f"there is no tool named {call.name}, only {named}")
        if call.arguments is None:
            raise ValueError("these arguments cannot be read")
        return function, function.bound(call.arguments)

    def _run(self, call: ToolCall) -> str | Mapping[str, Any]:
        try:
            function, arguments = self._bound(call)
            value = function.function(**arguments)
            if inspect.isawaitable(value):
                value = asyncio.run(_awaited(value))
            return result_of(value)
        except Exception as error:  # noqa: BLE001 - the model gets it
            return _failure(error)

    async def _run_async(self, call: ToolCall) -> str | Mapping[str, Any]:
        try:
            function, arguments = self._bound(call)
            if inspect.iscoroutinefunction(function.function):
                value = await function.function(**arguments)
            else:
                value = await asyncio.to_thread(function.function, **arguments)
            if inspect.isawaitable(value):
                value = await value
            return result_of(value)
        except Exception as error:  # noqa: BLE001 - the model gets it
            return _failure(error)

    def stop(self) -> None:
        """End it here, and keep what there is."""
        said = [{"role": "assistant", "content": self._said}] * bool(self._said)
        added = self._added + said
        self._end(added if len(added) > 1 else [])

    def _fail(self) -> None:
        self._end([])

    def _end(self, added: Sequence[Message]) -> None:
        if self._state == "running":
            self._state = "over"
            if self._generation is not None:
                self._generation.cancel()
            self._chat.release(added)


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
        self._turn.stop()


def _failure(error: Exception) -> Mapping[str, Any]:
    kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
    text = f"{kind}{one_line(error)}"
    return {"error": text.encode(errors="replace").decode()}


async def _awaited(value: Any) -> Any:
    return await value


def _in_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
