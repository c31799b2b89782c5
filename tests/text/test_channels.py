"""Thought, answer and tool call: told apart by tokens, wherever those are cut; nothing is lost."""

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlx_gemma_mtp import Chunk, Completion, Engine, SamplingParams, load
from mlx_gemma_mtp.demo.recipe.tools import TOOLS
from mlx_gemma_mtp.engine.request import Request
from mlx_gemma_mtp.errors import UsageError
from mlx_gemma_mtp.files.hub import DEMO
from mlx_gemma_mtp.text.channels import Piece, Router, ToolCall, joined
from mlx_gemma_mtp.text.tokenizer import NO_MARKERS, Markers, Text, TextStream

MARKERS = Markers(100, 101, 48, 49, 52)
CHANNEL, CHANNEL_END, CALL, CALL_END, QUOTE = MARKERS
TURN_END = 106
LIMITS = {CHANNEL, CHANNEL_END, CALL, CALL_END}

Told = list[tuple[str, str]]


@pytest.fixture(scope="module")
def text() -> Text:
    return Text(DEMO)


class Said:
    """A detokenizer for tokens that are listed here; each has some text."""

    def __init__(self, texts: dict[int, str]) -> None:
        self._texts = texts
        self.last_segment = ""

    def add_token(self, token: int) -> None:
        self.last_segment = self._texts[token]

    def finalize(self) -> None:
        self.last_segment = ""


def spell(*parts: str | int) -> tuple[list[int], TextStream]:
    """Tokens of a text given by its parts, markers as ids and all else as text, and its stream."""
    texts = {1000 + at: part for at, part in enumerate(parts) if isinstance(part, str)}
    tokens = [part if isinstance(part, int) else 1000 + at for at, part in enumerate(parts)]
    return tokens, TextStream(Said(texts | {QUOTE: '<|"|>'}), (), MARKERS)


def route(tokens: Sequence[int], stream: TextStream) -> tuple[list[Piece], Router]:
    """All pieces of a text until a stop string, and the router at its end."""
    router, pieces = Router(stream), []
    for token in tokens:
        pieces += router.add(token)
        if router.stopped:
            break
    pieces.append(router.finish())
    return pieces, router


def told(*parts: str | int) -> Told:
    """What a text is told apart into."""
    pieces, _ = route(*spell(*parts))
    return [(piece.kind, piece.text) for piece in joined(pieces) if piece.text]


def calls(*parts: str | int) -> list[ToolCall]:
    pieces, _ = route(*spell(*parts))
    return [piece.call for piece in pieces if piece.call]


# Kinds


def test_a_thought_comes_apart_from_the_answer_without_its_name_and_markers() -> None:
    thought = ("thought", "Hm.\n")
    answer = ("answer", "Yes.")
    assert told(CHANNEL, "thought\n", "Hm.\n", CHANNEL_END, "Yes.") == [thought, answer]
    assert told("Yes.", CHANNEL, "thought\n", "Hm.\n", CHANNEL_END) == [answer, thought]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
def test_the_name_of_a_thought_may_be_cut_into_any_tokens(size: int) -> None:
    whole = "thought\nthought\nHm."
    parts = [whole[at : at + size] for at in range(0, len(whole), size)]
    assert told(CHANNEL, *parts, CHANNEL_END, "Yes.") == [
        ("thought", "thought\nHm."),
        ("answer", "Yes."),
    ]


@pytest.mark.parametrize("name", ["analysis\n", "\n", "thoughts\n", "thought", "Thought\n", ""])
def test_a_channel_of_another_name_is_no_answer_and_keeps_its_name(name: str) -> None:
    parts = [*name, "Hm."]
    assert told(CHANNEL, *parts, CHANNEL_END, "Yes.") == [
        ("thought", f"{name}Hm."),
        ("answer", "Yes."),
    ]


def test_text_is_told_with_the_token_that_makes_it_certain() -> None:
    tokens, stream = spell("a", CHANNEL, "thou", "ght\nb", CHANNEL, "th", "is", CHANNEL_END, "c")
    router = Router(stream)
    steps = ["".join(piece.text for piece in router.add(token)) for token in tokens]
    assert steps == ["a", "", "", "b", "", "", "this", "", "c"]


