"""Tool calls while a model writes them: their names, and their arguments as JSON text.

Knows nothing of tokens and markers, and what is done with a call.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from mlx_gemma_mtp.text.call_reader import FIRST, CallReader, raw
from mlx_gemma_mtp.text.calls import UNREADABLE, ToolCall, new_id


@dataclass(frozen=True)
class CallDelta:
    """What is new in a tool call.

    index: counts the calls of a completion that have a name, from 0. id: of the ToolCall. name: set
    in the first delta of a call. arguments: a piece of JSON text. done: True in the last delta.

    The pieces of a call join to the JSON of its arguments. If these cannot be read, they join to
    {"unreadable": text} when the fault is at their start. Later the pieces are not valid JSON, so
    that no client runs a part of a call. A call that the output never completes has no last delta.
    """

    index: int
    id: str
    name: str | None = None
    arguments: str = ""
    done: bool = False


class CallStream:
    """Reads the calls between one pair of markers, mostly one. It never takes a piece back.

    calls: empty until `finish`; their raw texts join to the whole. index: of the next call.
    """

    def __init__(self, index: int = 0, source: str = "") -> None:
        """source: the start of the text, with MARK for each quote token."""
        self.index = index
        self.source = source
        self.calls: list[ToolCall] = []
        self._whole = False
        self._reading = self._read()

    def add(self, text: str) -> tuple[CallDelta, ...]:
        """Return what is certain with this text, in which MARK stands for a quote token."""
        self.source += text
        return self._new()

    def finish(self) -> tuple[CallDelta, ...]:
        """Return what is left, after the marker that completes the calls."""
        self._whole = True
        return self._new()

    def _new(self) -> tuple[CallDelta, ...]:
        found = []
        for delta in self._reading:
            if delta is None:
                break
            found.append(delta)
        return joined_deltas(found)

    def _read(self) -> Iterator[CallDelta | None]:
        """Yield what is new, and None when there must be more text first."""
        begin = 0
        while not (start := FIRST.match(self.source)) and not self._whole:
            yield None
        if start is None:
            self.calls.append(ToolCall("", None, raw(self.source)))
        while start:
            index, call, given = self.index, new_id(), ""
            self.index += 1
            yield CallDelta(index, call, start[1])
            reader = CallReader(self.source, start.end(), whole=self._whole)
            try:
                for piece in reader.arguments():
                    if piece is None:
                        yield None
                    elif piece:
                        given += piece
                        yield CallDelta(index, call, arguments=piece)
                    reader.source, reader.whole = self.source, self._whole
                arguments = json.loads(given)
            except ValueError:
                while not self._whole:
                    yield None
                arguments = None
            following = reader.following
            end = following.start() if following else len(self.source)
            made = ToolCall(start[1], arguments, raw(self.source[begin:end]), call)
            self.calls.append(made)
            rest = _unread(made, given, self.source[reader.at :]) if arguments is None else ""
            yield CallDelta(index, call, arguments=rest, done=True)
            start, begin = following, end


def joined_deltas(deltas: Iterable[CallDelta]) -> tuple[CallDelta, ...]:
    """Join neighbors of one call."""
    found: list[CallDelta] = []
    for delta in deltas:
        if found and found[-1].index == delta.index:
            arguments = found[-1].arguments + delta.arguments
            found[-1] = replace(found[-1], arguments=arguments, done=delta.done)
        else:
            found.append(delta)
    return tuple(found)


def _unread(call: ToolCall, given: str, rest: str) -> str:
    """Return what follows `given` for unreadable arguments. rest: what was not read of them."""
    if given == "{":
        shown = call.function["arguments"]
        return json.dumps(shown, ensure_ascii=False, separators=(",", ":"))[1:]
    return f" {UNREADABLE}: {raw(rest)}"
