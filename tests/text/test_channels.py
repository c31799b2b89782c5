"""Thoughts, answer and tool calls are sorted by tokens, however those are cut; nothing is lost."""

import json
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from helpers.spelled import (
    CALL,
    CALL_END,
    CHANNEL,
    CHANNEL_END,
    MARKERS,
    QUOTE,
    TURN,
    Detokenizer,
    spell,
)
from mlx_gemma_mtp.files.names import DEMO
from mlx_gemma_mtp.text.calls import ToolCall
from mlx_gemma_mtp.text.channels import ChannelParser, Piece, joined
from mlx_gemma_mtp.text.markers import Markers
from mlx_gemma_mtp.text.text_stream import TextStream
from mlx_gemma_mtp.text.tokenizer import Text

LIMITS = {CHANNEL, CHANNEL_END, CALL, CALL_END}


def parse(tokens: Sequence[int], stream: TextStream) -> tuple[list[Piece], ChannelParser]:
    """All pieces until a stop string, and the parser at the end."""
    parser, pieces = ChannelParser(stream), []
    for token in tokens:
        pieces += parser.add(token)
        if parser.stop is not None:
            break
    pieces.append(parser.finish())
    return pieces, parser


def sorted_text(tokens: Sequence[int], stream: TextStream) -> list[tuple[str, str]]:
    return [(piece.kind, piece.text) for piece in joined(parse(tokens, stream)[0]) if piece.text]


def kinds(*parts: str | int) -> list[tuple[str, str]]:
    return sorted_text(*spell(*parts))


def calls(*parts: str | int) -> list[ToolCall]:
    return [piece.call for piece in parse(*spell(*parts))[0] if piece.call]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
def test_the_name_of_a_thought_may_be_cut_into_any_tokens(size: int) -> None:
    whole = "thought\nthought\nHm."
    parts = [whole[at : at + size] for at in range(0, len(whole), size)]
    expected = [("thought", "thought\nHm."), ("answer", "Yes.")]
    assert kinds(CHANNEL, *parts, CHANNEL_END, "Yes.") == expected


@pytest.mark.parametrize("name", ["analysis\n", "\n", "thoughts\n", "thought", "Thought\n", ""])
def test_a_channel_of_another_name_is_not_answer_and_keeps_its_name(name: str) -> None:
    expected = [("thought", f"{name}Hm."), ("answer", "Yes.")]
    assert kinds(CHANNEL, *name, "Hm.", CHANNEL_END, "Yes.") == expected


def test_text_comes_with_the_token_that_makes_it_certain() -> None:
    tokens, stream = spell("a", CHANNEL, "thou", "ght\nb", CHANNEL, "th", "is", CHANNEL_END, "c")
    parser = ChannelParser(stream)
    steps = ["".join(piece.text for piece in parser.add(token)) for token in tokens]
    assert steps == ["a", "", "", "b", "", "", "this", "", "c"]


@pytest.mark.parametrize("name", ["thought\n", "thou", ""])
def test_an_empty_thought_has_no_text(name: str) -> None:
    tokens, stream = spell(CHANNEL, name, CHANNEL_END, "Yes.")
    pieces, parser = parse(tokens, stream)
    assert joined(pieces) == [Piece("thought", "", tokens[:3]), Piece("answer", "Yes.", tokens[3:])]
    assert parser.kind == "answer"


def test_markers_spelled_out_are_text(text: Text) -> None:
    spelled = '<|channel>thought\n<|tool_call>call:f{}<tool_call|><channel|><|"|>'
    tokens = [token for character in spelled for token in text.encode(character)]
    assert not LIMITS & {*tokens}
    assert sorted_text(tokens, text.stream()) == [("answer", spelled)]
    inside = [CHANNEL, *text.encode("thought\n"), *tokens, CHANNEL_END]
    assert sorted_text(inside, text.stream()) == [("thought", spelled)]


def test_without_markers_or_a_tokenizer_everything_is_answer() -> None:
    stream = TextStream(Detokenizer({token: f"<{token}>" for token in LIMITS}), (), Markers())
    assert sorted_text(sorted(LIMITS), stream) == [("answer", "<48><49><100><101>")]
    assert ChannelParser(None).add(CHANNEL) == [Piece("answer", "", [CHANNEL])]
    assert ChannelParser(None).kind == "answer"