@pytest.mark.parametrize("name", ["thought\n", "thou", ""])
def test_an_empty_thought_is_no_text(name: str) -> None:
    tokens, stream = spell(CHANNEL, name, CHANNEL_END, "Yes.")
    pieces, router = route(tokens, stream)
    assert joined(pieces) == [
        Piece("thought", "", tokens[:3]),
        Piece("answer", "Yes.", tokens[3:]),
    ]
    assert router.kind == "answer"


def test_a_thought_that_is_never_closed_stays_one() -> None:
    pieces, router = route(*spell(CHANNEL, "thought\n", "Hm. ", "The answer is 42."))
    assert {piece.kind for piece in pieces if piece.text} == {"thought"}
    assert router.kind == "thought"


def test_a_marker_that_closes_nothing_is_left_out() -> None:
    assert told("a", CHANNEL_END, "b", CALL_END, "c") == [("answer", "abc")]


def test_markers_spelled_out_are_text(text: Text) -> None:
    spelled = '<|channel>thought\n<|tool_call>call:f{}<tool_call|><channel|><|"|>'
    tokens = [token for character in spelled for token in text.encode(character)]
    assert not LIMITS & set(tokens)
    pieces, _ = route(tokens, text.stream())
    assert [(piece.kind, piece.text) for piece in joined(pieces)] == [("answer", spelled)]
    inside = [CHANNEL, *text.encode("thought\n"), *tokens, CHANNEL_END]
    pieces, _ = route(inside, text.stream())
    assert [(piece.kind, piece.text) for piece in joined(pieces)] == [("thought", spelled)]


def test_without_markers_or_a_tokenizer_all_is_answer() -> None:
    texts = {token: f"<{token}>" for token in LIMITS}
    pieces, router = route(sorted(LIMITS), TextStream(Said(texts), ()))
    assert [piece[:2] for piece in joined(pieces)] == [("answer", "<48><49><100><101>")]
    assert Router(None).add(CHANNEL) == [Piece("answer", "", [CHANNEL])]
    assert router.kind == Router(None).kind == "answer"


# Tool calls


def test_a_call_comes_apart_and_is_read() -> None:
    parts = [CALL, "call:", "weather{", "city:", QUOTE, "Rome", QUOTE, ",days:3}", CALL_END]
    raw = 'call:weather{city:<|"|>Rome<|"|>,days:3}'
    assert told("Let me see.", *parts) == [("answer", "Let me see."), ("tool_call", raw)]
    assert calls(*parts) == [ToolCall("weather", {"city": "Rome", "days": 3}, raw)]


def test_several_calls_are_each_a_piece_of_their_own() -> None:
    one = [CALL, "call:a{}", CALL_END]
    other = [CALL, "call:b{}", CALL_END]
    pieces, _ = route(*spell(*one, *other, "Done."))
    found = [(piece.kind, piece.text, piece.call and piece.call.name) for piece in joined(pieces)]
    assert found == [
        ("tool_call", "call:a{}", "a"),
        ("tool_call", "call:b{}", "b"),
        ("answer", "Done.", None),
    ]


def test_a_call_within_a_thought_is_a_call_and_the_thought_goes_on_until_it_is_closed() -> None:
    parts = [CHANNEL, "thought\n", "I call. ", CALL, "call:a{}", CALL_END, "And?", CHANNEL_END, "!"]
    assert told(*parts) == [
        ("thought", "I call. "),
        ("tool_call", "call:a{}"),
        ("thought", "And?"),
        ("answer", "!"),
    ]
    assert [call.name for call in calls(*parts)] == ["a"]


def test_a_call_that_is_cut_off_is_none() -> None:
    for parts in (
        [CALL, "call:a{x:1}"],
        [CALL, "call:a{x:", QUOTE, "b"],
        [CHANNEL, "thought\n", CALL, "call:a{}"],
    ):
        assert calls(*parts) == []
        assert route(*spell(*parts))[1].kind == "tool_call"


