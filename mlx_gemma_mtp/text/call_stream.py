"""Tool calls while a model writes them: their names, and their arguments as JSON text.

Knows nothing of tokens and markers, and what is done with a call.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from mlx_gemma_mtp.text.call_reader import MARK, START, CallReader
from mlx_gemma_mtp.text.calls import UNREADABLE, ToolCall, new_id

QUOTE = '<|"|>'


@dataclass(frozen=True)
class CallDelta:
    """What is new of a tool call.

    index: of the call among those of its completion that have a name. id: that of the ToolCall.
    name: with the first delta of the call, else None. arguments: a piece of JSON text. done: True
    with the last delta of the call.

    All pieces of a call are the JSON of its arguments. If those cannot be read, the pieces are
    {"unreadable": text} if the fault is at the start, and no valid JSON otherwise: nobody should
    take a part of the arguments for the whole.
    """

    index: int
    id: str
    name: str | None = None
    arguments: str = ""
    done: bool = False


class CallStream:
    """Reads the calls between one pair of markers, mostly one. Nothing that it gives is a guess.

    calls: none before `finish`; their raw texts join to the whole. index: of the next call.
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
        while not (start := START.match(self.source)) and not self._whole:
            yield None
        if start is None:
            self.calls.append(ToolCall("", None, _raw(self.source)))
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
            made = ToolCall(start[1], arguments, _raw(self.source[begin:end]), call)
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
        return json.dumps(call.function["arguments"], ensure_ascii=False)[1:]
    return f" {UNREADABLE}: {_raw(rest)}"


def _raw(source: str) -> str:
    return source.replace(MARK, QUOTE)
