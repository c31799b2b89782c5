"""The output of a model by channel: thoughts, answer and tool calls.

Goes by tokens, never by characters: a marker that is spelled out, by the model or anyone else, is
text like any other. Knows nothing of prompts, requests, and what is done with a call.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from mlx_gemma_mtp.text.tokenizer import Markers, TextStream

Kind = Literal["answer", "thought", "tool_call"]

THOUGHT = "thought\n"  # the channel's name, after the marker that opens a thought
QUOTE = '<|"|>'

_CALL = re.compile(r"\s*call:\s*([^\s{]+)\s*(\{.*)", re.DOTALL)
_BARE_KEY = re.compile(r"([{,])([^{}\[\],:]+):")


@dataclass(frozen=True)
class ToolCall:
    """A complete tool call.

    raw: the text between its markers, `call:NAME{key:<|"|>text<|"|>,n:1}`. arguments: None if they
    cannot be read. name: empty if not even `call:NAME{` can.
    """

    name: str
    arguments: dict[str, Any] | None
    raw: str

    @property
    def function(self) -> dict[str, Any]:
        """The call as chat templates take it; unreadable arguments as they were written."""
        written = self.raw.partition("{")[2].removesuffix("}")
        arguments = written if self.arguments is None else self.arguments
        return {"name": self.name, "arguments": arguments}


class Piece(NamedTuple):
    """Text of one kind, and its tokens; the last piece of a call has the call."""

    kind: Kind
    text: str
    tokens: list[int]
    call: ToolCall | None = None


class ChannelParser:
    """Sorts tokens by kind; text comes out as soon as it is certain.

    The output starts as answer. `<|channel>` opens a thought, whatever the channel's name, and only
    `<channel|>` closes it. The markers and the name "thought" are not part of the text; other names
    are. `<|tool_call>` opens a call, also inside a thought, which continues after the call. Any of
    the four markers ends a call, but only `<tool_call|>` completes it. A marker that closes nothing
    is left out.

    Stop strings are searched in the answer only, and not across a marker. Without a stream (no
    tokenizer) all tokens are answer, without text.
    """

    def __init__(self, stream: TextStream | None) -> None:
        self._markers = stream.markers if stream else Markers()
        self._limits = [marker for marker in self._markers[:4] if marker is not None]
        self._stream = stream
        self._thinking = False
        self._name: str | None = None  # of the channel, while it may still become "thought\n"
        self._call: list[str] | None = None  # split at its quotes: every other part is a string

    @property
    def kind(self) -> Kind:
        """The kind of the next token, unless it is a marker."""
        if self._call is not None:
            return "tool_call"
        return "thought" if self._thinking else "answer"

    @property
    def stopped(self) -> bool:
        """True if a stop string was found."""
        return self._stream is not None and self._stream.stopped

    def add(self, token: int) -> list[Piece]:
        """Return the text that is certain with this token, which is in the last piece."""
        if token in self._limits:
            return self._mark(token)
        if token == self._markers.quote and self._call is not None:
            before = self.finish()
            self._call.append("")
            return [before, Piece("tool_call", QUOTE, [token])]
        stopping = self.kind == "answer"
        text = self._stream.add(token, stopping=stopping) if self._stream else ""
        return [self._piece(text, [token])]

    def end(self, token: int) -> Piece:
        """Return the piece of a token that ends the output and has no text."""
        return Piece(self.kind, "", [token])

    def finish(self) -> Piece:
        """Return the text that was held back."""
        stopping = self.kind == "answer"
        return self._piece(self._stream.finish(stopping=stopping) if self._stream else "", [])

    def _mark(self, token: int) -> list[Piece]:
        markers = self._markers
        before = self.finish()
        call, self._call, self._name = self._call, None, None
        if token == markers.call_end and call is not None:
            return [before, Piece("tool_call", "", [token], _read(call))]
        kind = self.kind
        if token == markers.call:
            self._call, kind = [""], "tool_call"
        elif token == markers.channel:
            self._thinking, self._name, kind = True, "", "thought"
        elif token == markers.channel_end:
            self._thinking = False
        return [before, Piece(kind, "", [token])]

    def _piece(self, text: str, tokens: list[int]) -> Piece:
        if self._call is not None:
            self._call[-1] += text
        elif self._thinking and self._name is not None:
            name = self._name + text
            if THOUGHT.startswith(name) and name != THOUGHT:
                self._name, text = name, ""
            else:
                self._name, text = None, name.removeprefix(THOUGHT)
        return Piece(self.kind, text, tokens)


def joined(pieces: Iterable[Piece]) -> list[Piece]:
    """Join neighbors of one kind, and drop empty pieces. After a complete call another starts."""
    found: list[Piece] = []
    for piece in pieces:
        if found and found[-1].kind == piece.kind and found[-1].call is None:
            _, text, tokens, _ = found[-1]
            found[-1] = piece._replace(text=text + piece.text, tokens=tokens + piece.tokens)
        elif piece.text or piece.tokens:
            found.append(piece)
    return found


def _read(parts: Sequence[str]) -> ToolCall:
    """Read a call from its parts between the quotes, by turns syntax and string."""
    raw = QUOTE.join(parts)
    start = _CALL.match(parts[0])
    if start is None:
        return ToolCall("", None, raw)
    return ToolCall(start[1], _arguments([start[2], *parts[1:]]), raw)


def _arguments(parts: Sequence[str]) -> dict[str, Any] | None:
    """Read the arguments of a call: with strings and keys in quotes, their syntax is JSON's."""
    if any('"' in part or "\\" in part for part in parts[::2]):
        return None
    written = [
        json.dumps(part) if index % 2 else _BARE_KEY.sub(_quoted_key, part)
        for index, part in enumerate(parts)
    ]
    try:  # an object, as it starts with a brace
        return dict(json.loads("".join(written), parse_float=_finite, parse_constant=_finite))
    except (ValueError, RecursionError):
        return None


def _quoted_key(found: re.Match[str]) -> str:
    key = found[2].strip()
    return f"{found[1]}{json.dumps(key)}:" if key else found[0]


def _finite(number: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(f"{number} is not a number in JSON")
    return value