@pytest.mark.parametrize("marker", [CHANNEL, CHANNEL_END, CALL])
def test_a_call_broken_by_another_marker_is_none(marker: int) -> None:
    broken = [CALL, "call:a{x:1", marker]
    assert calls(*broken, CHANNEL_END, CALL_END) == []
    assert [call.name for call in calls(*broken, CALL, "call:b{}", CALL_END)] == ["b"]


READABLE: dict[str, Any] = {
    "{}": {},
    "{a:1,b:-2.5e3,c:0}": {"a": 1, "b": -2500.0, "c": 0},
    "{a:true,b:false,c:null}": {"a": True, "b": False, "c": None},
    "{a:Q1Q}": {"a": "1"},
    "{a:QQ,b:Q Q}": {"a": "", "b": " "},
    '{a:Q{"x": [1], y: \\n}Q}': {"a": '{"x": [1], y: \\n}'},
    "{a:[1,Q,Q,[true]],b:{c:{d:QeQ}}}": {"a": [1, ",", [True]], "b": {"c": {"d": "e"}}},
    "{QaQ:{Qb cQ:1}}": {"a": {"b c": 1}},
    "{first name:1,x-y.z:2,größe:3,7:4}": {"first name": 1, "x-y.z": 2, "größe": 3, "7": 4},
    " {a : 1 ,\n b: [ ] } ": {"a": 1, "b": []},
    "{a:Q😀\n\tQ}": {"a": "😀\n\t"},
}
UNREADABLE = [
    "{a:Rome}",
    "{a:1",
    "{a:1}}",
    "{a:1}{b:2}",
    "{a}",
    "{:1}",
    "{ :1}",
    "{a:}",
    "{a:1,}",
    "{a:QbQQcQ}",
    "{a:Qb}",
    '{a:"b"}',
    "{a:\\1}",
    "{a:NaN}",
    "{a:-Infinity}",
    "{a:1e999}",
    "{a:01}",
    "{a:" + "9" * 5000 + "}",
    "{a:" + "[" * 50_000 + "]" * 50_000 + "}",
    "{a:None}",
    "{a\nb:1}{",
]


def written(arguments: str) -> list[str | int]:
    """A call of f with these arguments, Q for each quote."""
    strings = f"call:f{arguments}".split("Q")
    parts = [part for string in strings for part in (string, QUOTE)][:-1]
    return [CALL, *parts, CALL_END]


@pytest.mark.parametrize("arguments", READABLE)
def test_arguments_are_read(arguments: str) -> None:
    raw = f"call:f{arguments}".replace("Q", '<|"|>')
    assert calls(*written(arguments)) == [ToolCall("f", READABLE[arguments], raw)]


@pytest.mark.parametrize("arguments", UNREADABLE, ids=lambda arguments: repr(arguments[:20]))
def test_arguments_that_cannot_be_read_are_kept_as_written(arguments: str) -> None:
    raw = f"call:f{arguments}".replace("Q", '<|"|>')
    assert calls(*written(arguments)) == [ToolCall("f", None, raw)]


@pytest.mark.parametrize("raw", ["", "f{}", "call:", "call:f", "call:{}", "Hello"])
def test_a_call_that_names_nothing_is_kept_as_written(raw: str) -> None:
    assert calls(CALL, raw, CALL_END) == [ToolCall("", None, raw)]


def test_a_quote_spelled_out_is_part_of_a_string() -> None:
    parts = [CALL, "call:f{a:", QUOTE, 'x<|"|>,b:<|"|>y', QUOTE, "}", CALL_END]
    assert calls(*parts)[0].arguments == {"a": 'x<|"|>,b:<|"|>y'}
    assert calls(CALL, 'call:f{a:<|"|>x<|"|>}', CALL_END)[0].arguments is None


def test_reading_a_call_takes_time_in_proportion_to_its_length() -> None:
    for junk in (" ", "{", "a", ",", "{a:", " a", "a :"):
        assert calls(CALL, "call:f{" + junk * 100_000, CALL_END)[0].arguments is None


