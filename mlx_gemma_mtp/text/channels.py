"""The output of a model by channel: thoughts, answer and tool calls.

Goes by tokens, never by characters: a marker that is spelled out, by the model or anyone else, is
text like any other. Knows nothing of requests, and what is done with a call.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Literal, NamedTuple

from mlx_gemma_mtp.text.call_reader import MARK, QUOTE
from mlx_gemma_mtp.text.call_stream import CallDelta, CallStream, joined_deltas
from mlx_gemma_mtp.text.calls import ToolCall
from mlx_gemma_mtp.text.markers import Markers
from mlx_gemma_mtp.text.text_stream import TextStream
from mlx_gemma_mtp.text.unmarked import UnmarkedCall

Kind = Literal["answer", "thought", "tool_call"]

THOUGHT = "thought\n"  # the channel's name, after the marker that opens a thought


class Piece(NamedTuple):
    """Text of one kind, and its tokens; the last piece of a call has the call.

    deltas: what is certain of calls with it.
    """

    kind: Kind
    text: str
    tokens: list[int]
    call: ToolCall | None = None
    deltas: tuple[CallDelta, ...] = ()


class ChannelParser:
    """Sorts tokens by kind; text comes out as soon as it is certain.

    If the prompt ends within a thought or a call, the output starts there, else as answer. The
    pieces have the text of the output only, but a call is read whole.

    `<|channel>` opens a thought, whatever the channel's name, and only `<channel|>` closes it. The
    markers and the name "thought" are not part of the text; other names are. `<|tool_call>` opens a
    call, also inside a thought, which continues after the call. Any of the four markers ends a
    call, but only `<tool_call|>` completes it; several calls before it are a piece each. A marker
    that closes nothing is left out. A call of a known tool may lack the marker that opens it: see
    `UnmarkedCall`.

    Stop strings are searched in the answer only, and not across a marker. Without a stream (no
    tokenizer) all tokens are answer, without text.
    """

    def __init__(
        self, stream: TextStream | None, prompt: Sequence[int] = (), tools: Collection[str] = ()
    ) -> None:
        """prompt: the ids before the output. tools: names of those that may be called."""
        self._markers = stream.markers if stream else Markers()
        self._limits = [marker for marker in self._markers[:4] if marker is not None]
        self._stream = stream
        self._thinking = False
        self._name: str | None = None  # of the channel, while it may still become "thought\n"
        self._call: CallStream | None = None
        self._num_calls = 0  # that have a name
        self._unmarked = UnmarkedCall(tools)
        self._replay(_last_turn(prompt, self._markers.turn))

    @property
    def kind(self) -> Kind:
        """The kind of the next token, unless it is a marker."""
        if self._call is not None:
            return "tool_call"
        return "thought" if self._thinking else "answer"

    @property
    def stop(self) -> str | None:
        """The stop string that was found; None if there was none."""
        return self._stream.stop if self._stream else None

    def add(self, token: int) -> list[Piece]:
        """Return the text that is certain with this token, which is in the last piece."""
        if token in self._limits:
            return self._mark(token)
        if token == self._markers.quote and self._call is not None:
            before = self._flush()
            deltas = self._call.add(MARK)
            return [before, Piece("tool_call", QUOTE, [token], None, deltas)]
        if token == self._markers.quote and self._unmarked.held:
            before = self._flush()
            return [before, self._piece(MARK, [token])]
        stopping = self.kind == "answer"
        text = self._stream.add(token, stopping=stopping) if self._stream else ""
        return [self._piece(text, [token])]

    def end(self, token: int) -> Piece:
        """Return the piece of a token that ends the output and has no text."""
        return Piece(self.kind, "", [token])

    def finish(self) -> Piece:
        """Return the text that was held back."""
        piece = self._flush()
        return piece._replace(text=piece.text + self._unmarked.release())

    def _flush(self) -> Piece:
        stopping = self.kind == "answer"
        return self._piece(self._stream.finish(stopping=stopping) if self._stream else "", [])

    def _replay(self, prompt: Sequence[int]) -> None:
        for token in prompt:
            if token in self._limits or self._call is not None or self._name is not None:
                self.add(token)
        self._num_calls = 0
        if self._call is not None:  # its first delta has what the prompt has of it
            self._call = CallStream(source=self._call.source)

    def _mark(self, token: int) -> list[Piece]:
        markers = self._markers
        before = [self._flush()]
        if token == markers.call_end and self._unmarked.is_call:
            self._call = CallStream(self._num_calls, self._unmarked.held)
            before.append(Piece("tool_call", self._unmarked.release(), []))
        else:
            before.append(Piece("answer", self._unmarked.release(), []))
        call, self._call, self._name = self._call, None, None
        if call is not None:
            deltas = call.finish() if token == markers.call_end else ()
            self._num_calls = call.index
            if call.calls:
                *first, last = call.calls
                pieces = [Piece("tool_call", "", [], one) for one in first]
                return [*before, *pieces, Piece("tool_call", "", [token], last, deltas)]
        kind = self.kind
        if token == markers.call:
            self._call, kind = CallStream(self._num_calls), "tool_call"
        elif token == markers.channel:
            self._thinking, self._name, kind = True, "", "thought"
        elif token == markers.channel_end:
            self._thinking = False
        return [*before, Piece(kind, "", [token])]

    def _piece(self, text: str, tokens: list[int]) -> Piece:
        deltas: tuple[CallDelta, ...] = ()
        if self._call is not None:
            deltas = self._call.add(text)
        elif self._thinking and self._name is not None:
            name = self._name + text
            if THOUGHT.startswith(name) and name != THOUGHT:
                self._name, text = name, ""
            else:
                self._name, text = None, name.removeprefix(THOUGHT)
        elif not self._thinking:
            text = self._unmarked.add(text)
        return Piece(self.kind, text, tokens, None, deltas)


def joined(pieces: Iterable[Piece]) -> list[Piece]:
    """Join neighbors of one kind, and drop empty pieces. After a complete call another starts."""
    found: list[Piece] = []
    for piece in pieces:
        if found and found[-1].kind == piece.kind and found[-1].call is None:
            _, text, tokens, _, deltas = found[-1]
            deltas = joined_deltas([*deltas, *piece.deltas])
            found[-1] = Piece(
                piece.kind, text + piece.text, tokens + piece.tokens, piece.call, deltas
            )
        elif any(piece[1:]):
            found.append(piece)
    return found


def _last_turn(prompt: Sequence[int], turn: int | None) -> Sequence[int]:
    """Return the prompt from its last turn marker on; all of it if there is none."""
    at = len(prompt) - 1
    while at > 0 and prompt[at] != turn:
        at -= 1
    return prompt[max(at, 0) :]
