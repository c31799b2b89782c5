"""The output of OpenAI's responses: items that grow, and the events that say so.

Knows nothing of requests.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from mlx_gemma_mtp.engine.results import Chunk
from mlx_gemma_mtp.server.protocols.responses_tools import INPUT, Called, ResponseTools
from mlx_gemma_mtp.text.call_stream import CallDelta
from mlx_gemma_mtp.text.calls import new_id

Event = tuple[str, dict[str, Any]]  # its type, and its other fields
Logprobs = Sequence[Mapping[str, Any]]

DONE, INCOMPLETE, WORKING = "completed", "incomplete", "in_progress"


class Shape(NamedTuple):
    """How items with text are called.

    parts: the field of an item with its one part. number: that of events with the part's number.
    """

    item: str
    prefix: str  # of ids
    part: str
    parts: str
    number: str
    part_event: str
    text_event: str


CONTENT = ("content", "content_index", "response.content_part")
MESSAGE = Shape("message", "msg_", "output_text", *CONTENT, "response.output_text")
THOUGHT = Shape("reasoning", "rs_", "reasoning_text", *CONTENT, "response.reasoning_text")
# The thought itself, for clients that show summaries only.
SUMMARY = THOUGHT._replace(
    part="summary_text",
    parts="summary",
    number="summary_index",
    part_event="response.reasoning_summary_part",
    text_event="response.reasoning_summary_text",
)


class TextItem:
    """A message or a thought."""

    def __init__(self, shape: Shape) -> None:
        self._shape = shape
        self.item: dict[str, Any] = {"type": shape.item, "id": new_id(shape.prefix)}
        if shape is MESSAGE:
            self.item |= {"status": WORKING, "role": "assistant", "content": []}
        else:
            self.item |= {"status": WORKING, "summary": [], "content": []}
        self._part: dict[str, Any] = {"type": shape.part, "text": ""}
        if shape is MESSAGE:
            self._part |= {"annotations": [], "logprobs": []}

    def open(self) -> Iterator[Event]:
        """Yield the events that start its part."""
        yield f"{self._shape.part_event}.added", self._at(part=self._part)

    def add(self, text: str, logprobs: Logprobs) -> Iterator[Event]:
        """Yield the event of a piece of text."""
        self._part["text"] += text
        fields = self._at(delta=text)
        if self._shape is MESSAGE:
            self._part["logprobs"] += logprobs
            fields["logprobs"] = logprobs
        yield f"{self._shape.text_event}.delta", fields

    def close(self, status: str) -> Iterator[Event]:
        """Yield the events that end its part."""
        self.item |= {"status": status, self._shape.parts: [self._part]}
        fields = self._at(text=self._part["text"])
        if self._shape is MESSAGE:
            fields["logprobs"] = self._part["logprobs"]
        yield f"{self._shape.text_event}.done", fields
        yield f"{self._shape.part_event}.done", self._at(part=self._part)

    def _at(self, **fields: Any) -> dict[str, Any]:
        return {"item_id": self.item["id"], self._shape.number: 0, **fields}


class CallItem:
    """A call of a function, or of a custom tool, whose input comes as a whole."""

    def __init__(self, call: str, called: Called) -> None:
        """call: its id."""
        self.done = False  # True once its arguments are complete
        self._custom = called.custom
        self._arguments = ""
        kind, prefix = ("custom_tool_call", "ctc_") if called.custom else ("function_call", "fc_")
        self.item: dict[str, Any] = {"type": kind, "id": new_id(prefix), "call_id": call}
        self.item |= {"name": called.name, INPUT if called.custom else "arguments": ""}
        self.item["status"] = WORKING
        if called.namespace:
            self.item["namespace"] = called.namespace

    def add(self, arguments: str) -> Iterator[Event]:
        """Yield the event of a piece of the arguments."""
        self._arguments += arguments
        if arguments and not self._custom:
            yield "response.function_call_arguments.delta", self._at(delta=arguments)

    def close(self, status: str) -> Iterator[Event]:
        """Yield the events that end the arguments, unless they are incomplete."""
        self.item["status"] = status
        if self._custom:
            self.item[INPUT] = _input_of(self._arguments) if status == DONE else ""
        else:
            self.item["arguments"] = self._arguments
        if status != DONE:
            return
        if self._custom:
            text = self.item[INPUT]
            yield "response.custom_tool_call_input.delta", self._at(delta=text)
            yield "response.custom_tool_call_input.done", self._at(input=text)
        else:
            fields = self._at(name=self.item["name"], arguments=self._arguments)
            yield "response.function_call_arguments.done", fields

    def _at(self, **fields: Any) -> dict[str, Any]:
        return {"item_id": self.item["id"], **fields}


class Output:
    """The items of one output, one after another.

    thoughts: the shape of thoughts. items: those that have started.
    """

    def __init__(self, tools: ResponseTools, thoughts: Shape) -> None:
        self._tools = tools
        self._thoughts = thoughts
        self.items: list[dict[str, Any]] = []
        self._open: TextItem | CallItem | None = None
        self._held: list[Mapping[str, Any]] = []  # log-probabilities whose text is to come

    def add(self, chunk: Chunk, logprobs: Logprobs) -> Iterator[Event]:
        """Yield the events of a chunk. logprobs: of a chunk of the answer."""
        self._held += logprobs
        if chunk.kind == "answer" and chunk.text:
            yield from self._add_text(MESSAGE, chunk.text)
        elif chunk.kind == "thought" and chunk.text:
            yield from self._add_text(self._thoughts, chunk.text)
        for delta in chunk.call_deltas:
            yield from self._add_call(delta)

    def close(self, status: str = DONE) -> Iterator[Event]:
        """Yield the events that end the open item, if any."""
        item, self._open = self._open, None
        if item is None:
            return
        if isinstance(item, CallItem):
            status = DONE if item.done else INCOMPLETE
        elif item.item["type"] == "message" and self._held:
            yield from self._placed(item.add("", self._taken()))
        yield from self._placed(item.close(status))
        yield from self._placed([("response.output_item.done", {"item": item.item})])

    def _add_text(self, shape: Shape, text: str) -> Iterator[Event]:
        item = self._open
        if not (isinstance(item, TextItem) and item.item["type"] == shape.item):
            yield from self.close()
            self._open = item = TextItem(shape)
            yield from self._start(item)
            yield from self._placed(item.open())
        yield from self._placed(item.add(text, self._taken() if shape is MESSAGE else []))

    def _add_call(self, delta: CallDelta) -> Iterator[Event]:
        if delta.name is not None:
            yield from self.close()
            self._open = CallItem(delta.id, self._tools.called(delta.name))
            yield from self._start(self._open)
        assert isinstance(self._open, CallItem)
        yield from self._placed(self._open.add(delta.arguments))
        self._open.done = delta.done
        if delta.done:
            yield from self.close()

    def _start(self, item: TextItem | CallItem) -> Iterator[Event]:
        self.items.append(item.item)
        yield from self._placed([("response.output_item.added", {"item": item.item})])

    def _placed(self, events: Iterator[Event] | Sequence[Event]) -> Iterator[Event]:
        for kind, fields in events:
            yield kind, {"output_index": len(self.items) - 1, **fields}

    def _taken(self) -> list[Mapping[str, Any]]:
        found, self._held = self._held, []
        return found


def _input_of(arguments: str) -> str:
    """Return the text that a model gives a custom tool; as it is, if it gives something else."""
    try:
        found = json.loads(arguments)
    except ValueError:
        return arguments
    text = found.get(INPUT) if isinstance(found, dict) else None
    return text if isinstance(text, str) else arguments
