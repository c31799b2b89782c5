"""Chunks, completions and messages keep thoughts, answer and tool calls apart."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from helpers.spelled import CALL, CALL_END, CHANNEL, CHANNEL_END, QUOTE, TURN_END, spell
from helpers.traffic import assert_told_once, text_of, tokens_of
from mlx_gemma_mtp import Chunk, Completion, Engine, SamplingParams, load
from mlx_gemma_mtp.demo.recipe.tools import TOOLS
from mlx_gemma_mtp.engine.request import Request
from mlx_gemma_mtp.errors import UsageError
from mlx_gemma_mtp.files.names import DEMO
from mlx_gemma_mtp.text.text_stream import TextStream
from mlx_gemma_mtp.text.tokenizer import Text


def play(
    rounds: Sequence[Sequence[int]],
    stream: TextStream | None,
    prompt: Sequence[int] = (5,),
    **options: Any,
) -> tuple[list[Chunk], Completion]:
    """The chunks and the completion of a request whose rounds give these tokens."""
    chunks: list[Chunk] = []
    request = Request(
        [*prompt],
        options.pop("params", SamplingParams(seed=1)),
        max_tokens=sum(map(len, rounds)),
        num_draft_tokens=None,
        eos=frozenset({TURN_END}),
        stream=stream,
        on_chunk=chunks.append,
        **options,
    )
    request.queue()
    request.start(exact=False)
    for tokens in rounds:
        assert not request.ended
        request.take(tokens, len(tokens) - 1)
    return chunks, request.generation.result()


def test_a_round_without_markers_gives_one_chunk() -> None:
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
    assert_told_once(chunks, done)
    assert [chunk.tool_call for chunk in chunks if chunk.tool_call] == list(done.tool_calls)
    assert (done.text, done.thought, done.tokens) == ("AB", "Hm", tokens)
    stats = done.stats
    counts = (stats.thought_tokens, stats.tool_call_tokens, stats.answer_tokens)
    assert counts == (4, 3, 3)
    assert sum(counts) == stats.generated_tokens == len(tokens)


def test_a_call_without_its_opening_marker_is_found_if_tools_may_be_called() -> None:
    written = ("call:get_", "time{city:", QUOTE, "Paris", QUOTE, "}", CALL_END, TURN_END)
    for choice, found in (("auto", ["get_time"]), ("none", [])):
        tokens, stream = spell(*written)
        params = SamplingParams(seed=1, tool_choice=choice)
        schemas = [TOOLS["get_time"]]
        chunks, done = play([[one] for one in tokens], stream, params=params, schemas=schemas)
        assert [call.name for call in done.tool_calls] == found
        assert (done.text == "") == (choice == "auto")
        assert_told_once(chunks, done)


def test_characters_split_over_tokens_come_out_whole() -> None:
    text, emoji = Text(DEMO), "So: 😀é 日!"
    tokens = [*text.encode(emoji), TURN_END]
    assert len(text.encode("😀")) == 4
    chunks, done = play([[token] for token in tokens], text.stream())
    assert text_of(chunks) == done.text == emoji


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
def test_a_completion_says_which_kind_it_ended_in(
    parts: tuple[str | int, ...], thought: str, unclosed: str | None
) -> None:
    tokens, stream = spell(*parts)
    _, done = play([tokens], stream)
    assert (done.text, done.thought, done.tool_calls) == ("", thought, ())
    assert done.unclosed == unclosed
    assert done.stats.answer_tokens == 0


def test_a_thought_and_a_call_that_the_prompt_opened_are_not_answer() -> None:
    tokens, stream = spell(CHANNEL, "thought\nHm", "m", CHANNEL_END, "Yes.", TURN_END)
    chunks, done = play([tokens[2:]], stream, tokens[:2])
    assert (done.thought, done.text, done.unclosed) == ("m", "Yes.", None)
    assert done.message == {"role": "assistant", "content": "Yes.", "reasoning": "m"}
    assert done.stats.thought_tokens == 2
    assert_told_once(chunks, done)

    tokens, stream = spell(CALL, "call:f{a:", "1}call:g{}", CALL_END, TURN_END)
    chunks, done = play([tokens[2:]], stream, tokens[:2])
    assert [(call.name, call.arguments) for call in done.tool_calls] == [("f", {"a": 1}), ("g", {})]
    assert (done.text, done.unclosed) == ("", None)
    assert [chunk.tool_call for chunk in chunks if chunk.tool_call] == list(done.tool_calls)
    assert_told_once(chunks, done)
    assert play([tokens[2:3]], stream, tokens[:2])[1].unclosed == "tool_call"


def test_a_completion_is_a_message_to_continue_from() -> None:
    def message(*parts: str | int) -> dict[str, Any]:
        tokens, stream = spell(*parts)
        return play([tokens], stream)[1].message

    assert message("Hi", TURN_END) == {"role": "assistant", "content": "Hi"}
    thought = [CHANNEL, "thought\n", "Hm\n", CHANNEL_END]
    call = [CALL, "call:f{a:", QUOTE, "b", QUOTE, "}", CALL_END]
    strange, nameless = [CALL, "call:g{a:b}", CALL_END], [CALL, "Hello", CALL_END]
    functions = [
        {"name": "f", "arguments": {"a": "b"}},
        {"name": "g", "arguments": {"unreadable": "a:b"}},
    ]
    done = message(*thought, *call, *strange, *nameless)
    made = done.pop("tool_calls")
    assert done == {"role": "assistant", "content": "", "reasoning": "Hm"}
    assert [one["function"] for one in made] == functions
    assert {one["type"] for one in made} == {"function"}
    again = message(*call)["tool_calls"]
    assert len({one["id"] for one in [*made, *again]}) == 3  # also in another turn


# The demo pair


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with load("demo") as engine:
        yield engine


GREEDY = SamplingParams(temperature=0, max_tokens=80)
THINKING = replace(GREEDY, thinking=True)


def test_the_demo_thinks_and_answers_and_the_stream_is_the_same(engine: Engine) -> None:
    params = replace(THINKING, num_draft_tokens=3)  # a round may hold the end of the thought
    (done,) = engine.generate("What is 17 + 25?", params)
    assert (done.text, done.unclosed) == ("17 + 25 = 42", None)
    assert done.thought
    assert "thought" not in done.thought
    chunks = list(engine.stream("What is 17 + 25?", params))
    assert tokens_of(chunks) == done.tokens
    for kind, expected in (("answer", done.text), ("thought", done.thought), ("tool_call", "")):
        assert "".join(chunk.text for chunk in chunks if chunk.kind == kind) == expected
    assert done.stats.thought_tokens == done.tokens.index(CHANNEL_END) + 1
    (plain,) = engine.generate("What is 17 + 25?", GREEDY)
    assert (plain.text, plain.thought, plain.stats.thought_tokens) == (done.text, "", 0)


def test_the_demo_continues_a_thought_that_token_ids_end_in(engine: Engine) -> None:
    assert engine.text is not None
    prompt = engine.text.prompt("What is 17 + 25?", thinking=True)
    start = engine.text.encode("<|channel>thought\nFrom the right: 7 + 5 = 12")
    (done,) = engine.generate([*prompt, *start], GREEDY)
    assert done.text == "17 + 25 = 42"
    assert "1 + 2" in done.thought
    assert "From" not in done.thought


def test_the_demo_calls_a_tool_and_uses_its_result(engine: Engine) -> None:
    messages: list[dict[str, Any]] = [{"role": "user", "content": "What time is it in Paris?"}]

    def ask(params: SamplingParams = GREEDY) -> Completion:
        assert engine.text is not None
        prompt = engine.text.chat(messages, tools=[TOOLS["get_time"]], enable_thinking=True)
        return engine.generate(prompt, params)[0]

    done = ask()
    (call,) = done.tool_calls
    assert (call.name, call.arguments) == ("get_time", {"city": "Paris"})
    assert done.text == ""
    assert done.thought
    assert done.unclosed is None
    for length in (done.tokens.index(CALL) + 2, done.tokens.index(CALL_END)):
        cut = ask(replace(GREEDY, max_tokens=length))
        assert (cut.text, cut.tool_calls, cut.unclosed) == ("", (), "tool_call")

    messages += [done.message, {"role": "tool", "name": "get_time", "content": {"time": "9:30"}}]
    assert engine.text is not None  # it was not taught to think about a result
    prompt = engine.text.chat(messages, tools=[TOOLS["get_time"]])
    assert "9:30" in engine.generate(prompt, GREEDY)[0].text


def test_thinking_needs_a_prompt_that_a_template_lays_out(engine: Engine) -> None:
    with pytest.raises(UsageError, match="thinking"):
        engine.generate([5, 6], THINKING)
