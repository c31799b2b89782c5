"""Answers as Anthropic's clients read them: content blocks, and the events that make them.

A whole answer is put together from the events of a stream, so both are the same. Knows nothing of
requests.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, Literal

from mlx_gemma_mtp.engine.results import Chunk, Completion
from mlx_gemma_mtp.text.call_stream import CallDelta
from mlx_gemma_mtp.text.calls import ToolCall

Event = dict[str, Any]
Block = dict[str, Any]

# Thoughts are not signed here, but some clients drop those without a signature.
SIGNATURE = "unsigned"


class Blocks:
    """Turns the chunks of an answer into the events of its content blocks.

    num_calls: complete calls of tools so far.
    """

    def __init__(self) -> None:
        self.num_calls = 0
        self._number = -1  # of the last block
        self._open: str | None = None  # its type, until it ends

    def add(self, chunk: Chunk) -> Iterator[Event]:
        """Yield the events of a chunk."""
        if chunk.kind != "tool_call" and chunk.text:
            yield from self._say("text" if chunk.kind == "answer" else "thinking", chunk.text)
        for delta in chunk.call_deltas:
            yield from self._call(delta)
        if chunk.tool_call is not None and not chunk.tool_call.name:
            yield from self._say("text", chunk.tool_call.raw)  # clients cannot send it back

    def end(self) -> Iterator[Event]:
        """Yield the events that end the last block."""
        if self._open == "thinking":
            yield self._delta({"type": "signature_delta", "signature": SIGNATURE})
        if self._open is not None:
            yield {"type": "content_block_stop", "index": self._number}
        self._open = None

    def _say(self, kind: Literal["text", "thinking"], text: str) -> Iterator[Event]:
        if self._open != kind:
            empty = {"signature": ""} if kind == "thinking" else {}
            yield from self._start({"type": kind, kind: "", **empty})
        yield self._delta({"type": f"{kind}_delta", kind: text})

    def _call(self, delta: CallDelta) -> Iterator[Event]:
        if delta.name is not None:
            block = {"type": "tool_use", "id": _id(delta.id), "name": delta.name, "input": {}}
            yield from self._start(block)
        if delta.arguments:
            yield self._delta({"type": "input_json_delta", "partial_json": delta.arguments})
        if delta.done:
            self.num_calls += 1
            yield from self.end()

    def _start(self, block: Block) -> Iterator[Event]:
        yield from self.end()
        self._number, self._open = self._number + 1, block["type"]
        yield {"type": "content_block_start", "index": self._number, "content_block": block}

    def _delta(self, delta: Block) -> Event:
        return {"type": "content_block_delta", "index": self._number, "delta": delta}


def _id(call: str) -> str:
    """Return the id of a call as Anthropic's look."""
    return f"toolu_{call.removeprefix('call_')}"


def blocks_of(events: Iterable[Event], calls: Sequence[ToolCall]) -> list[Block]:
    """Return the content blocks that these events make.

    calls: the complete ones. One that was cut is left out: it has no input.
    """
    inputs = {_id(call.id): call.function["arguments"] for call in calls}
    found: list[Block] = []
    for one in events:
        match one:
            case {"content_block": block}:
                found.append(dict(block))
            case {"delta": {"type": "text_delta", "text": text}}:
                found[-1]["text"] += text
            case {"delta": {"type": "thinking_delta", "thinking": text}}:
                found[-1]["thinking"] += text
            case {"delta": {"type": "signature_delta", "signature": signature}}:
                found[-1]["signature"] = signature
    for block in found:
        if block["type"] == "tool_use":
            block["input"] = inputs.get(block["id"])
    return [block for block in found if block.get("input", {}) is not None]


def reason_of(
    completion: Completion, *, has_calls: bool, stops: Collection[str], max_tokens: int | None
) -> dict[str, str | None]:
    """Return why an answer ended. stops, max_tokens: of its request."""
    reason, stop = "end_turn", None
    if completion.finish_reason == "length":
        full = max_tokens is None or completion.stats.generated_tokens < max_tokens
        reason = "model_context_window_exceeded" if full else "max_tokens"
    elif has_calls:
        reason = "tool_use"
    elif completion.stop in stops:
        reason, stop = "stop_sequence", completion.stop
    return {"stop_reason": reason, "stop_sequence": stop}


def first_usage(prompt_tokens: int) -> dict[str, Any]:
    """Return the usage of an answer that starts: nobody knows yet what is cached of its prompt."""
    return _usage(prompt_tokens, 0, 0)


def usage_of(completion: Completion) -> dict[str, Any]:
    """Return Anthropic's usage."""
    stats = completion.stats
    read = stats.prompt_tokens - stats.reused_tokens
    thought = {"thinking_tokens": stats.thought_tokens}
    usage = _usage(read, stats.reused_tokens, stats.generated_tokens)
    return usage | {"output_tokens_details": thought}


def _usage(read: int, reused: int, generated: int) -> dict[str, Any]:
    """Return counts of tokens: of the prompt that were read and reused, and of the answer."""
    return {
        "input_tokens": read,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": reused,
        "output_tokens": generated,
    }