# Stop strings


def test_a_stop_string_counts_in_the_answer_alone(text: Text) -> None:
    thought = [CHANNEL, *text.encode("thought\nSTOP now"), CHANNEL_END]
    call = [CALL, *text.encode("call:STOP{}"), CALL_END]
    answer = text.encode("One STOP two")
    pieces, router = route([*thought, *call, *answer], text.stream(["STOP"]))
    assert router.stopped
    assert [(piece.kind, piece.text) for piece in joined(pieces) if piece.text] == [
        ("thought", "STOP now"),
        ("tool_call", "call:STOP{}"),
        ("answer", "One "),
    ]


def test_a_stop_string_does_not_reach_across_a_marker(text: Text) -> None:
    thought = [CHANNEL, *text.encode("thought\nHm"), CHANNEL_END]
    tokens = [*text.encode("One ST"), *thought, *text.encode("OP two")]
    pieces, router = route(tokens, text.stream(["STOP"]))
    assert not router.stopped
    assert [(piece.kind, piece.text) for piece in joined(pieces)] == [
        ("answer", "One ST"),  # before the thought, not held back beyond it
        ("thought", "Hm"),
        ("answer", "OP two"),
    ]


# Any tokens


def plainly(text: Text, tokens: Sequence[int]) -> Iterator[tuple[str, str]]:
    """The stretches between markers, by the rule over whole stretches: kind and text."""
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


def test_any_tokens_are_told_apart_and_nothing_is_altered(
    text: Text, rng: np.random.Generator
) -> None:
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
        pieces, router = route(tokens, text.stream())
        stretches = list(plainly(text, tokens))
        assert [token for piece in pieces for token in piece.tokens] == tokens
        expected = joined(Piece(kind, said, []) for kind, said in stretches)
        assert joined(Piece(*piece[:2], []) for piece in pieces) == expected
        assert router.kind == stretches[-1][0]
        limits = [None, *(token for token in tokens if token in LIMITS), None]
        around = zip(limits[:-1], limits[1:], stretches, strict=True)
        whole = [said for start, end, (_, said) in around if (start, end) == (CALL, CALL_END)]
        assert [piece.call.raw for piece in pieces if piece.call] == whole


def test_pieces_with_markers_and_names_join_to_the_decoded_text(
    text: Text, rng: np.random.Generator
) -> None:
    words = ["Hm. ", "42", "\n", "x < y", "😀", "é{}"]
    for _ in range(100):
        tokens, whole = [], ""
        for _ in range(rng.integers(1, 8)):
            words_now = "".join(rng.choice(words, rng.integers(0, 4)))
            form = rng.integers(3)
            if form == 0:
                tokens += [CHANNEL, *text.encode(f"thought\n{words_now}"), CHANNEL_END]
            elif form == 1:
                tokens += [CALL, *text.encode(f"call:f{words_now}"), CALL_END]
            else:
                tokens += text.encode(words_now)
        router = Router(text.stream())
        for token in tokens:
            whole += "".join(piece.text for piece in router.add(token))
            whole += text.decode([token]) if token in LIMITS else ""
            whole += "thought\n" if token == CHANNEL else ""
        assert whole + router.finish().text == text.decode(tokens)


# Which tokens are markers


def other_tokenizer(folder: Path, **renamed: str) -> Text:
    """The demo's tokenizer with some of its tokens exchanged."""
    for path in DEMO.glob("*token*"):
        shutil.copy(path, folder)
    path = folder / "tokenizer.json"
    words = {json.dumps(old): json.dumps(new) for old, new in renamed.items()}
    parts = path.read_text(encoding="utf-8")
    for at, old in enumerate(words):
        parts = parts.replace(old, f"\0{at}\0")
    for at, new in enumerate(words.values()):
        parts = parts.replace(f"\0{at}\0", new)
    path.write_text(parts, encoding="utf-8")
    return Text(folder)