def test_several_calls_are_pieces_of_their_own() -> None:
    parts = [CALL, "call:a{}", CALL_END, CALL, "call:b{}", CALL_END, "Done."]
    pieces = joined(parse(*spell(*parts))[0])
    found = [(piece.kind, piece.text, piece.call and piece.call.name) for piece in pieces]
    both = [("tool_call", "call:a{}", "a"), ("tool_call", "call:b{}", "b")]
    assert found == [*both, ("answer", "Done.", None)]


def test_several_calls_between_one_pair_of_markers_are_pieces_of_their_own() -> None:
    tokens, stream = spell(CALL, "call:a{x:1}", "call:b{y:2}call:c{", CALL_END, "Done.")
    pieces = joined(parse(tokens, stream)[0])
    assert [(piece.kind, piece.call and piece.call.raw) for piece in pieces] == [
        *(("tool_call", raw) for raw in ("call:a{x:1}", "call:b{y:2}", "call:c{")),
        ("answer", None),
    ]
    assert "".join(piece.text for piece in pieces) == "call:a{x:1}call:b{y:2}call:c{Done."
    assert [token for piece in pieces for token in piece.tokens] == tokens


# Prompts that end within a thought or a call

TURNS = [TURN, "user\nHi", TURN, "model\n"]
OPENED: dict[str, tuple[list[str | int], str]] = {
    "thought": ([CHANNEL, "thought\n"], "thought"),
    "half a name": ([CHANNEL, "thou"], "thought"),
    "said": ([CHANNEL, "thought\nHm", ", so"], "thought"),
    "another name": ([CHANNEL, "analysis\n"], "thought"),
    "call": ([CALL, "call:f{a:", QUOTE, "b"], "tool_call"),
    "call in a thought": ([CHANNEL, "thought\nHm", CALL, "call:f{"], "tool_call"),
    "thought after a call in it": ([CHANNEL, "thought\nHm", CALL, "call:f{}", CALL_END], "thought"),
    "closed thought": ([CHANNEL, "thought\n", CHANNEL_END], "answer"),
    "closed call": ([CALL, "call:f{}", CALL_END], "answer"),
    "text": (["So"], "answer"),
    "nothing": ([], "answer"),
    "closed by a turn": ([CHANNEL, "thought\nHm", CALL, "call:f{", *TURNS], "answer"),
}


@pytest.mark.parametrize("what", OPENED)
@pytest.mark.parametrize("before", [[], TURNS, [CHANNEL, "thought\nHm", *TURNS]])
def test_output_starts_in_what_the_prompt_ends_in(what: str, before: list[str | int]) -> None:
    opened, kind = OPENED[what]
    prompt = [*before, *opened]
    tokens, stream = spell(*prompt, "ght\n" if what == "half a name" else "", "x")
    parser = ChannelParser(stream, tokens[: len(prompt)])
    assert parser.kind == kind
    pieces = [piece for token in tokens[len(prompt) :] for piece in parser.add(token)]
    assert [piece[:3] for piece in joined(pieces)] == [(kind, "x", tokens[len(prompt) :])]


def test_a_call_that_the_prompt_opened_is_read_whole(text: Text) -> None:
    whole = text.encode('<|tool_call>call:f{a:<|"|>é, or 😀<|"|>,b:[1]}<tool_call|>')
    for length in range(1, len(whole)):
        parser = ChannelParser(text.stream(["or"]), whole[:length])
        pieces = [piece for token in whole[length:] for piece in parser.add(token)]
        assert [piece.call.arguments for piece in pieces if piece.call] == [
            {"a": "é, or 😀", "b": [1]}
        ]
        assert parser.stop is None


def test_a_stop_string_in_the_prompt_stops_nothing(text: Text) -> None:
    prompt = text.encode("<|turn>model\nSTOP<|channel>thought\nSTOP<channel|>STOP ST")
    parser = ChannelParser(text.stream(["STOP"]), prompt)
    assert parser.stop is None
    said = [piece.text for token in text.encode("OP STOP") for piece in parser.add(token)]
    assert ("".join(said), parser.stop) == ("OP ", "STOP")


def test_a_quote_spelled_out_is_part_of_a_string() -> None:
    parts = [CALL, "call:f{a:", QUOTE, 'x<|"|>,b:<|"|>y', QUOTE, "}", CALL_END]
    assert calls(*parts)[0].arguments == {"a": 'x<|"|>,b:<|"|>y'}
    assert calls(CALL, 'call:f{a:<|"|>x<|"|>}', CALL_END)[0].arguments is None


