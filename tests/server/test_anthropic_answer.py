"""Chunks as Anthropic's content blocks, and the events that make them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mlx_gemma_mtp.engine.results import Chunk
from mlx_gemma_mtp.server.protocols.anthropic_answer import Blocks, blocks_of
from mlx_gemma_mtp.text.call_stream import CallDelta
from mlx_gemma_mtp.text.calls import ToolCall

WRITE = ToolCall("Write", {"path": "a", "content": "b" * 40}, "call:Write{…}", "call_1")
STARTED = CallDelta(0, "call_1", "Write", '{"path":"a","content":"')
DONE = CallDelta(0, "call_1", arguments='bbbb"}', done=True)


def said(text: str, kind: Any = "answer") -> Chunk:
    return Chunk(text, [5], kind=kind)


def called(*deltas: CallDelta, call: ToolCall | None = None) -> Chunk:
    return Chunk("call:", [5], kind="tool_call", call_deltas=deltas, tool_call=call)


def events(blocks: Blocks, *chunks: Chunk) -> list[dict[str, Any]]:
    return [*(one for chunk in chunks for one in blocks.add(chunk)), *blocks.end()]


def content(chunks: Sequence[Chunk], *calls: ToolCall) -> list[dict[str, Any]]:
    return blocks_of(events(Blocks(), *chunks), calls)


def test_arguments_are_given_as_they_come() -> None:
    blocks = Blocks()
    first = [*blocks.add(called(STARTED))]
    assert [one["type"] for one in first] == ["content_block_start", "content_block_delta"]
    assert first[0]["content_block"] == {
        "type": "tool_use",
        "id": "toolu_1",
        "name": "Write",
        "input": {},
    }
    [delta] = blocks.add(called(CallDelta(0, "call_1", arguments="bb")))
    assert delta["delta"] == {"type": "input_json_delta", "partial_json": "bb"}
    assert blocks.num_calls == 0
    last = [*blocks.add(called(DONE, call=WRITE))]
    assert [one["type"] for one in last] == ["content_block_delta", "content_block_stop"]
    assert blocks.num_calls == 1
    assert [*blocks.end()] == []


def test_blocks_are_numbered_in_their_order_and_each_ends_before_the_next() -> None:
    chunks = [
        said("Hm", "thought"),
        said("", "thought"),
        called(STARTED, DONE, call=WRITE),
        said("m.", "thought"),
        said("Now "),
        said("you."),
    ]
    found = events(Blocks(), *chunks)
    expected = list[str]()
    for number in range(4):
        expected += [f"start {number}", f"delta {number}", f"stop {number}"]
    shown = [f"{one['type'].removeprefix('content_block_')} {one['index']}" for one in found]
    assert list(dict.fromkeys(shown)) == expected
    assert content(chunks, WRITE) == [
        {"type": "thinking", "thinking": "Hm", "signature": "unsigned"},
        {"type": "tool_use", "id": "toolu_1", "name": "Write", "input": WRITE.arguments},
        {"type": "thinking", "thinking": "m.", "signature": "unsigned"},
        {"type": "text", "text": "Now you."},
    ]


def test_a_call_that_was_cut_has_no_input_so_it_is_no_call_of_a_whole_answer() -> None:
    blocks = Blocks()
    assert events(blocks, called(STARTED))[-1] == {"type": "content_block_stop", "index": 0}
    assert blocks.num_calls == 0
    assert content([said("I write."), called(STARTED)]) == [{"type": "text", "text": "I write."}]


def test_a_call_without_a_name_is_shown_as_text() -> None:
    call = ToolCall("", None, "call{", "call_2")
    assert content([called(call=call)], call) == [{"type": "text", "text": "call{"}]


def test_arguments_that_cannot_be_read_are_not_lost() -> None:
    call = ToolCall("Write", None, "call:Write{path:}", "call_1")
    [block] = content([called(STARTED, DONE, call=call)], call)
    assert block["input"] == {"unreadable": "path:"}


def test_an_answer_without_output_has_no_blocks() -> None:
    assert content([said("")]) == []