def test_markers_are_found_by_their_text(text: Text, tmp_path: Path) -> None:
    assert text.markers == MARKERS
    swapped = other_tokenizer(
        tmp_path, **{"<|channel>": "<tool_call|>", "<tool_call|>": "<|channel>"}
    )
    assert swapped.markers == Markers(49, 101, 48, 100, 52)


def test_a_marker_without_its_counterpart_is_none(tmp_path: Path) -> None:
    lacking = other_tokenizer(
        tmp_path, **{"<channel|>": "<gone|>", "<|tool_call>": "<gone>", '<|"|>': "<gone|gone>"}
    )
    assert lacking.markers == NO_MARKERS
    tokens = lacking.encode("<|channel>thought\nHm<tool_call|>")
    pieces, _ = route(tokens, lacking.stream())
    assert [piece[:2] for piece in joined(pieces)] == [
        ("answer", "<|channel>thought\nHm<tool_call|>")
    ]


# Requests


def play(rounds: Sequence[Sequence[int]], stream: TextStream | None) -> tuple[list[Chunk], Any]:
    """The chunks of a request whose rounds give these tokens, and its completion if it ended."""
    chunks: list[Chunk] = []
    request = Request(
        [5],
        SamplingParams(seed=1),
        max_tokens=sum(map(len, rounds)),
        num_draft_tokens=None,
        eos=frozenset({TURN_END}),
        stream=stream,
        on_chunk=chunks.append,
    )
    request.queue()
    request.begin()
    for tokens in rounds:
        assert not request.ended
        request.take(tokens, len(tokens) - 1)
    return chunks, request.generation.result()


def test_a_round_gives_one_chunk_where_there_is_no_marker() -> None:
    tokens, stream = spell("a", "b", "c", "d", "e", "f", TURN_END)
    rounds = [tokens[:1], tokens[1:3], tokens[3:6], tokens[6:]]
    for one in (stream, None):
        chunks, done = play(rounds, one)
        assert [chunk.tokens for chunk in chunks] == rounds
        assert {chunk.kind for chunk in chunks} == {"answer"}
        assert done.text == ("abcdef" if one else "")
        assert done.unclosed is None


def test_a_round_gives_a_chunk_for_each_kind_in_it() -> None:
    tokens, stream = spell(
        CHANNEL, "thought\n", "Hm", CHANNEL_END, "A", CALL, "call:f{}", CALL_END, "B", TURN_END
    )
    chunks, done = play([tokens[:3], tokens[3:9], tokens[9:]], stream)
    assert [(chunk.kind, chunk.text, chunk.tokens) for chunk in chunks] == [
        ("thought", "Hm", tokens[:3]),
        ("thought", "", tokens[3:4]),
        ("answer", "A", tokens[4:5]),
        ("tool_call", "call:f{}", tokens[5:8]),
        ("answer", "B", tokens[8:9]),
        ("answer", "", tokens[9:]),
    ]
    assert [chunk.finish_reason for chunk in chunks] == [*[None] * 5, "stop"]
    assert [chunk.stats for chunk in chunks] == [*[None] * 5, done.stats]
    assert [chunk.tool_call for chunk in chunks if chunk.tool_call] == list(done.tool_calls)
    assert (done.text, done.thought, done.tokens) == ("AB", "Hm", tokens)
    stats = done.stats
    counts = (stats.thought_tokens, stats.tool_call_tokens, stats.answer_tokens)
    assert counts == (4, 3, 3)
    assert sum(counts) == stats.generated_tokens == len(tokens)


@pytest.mark.parametrize(
    ("parts", "thought", "unclosed"),
    [
        ((CHANNEL, "thought\n", "Hm"), "Hm", "thought"),
        ((CHANNEL, "thou"), "", "thought"),
        ((CHANNEL, "thought\n", "Hm", TURN_END), "Hm", "thought"),
        ((CHANNEL, "thought\n", "Hm", CALL, "call:f{"), "Hm", "tool_call"),
        ((CHANNEL, "thought\n", "Hm", CHANNEL_END), "Hm", None),
    ],
)
def test_a_completion_says_what_it_ended_in(
    parts: tuple[str | int, ...], thought: str, unclosed: str | None
) -> None:
    tokens, stream = spell(*parts)
    _, done = play([tokens], stream)
    assert (done.text, done.thought, done.tool_calls) == ("", thought, ())
    assert done.unclosed == unclosed
    assert done.stats.answer_tokens == 0