def test_a_stop_string_counts_in_one_stretch_of_the_answer_only(text: Text) -> None:
    thought = [CHANNEL, *text.encode("thought\nSTOP now"), CHANNEL_END]
    call = [CALL, *text.encode("call:STOP{}"), CALL_END]
    # Before a marker nothing is held back: "ST" is no start of a stop string there.
    tokens = [*text.encode("0 ST"), *thought, *text.encode("OP "), *call, *text.encode("1 STOP 2")]
    kinds = ("answer", "thought", "answer", "tool_call", "answer")
    texts = ("0 ST", "STOP now", "OP ", "call:STOP{}", "1 ")
    assert sorted_text(tokens, text.stream(["STOP"])) == [*zip(kinds, texts, strict=True)]


def plainly(text: Text, tokens: Sequence[int]) -> Iterator[tuple[str, str]]:
    """The kind and text of each stretch between markers, by the rule over whole stretches."""
    stretch: list[int] = []
    thinking, calling, opened = False, False, False
    for token in [*tokens, None]:
        if token is not None and token not in LIMITS:
            stretch.append(token)
            continue
        stream = text.stream()
        said = "".join(stream.add(one) for one in stretch) + stream.finish()
        if opened and not calling:
            said = "" if "thought\n".startswith(said) else said.removeprefix("thought\n")
        yield ("tool_call" if calling else "thought" if thinking else "answer"), said
        calling, opened = token == CALL, token == CHANNEL
        thinking = token == CHANNEL or (thinking and token != CHANNEL_END)
        stretch = []


def test_any_tokens_are_sorted_and_nothing_is_changed(text: Text, rng: np.random.Generator) -> None:
    name = [*text.encode("thought"), *text.encode("\n")]
    frequent = [*LIMITS, QUOTE, *text.encode("😀é"), *name, *text.encode("{a:1}")]
    for _ in range(300):
        tokens: list[int] = []
        for _ in range(rng.integers(1, 40)):
            if rng.random() < 0.2:
                tokens += [CHANNEL, *name[: rng.integers(len(name) + 1)]]
            elif rng.random() < 0.5:
                tokens.append(int(rng.choice(frequent)))
            else:
                tokens.append(int(rng.integers(4, 2048)))
        pieces, parser = parse(tokens, text.stream())
        stretches = list(plainly(text, tokens))
        assert [token for piece in pieces for token in piece.tokens] == tokens
        expected = joined(Piece(*stretch, []) for stretch in stretches)
        assert joined(Piece(*piece[:2], []) for piece in pieces) == expected
        assert parser.kind == stretches[-1][0]
        limits = [None, *(token for token in tokens if token in LIMITS), None]
        around = zip(limits[:-1], limits[1:], stretches, strict=True)
        whole = [said for start, end, (_, said) in around if (start, end) == (CALL, CALL_END)]
        assert [piece.call.raw for piece in pieces if piece.call] == whole


def other_tokenizer(folder: Path, **renamed: str) -> Text:
    """The demo's tokenizer with some of its tokens exchanged."""
    for path in DEMO.glob("*token*"):
        shutil.copy(path, folder)
    path = folder / "tokenizer.json"
    words = {json.dumps(old): json.dumps(new) for old, new in renamed.items()}
    either = re.compile("|".join(map(re.escape, words)))
    path.write_text(either.sub(lambda found: words[found[0]], path.read_text()))
    return Text(folder)


def test_markers_are_found_by_their_text(text: Text, tmp_path: Path) -> None:
    assert text.markers == MARKERS
    swapped = {"<|channel>": "<tool_call|>", "<tool_call|>": "<|channel>"}
    assert other_tokenizer(tmp_path, **swapped).markers == Markers(49, 101, 48, 100, 52, 105)


def test_a_marker_without_its_counterpart_is_text(tmp_path: Path) -> None:
    gone = {"<channel|>": "<gone|>", "<|tool_call>": "<gone>", '<|"|>': "<gone|gone>"}
    lacking = other_tokenizer(tmp_path, **gone)
    assert lacking.markers == Markers(turn=105)
    spelled = "<|channel>thought\nHm<tool_call|>"
    assert sorted_text(lacking.encode(spelled), lacking.stream()) == [("answer", spelled)]
