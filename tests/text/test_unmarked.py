"""A call without the marker that opens it is a call if it names a tool and has the other marker."""

import json

import numpy as np
import pytest

from helpers.spelled import CALL, CALL_END, CHANNEL, CHANNEL_END, QUOTE, TURN_END, spell
from mlx_gemma_mtp.text.calls import ToolCall
from mlx_gemma_mtp.text.channels import ChannelParser, Piece, joined

TOOLS = ("get_time", "f")


def parsed(*parts: str | int) -> list[Piece]:
    """The pieces of an output, each token's joined; TURN_END ends it, as an end token does."""
    tokens, stream = spell(*parts)
    parser = ChannelParser(stream, (), TOOLS)
    pieces = [piece for token in tokens if token != TURN_END for piece in parser.add(token)]
    return joined([*pieces, parser.finish()])


def read(*parts: str | int) -> tuple[list[tuple[str, str]], list[ToolCall]]:
    """The kinds and texts of an output, and its calls."""
    pieces = parsed(*parts)
    found = [(piece.kind, piece.text) for piece in pieces if piece.text]
    return found, [piece.call for piece in pieces if piece.call]


WHOLE = 'call:get_time{city:<|"|>Paris<|"|>}'
PARTS: tuple[str | int, ...] = ("call:get_", "time{city:", QUOTE, "Paris", QUOTE, "}")


@pytest.mark.parametrize("before", ["", "I will look.\n", "Look:\n\n"])
def test_the_closing_marker_shows_that_it_is_a_call(before: str) -> None:
    found, calls = read(before, *PARTS, CALL_END, "Done.")
    said = [("answer", before)] if before else []
    assert found == [*said, ("tool_call", WHOLE), ("answer", "Done.")]
    assert calls == [ToolCall("get_time", {"city": "Paris"}, WHOLE)]


def test_its_arguments_come_as_json_with_its_id() -> None:
    [delta] = [delta for piece in parsed(*PARTS, CALL_END) for delta in piece.deltas]
    [call] = [piece.call for piece in parsed(*PARTS, CALL_END) if piece.call]
    assert (delta.index, delta.name, delta.done) == (0, call.name, True)
    assert json.loads(delta.arguments) == call.arguments


@pytest.mark.parametrize("end", [CHANNEL, CALL, TURN_END])
def test_without_the_closing_marker_it_is_text_of_the_answer(end: int) -> None:
    found, calls = read(*PARTS, end)
    assert found == [("answer", WHOLE)]
    assert not calls


@pytest.mark.parametrize(
    "text", ["call:other{}", "Use call:f{}", "call f{}", "call:f", "call:", " call:f{}", "CALL:f{}"]
)
def test_text_that_names_no_tool_at_the_start_of_a_line_stays_text(text: str) -> None:
    assert read(*text, CALL_END) == ([("answer", text)], [])


def test_a_marker_that_is_spelled_out_ends_no_call() -> None:
    text = "call:f{a:1}<tool_call|>"
    assert read(*text) == ([("answer", text)], [])


def test_a_thought_has_no_such_calls() -> None:
    found, calls = read(CHANNEL, "thought\n", "call:f{}", CALL_END, "Hm.", CHANNEL_END, "Yes.")
    assert found == [("thought", "call:f{}Hm."), ("answer", "Yes.")]
    assert not calls


def test_calls_with_and_without_their_marker_are_counted_together() -> None:
    parts = [
        CALL,
        "call:f{a:1}",
        CALL_END,
        "call:f{a:2}",
        CALL_END,
        "call:f{a:3}call:f{}",
        CALL_END,
    ]
    deltas = [delta for piece in parsed(*parts) for delta in piece.deltas]
    assert {delta.index for delta in deltas if delta.done} == {0, 1, 2, 3}
    assert [call.arguments for call in read(*parts)[1]] == [{"a": 1}, {"a": 2}, {"a": 3}, {}]


def test_an_answer_is_held_back_only_while_it_may_be_a_call() -> None:
    tokens, stream = spell("ca", "ll", " me", "\ncal", "l:f{", "x", "\nno")
    parser = ChannelParser(stream, (), TOOLS)
    said = ["".join(piece.text for piece in parser.add(token)) for token in tokens]
    assert said == ["", "", "call me", "\n", "", "", ""]
    assert parser.finish().text == "call:f{x\nno"


def test_no_text_is_lost_or_moved(rng: np.random.Generator) -> None:
    parts = ["call:f{", "call:", "ca", "ll", ":f{a:1}", "\n", "Hi", "}", QUOTE]
    parts += [CALL, CALL_END, CHANNEL, CHANNEL_END, "thought\n"]
    for _ in range(1000):
        chosen = [parts[one] for one in rng.integers(len(parts), size=rng.integers(1, 10))]
        texts = []
        for tools in ((), TOOLS):
            tokens, stream = spell(*chosen)
            parser = ChannelParser(stream, (), tools)
            pieces = [piece for token in tokens for piece in parser.add(token)]
            pieces = joined([*pieces, parser.finish()])
            assert [token for piece in pieces for token in piece.tokens] == tokens
            texts.append("".join(piece.text for piece in pieces))
        assert texts[0] == texts[1]
