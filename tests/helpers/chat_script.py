"""A model that plays a script, for chats whose functions really run."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, cast

from mlx_gemma_mtp import Chunk, Completion, Engine, Generation, MgmError, SamplingParams
from mlx_gemma_mtp.engine.chat import Chat
from mlx_gemma_mtp.engine.results import Stats
from mlx_gemma_mtp.text.calls import ToolCall
from mlx_gemma_mtp.text.messages import Message
from mlx_gemma_mtp.text.tokenizer import Text


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
