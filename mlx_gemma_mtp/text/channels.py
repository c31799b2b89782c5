"""What a model says, told apart: its thoughts, its answer, its tool calls.

Goes by tokens, never by characters: a marker that is spelled out, by the model or by anybody else,
is text like any other. Knows nothing of prompts, of requests, or of what is done with a call.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from mlx_gemma_mtp.text.tokenizer import NO_MARKERS, TextStream

Kind = Literal["answer", "thought", "tool_call"]

THOUGHT = "thought\n"  # follows the marker that opens a thought, and is part of it
QUOTE = '<|"|>'

_CALL = re.compile(r"\s*call:\s*([^\s{]+)\s*(\{.*)", re.DOTALL)
_BARE_KEY = re.compile(r"([{,])([^{}\[\],:]+):")


@dataclass(frozen=True)
class ToolCall:
    """A tool call that was written to its end.

    raw is what stands between its markers: `call:NAME{key:<|"|>text<|"|>,n:1}`. arguments is None
    where that cannot be read, and then name is empty where not even `call:NAME{` can.
    """

    name: str
    arguments: dict[str, Any] | None
    raw: str

    @property
    def function(self) -> dict[str, Any]:
        """The call as chat templates take it; unreadable arguments go back as they were written."""
        written = self.raw.partition("{")[2].removesuffix("}")
        return {
            "name": self.name,
            "arguments": written if self.arguments is None else self.arguments,
        }


class Piece(NamedTuple):
    """Some text of one kind, and the tokens that were taken for it; a call with its last piece."""

    kind: Kind
    text: str
    tokens: list[int]
    call: ToolCall | None = None


class Router:
    """Tells of each token what it belongs to; text comes out as soon as it is certain.

    A text begins as answer. `<|channel>` opens a thought, whatever the channel's name, and only
    `<channel|>` closes it: a thought that is never closed never becomes answer. The markers and the
    name "thought" are not part of the text; another name is, with all else. `<|tool_call>` opens a
    call, also within a thought, which then goes on behind the call. Any of the four markers ends a
    call, but only `<tool_call|>` makes it a whole one. A marker that closes nothing is left out.

    Stop strings are looked for in the answer alone, and not across a marker. Without a stream
    (no tokenizer) all tokens are answer, without text.
    """

    def __init__(self, stream: TextStream | None) -> None:
        self._markers = stream.markers if stream else NO_MARKERS
        self._limits = [marker for marker in self._markers[:4] if marker is not None]
        self._answer = stream
        self._beside = stream.beside() if stream and self._limits else None
        self._thinking = False
        self._name: str | None = None  # of the channel, as far as it may yet become "thought\n"
        self._call: list[str] | None = None  # cut at its quotes: every other part is a string

    @property
    def kind(self) -> Kind:
        """What the next token belongs to, unless it is a marker."""
        if self._call is not None:
            return "tool_call"
        return "thought" if self._thinking else "answer"

    @property
    def stopped(self) -> bool:
        """Was a stop string met?"""
        return self._answer is not None and self._answer.stopped

    def add(self, token: int) -> list[Piece]:
        """What has become certain with this token, which is in the last of the pieces."""
        if token in self._limits:
            return self._mark(token)
        if token == self._markers.quote and self._call is not None:
            before = self._say(self._finish(), [])
            self._call.append("")
            return [before, Piece("tool_call", QUOTE, [token])]
        return [self._say(self._stream.add(token) if self._stream else "", [token])]

    def end(self, token: int) -> Piece:
        """A token that ends the text, and has none itself."""
        return Piece(self.kind, "", [token])

    def finish(self) -> Piece:
        """What was still held back."""
        return self._say(self._finish(), [])

    @property
    def _stream(self) -> TextStream | None:
        return self._answer if self.kind == "answer" else self._beside

    def _finish(self) -> str:
        return self._stream.finish() if self._stream else ""

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

    def _say(self, text: str, tokens: list[int]) -> Piece:
        if self._call is not None:
            self._call[-1] += text
        elif self._thinking and self._name is not None:
            said = self._name + text
            if THOUGHT.startswith(said) and said != THOUGHT:
                self._name, text = said, ""
            else:
                self._name, text = None, said.removeprefix(THOUGHT)
        return Piece(self.kind, text, tokens)


def joined(pieces: Iterable[Piece]) -> list[Piece]:
    """Neighbors of one kind as one piece; after a whole call another begins. None is empty."""
    found: list[Piece] = []
    for piece in pieces:
        last = found[-1] if found else None
        if last and last.kind == piece.kind and last.call is None:
            text, tokens = last.text + piece.text, last.tokens + piece.tokens
            found[-1] = Piece(piece.kind, text, tokens, piece.call)
        elif piece.text or piece.tokens:
            found.append(piece)
    return found


def _read(parts: Sequence[str]) -> ToolCall:
    """A call out of its parts between the quotes, by turns syntax and string."""
    raw = QUOTE.join(parts)
    begun = _CALL.match(parts[0])
    if begun is None:
        return ToolCall("", None, raw)
    return ToolCall(begun[1], _arguments([begun[2], *parts[1:]]), raw)


def _arguments(parts: Sequence[str]) -> dict[str, Any] | None:
    """The arguments of a call, or None: with strings and keys in quotes the syntax is JSON's."""
    if any('"' in part or "\\" in part for part in parts[::2]):
        return None
    written = [
        json.dumps(part) if index % 2 else _BARE_KEY.sub(_quoted_key, part)
        for index, part in enumerate(parts)
    ]
    found: dict[str, Any]  # for it begins with a brace
    try:
        found = json.loads("".join(written), parse_float=_finite, parse_constant=_finite)
    except (ValueError, RecursionError):
        return None
    return found


def _quoted_key(found: re.Match[str]) -> str:
    key = found[2].strip()
    return f"{found[1]}{json.dumps(key)}:" if key else found[0]


def _finite(number: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(f"{number} is not a number that JSON has")
    return value
