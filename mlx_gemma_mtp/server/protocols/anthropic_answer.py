"""Answers as Anthropic's clients read them: content blocks, and the events that make them.

A whole answer is put together from the events of a stream, so both are the same. Knows nothing of
requests.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator
from typing import Any, Literal

from mlx_gemma_mtp.engine.results import Chunk, Completion
from mlx_gemma_mtp.server.answers import compact
from mlx_gemma_mtp.server.usage import hash_of, metrics_of, timings_of
from mlx_gemma_mtp.text.calls import ToolCall

Event = dict[str, Any]
Block = dict[str, Any]

# Thoughts are not signed here, but some clients drop those without a signature.
SIGNATURE = "unsigned"

# The delta of a block that continues it, and the field with its text.
DELTAS = {
    "text": ("text_delta", "text"),
    "thinking": ("thinking_delta", "thinking"),
    "tool_use": ("input_json_delta", "partial_json"),
}


class Blocks:
    """Turns the chunks of an answer into the events of its content blocks.

    has_calls: True once there is a call of a tool.
    """

    def __init__(self) -> None:
        self.has_calls = False
        self._number = -1  # of the last block
        self._open: str | None = None  # its type, until it ends

    def add(self, chunk: Chunk) -> Iterator[Event]:
        """Yield the events of a chunk."""
        if chunk.kind != "tool_call" and chunk.text:
            yield from self._say("text" if chunk.kind == "answer" else "thinking", chunk.text)
        if chunk.tool_call is not None:
            yield from self._call(chunk.tool_call)

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
        delta, field = DELTAS[kind]
        yield self._delta({"type": delta, field: text})

    def _call(self, call: ToolCall) -> Iterator[Event]:
        if not call.name:  # clients cannot send such a call back
            yield from self._say("text", call.raw)
            return
        self.has_calls = True
        id_ = f"toolu_{call.id.removeprefix('call_')}"
        yield from self._start({"type": "tool_use", "id": id_, "name": call.name, "input": {}})
        arguments = compact(call.function["arguments"])
        yield self._delta({"type": "input_json_delta", "partial_json": arguments})
        yield from self.end()

    def _start(self, block: Block) -> Iterator[Event]:
        yield from self.end()
        self._number, self._open = self._number + 1, block["type"]
        yield {"type": "content_block_start", "index": self._number, "content_block": block}

    def _delta(self, delta: Block) -> Event:
        return {"type": "content_block_delta", "index": self._number, "delta": delta}


def content_of(events: Iterable[Event]) -> list[Block]:
    """Return the content blocks that these events make."""
    found: list[Block] = []
    arguments = ""
    for one in events:
        match one:
            case {"type": "content_block_start", "content_block": block}:
                found.append(dict(block))
                arguments = ""
            case {"delta": {"type": "input_json_delta", "partial_json": text}}:
                arguments += text
            case {"delta": {"type": "signature_delta", "signature": signature}}:
                found[-1]["signature"] = signature
            case {"delta": delta}:
                kind = found[-1]["type"]
                found[-1][kind] += delta[kind]
            case {"type": "content_block_stop"} if found[-1]["type"] == "tool_use":
                found[-1]["input"] = json.loads(arguments)
    return found


def reason_of(
    completion: Completion, *, has_calls: bool, stops: Collection[str], most: int | None
) -> dict[str, str | None]:
    """Return why an answer ended. most: the tokens that its request allowed."""
    reason, stop = "end_turn", None
    if completion.finish_reason == "length":
        full = most is None or completion.stats.generated_tokens < most
        reason = "model_context_window_exceeded" if full else "max_tokens"
    elif has_calls:
        reason = "tool_use"
    elif completion.stop in stops:
        reason, stop = "stop_sequence", completion.stop
    return {"stop_reason": reason, "stop_sequence": stop}


def usage_of(completion: Completion | None) -> dict[str, Any]:
    """Return Anthropic's usage; that of an answer that has not started for None."""
    if completion is None:
        return _usage(0, 0, 0)
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


def statistics(completion: Completion) -> dict[str, Any]:
    """Return the fields of an answer that Anthropic has not: what it took, as in OpenAI's."""
    return {
        "metrics": metrics_of([completion]),
        "timings": timings_of(completion.stats),
        "output_hash": hash_of([completion]),
    }