def test_a_completion_is_a_message_to_go_on_from() -> None:
    def message(*parts: str | int) -> dict[str, Any]:
        tokens, stream = spell(*parts)
        _, done = play([tokens], stream)
        assert isinstance(done, Completion)
        return done.message

    assert message("Hi", TURN_END) == {"role": "assistant", "content": "Hi"}
    call = [CALL, "call:f{a:", QUOTE, "b", QUOTE, "}", CALL_END]
    strange = [CALL, "call:g{a:b}", CALL_END]
    nameless = [CALL, "Hello", CALL_END]
    assert message(CHANNEL, "thought\n", "Hm\n", CHANNEL_END, *call, *strange, *nameless) == {
        "role": "assistant",
        "content": "",
        "reasoning": "Hm",
        "tool_calls": [
            {
                "id": f"call_{number}",
                "type": "function",
                "function": {"name": name, "arguments": arguments},
            }
            for number, (name, arguments) in enumerate([("f", {"a": "b"}), ("g", "a:b")])
        ],
    }


# The demo pair


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with load("demo") as engine:
        yield engine


GREEDY = SamplingParams(temperature=0, max_tokens=80)
THINKING = replace(GREEDY, thinking=True)


def test_the_demo_thinks_and_answers_and_the_stream_tells_the_same(engine: Engine) -> None:
    params = replace(THINKING, num_draft_tokens=3)  # a round may hold the end of the thought
    (done,) = engine.generate("What is 17 + 25?", params)
    assert done.text == "17 + 25 = 42"
    assert done.thought
    assert "thought" not in done.thought
    assert done.unclosed is None
    chunks = list(engine.stream("What is 17 + 25?", params))
    assert [token for chunk in chunks for token in chunk.tokens] == done.tokens
    for kind, said in (("answer", done.text), ("thought", done.thought), ("tool_call", "")):
        assert "".join(chunk.text for chunk in chunks if chunk.kind == kind) == said
    assert done.stats.thought_tokens == done.tokens.index(CHANNEL_END) + 1
    (plain,) = engine.generate("What is 17 + 25?", GREEDY)
    assert (plain.text, plain.thought, plain.stats.thought_tokens) == (done.text, "", 0)


def test_the_demo_calls_a_tool_and_uses_what_it_says(engine: Engine) -> None:
    assert engine.text is not None
    messages: list[dict[str, Any]] = [{"role": "user", "content": "What time is it in Paris?"}]
    tools = [TOOLS["get_time"]]

    def ask() -> Completion:
        assert engine.text is not None
        prompt = engine.text.chat(messages, tools=tools, enable_thinking=True)
        return engine.generate(prompt, GREEDY)[0]

    done = ask()
    (call,) = done.tool_calls
    assert (call.name, call.arguments) == ("get_time", {"city": "Paris"})
    assert done.text == ""
    assert done.thought
    assert done.unclosed is None
    for length in (done.tokens.index(CALL) + 2, done.tokens.index(CALL_END)):
        prompt = engine.text.chat(messages, tools=tools, enable_thinking=True)
        (cut,) = engine.generate(prompt, replace(GREEDY, max_tokens=length))
        assert (cut.text, cut.tool_calls, cut.unclosed) == ("", (), "tool_call")

    messages += [done.message, {"role": "tool", "name": "get_time", "content": {"time": "9:30"}}]
    assert "9:30" in ask().text


def test_thinking_is_for_prompts_that_a_template_lays_out(engine: Engine) -> None:
    with pytest.raises(UsageError, match="thinking"):
        engine.generate([5, 6], THINKING)
    with pytest.raises(UsageError, match="thinking"):
        SamplingParams(thinking=1)  # type: ignore[arg-type]
