"""A call's arguments come as JSON while the model writes them, and are those of the whole call."""

import json
import time
from itertools import pairwise

import numpy as np
import pytest
from test_calls import READABLE, UNREADABLE, drawn, written

from helpers.calls import joined_arguments, read_calls, streamed
from helpers.spelled import CALL, CALL_END, CHANNEL, CHANNEL_END, QUOTE, spell
from mlx_gemma_mtp.text.call_stream import CallDelta
from mlx_gemma_mtp.text.channels import ChannelParser


def compact(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def cut(rng: np.random.Generator, text: str) -> list[str]:
    cuts = [0, *np.sort(rng.integers(len(text) + 1, size=rng.integers(12))), len(text)]
    return [text[start:end] for start, end in pairwise(cuts)]


def test_pieces_are_the_json_of_the_arguments_however_the_call_is_cut(
    rng: np.random.Generator,
) -> None:
    for _ in range(1500):
        arguments = {"a": drawn(rng), "b c": drawn(rng), "c": drawn(rng)}
        whole = f"call:f{written(arguments)}"
        for pieces in (cut(rng, whole), [*whole]):
            [call], deltas = streamed(*pieces, quote="\0")
            assert joined_arguments(deltas) == compact(call.arguments)
            assert call.arguments == arguments


@pytest.mark.parametrize("arguments", [*READABLE, *UNREADABLE], ids=lambda a: repr(a[:20]))
def test_a_call_is_read_the_same_in_one_piece_and_character_by_character(arguments: str) -> None:
    whole = f"call:f{arguments}"[:2000]
    calls, deltas = streamed(*whole)
    assert calls == read_calls(whole)
    if calls[0].arguments is not None:
        assert json.loads(joined_arguments(deltas)) == calls[0].arguments


def test_a_call_is_announced_once_with_its_id_and_ends_once(rng: np.random.Generator) -> None:
    for pieces in ([*"call:f{a:1}"], ["call:f{a:1}"], cut(rng, "call:f{a:1}")):
        [call], steps = streamed(*pieces)
        deltas = [delta for step in steps for delta in step]
        assert {(delta.index, delta.id) for delta in deltas} == {(0, call.id)}
        assert [delta.name for delta in deltas] == ["f", *[None] * (len(deltas) - 1)]
        assert [delta.done for delta in deltas] == [*[False] * (len(deltas) - 1), True]


def test_the_name_comes_with_the_brace() -> None:
    _, steps = streamed("call:get_", "time", "{", "city")
    assert [[delta.name for delta in step] for step in steps[:4]] == [[], [], ["get_time"], []]


def test_each_piece_of_a_string_comes_at_once() -> None:
    words = ["Once {upon} a time, ", "there: was [a] ", '"list",\n', "é 😀 }", "]}"]
    _, steps = streamed("call:f{a:[Q", *words, "Q],b:Qx", "yQ}")
    given = [json.loads(f'"{joined_arguments([step])}"') for step in steps[1:6]]
    assert given == words
    assert joined_arguments(steps[6:7]) == '"],"b":"x'


@pytest.mark.parametrize("inner", ["f(QQQ 1", "print(QaQ + bQc", "say QhiQ to", "Q; andQ"])
def test_a_string_with_quote_tokens_of_its_own_comes_before_its_end(inner: str) -> None:
    pieces = ["call:f{a:Q", inner, " then more", "Q;Q more}Q, b:1}"]
    _, steps = streamed(*pieces)
    assert joined_arguments(steps[:3]).endswith(" then more")


def test_what_is_not_certain_is_held_back() -> None:
    for unfinished, given in {
        "{a:Qx": '{"a":"x',
        "{a:QxQ": '{"a":"x',
        "{a:QxQ, b": '{"a":"x',
        "{a:QxQ, b:t": '{"a":"x',
        "{a:QxQ, b:12": '{"a":"x","b":',
        "{a:1": '{"a":',
        "{a:1.": '{"a":',
        "{a:tru": '{"a":',
        "{a:true": '{"a":',
        "{a:1}": '{"a":1',
        "{a:[": '{"a":[',
        "{a:'x": '{"a":',
        "{a:1,}": '{"a":1',
        "{first na": "{",
    }.items():
        _, steps = streamed(*f"call:f{unfinished}")
        assert joined_arguments(steps[:-1]) == given


@pytest.mark.parametrize("arguments", ["a:QxQ,b:Rome}", "a:1}}", "a:1,a:2}", 'a:1,"a":2}', "a:Qx"])
def test_a_part_of_unreadable_arguments_is_never_json(arguments: str) -> None:
    [call], deltas = streamed(*f"call:f{{{arguments}")
    assert call.arguments is None
    assert deltas[-1][-1].done
    with pytest.raises(ValueError, match="line 1"):
        json.loads(joined_arguments(deltas))


@pytest.mark.parametrize("rest", ["", "}", "a b}", "Hello"])
def test_arguments_that_start_unreadable_are_shown_as_templates_take_them(rest: str) -> None:
    [call], deltas = streamed(f"call:f{{{rest}" if rest != "}" else "call:f{,}")
    assert call.arguments is None
    assert json.loads(joined_arguments(deltas)) == call.function["arguments"]


@pytest.mark.parametrize("piece", ["x", "x ", "Q", "Q,", "1,", "[", "'", "a:"])
@pytest.mark.parametrize("start", ["call:f{a:Q", "call:f{a:'", "call:f{"])
def test_the_time_of_a_piece_does_not_grow_with_the_call(start: str, piece: str) -> None:
    began = time.process_time()
    streamed(start, *[piece] * 10_000)
    assert time.process_time() - began < 5


# Several calls, and what the parser of an output makes of them


def parsed(*parts: str | int, prompt: int = 0) -> tuple[list[CallDelta], list[tuple[str, str]]]:
    """The deltas of an output after some parts that are prompt, and ids and names of its calls."""
    tokens, stream = spell(*parts)
    parser = ChannelParser(stream, tokens[:prompt])
    pieces = [piece for token in tokens[prompt:] for piece in parser.add(token)]
    calls = [(piece.call.id, piece.call.name) for piece in pieces if piece.call and piece.call.name]
    return [delta for piece in pieces for delta in piece.deltas], calls


def collected(deltas: list[CallDelta]) -> dict[int, str]:
    """The arguments of each call that has ended, by its index."""
    ended = [delta.index for delta in deltas if delta.done]
    return {
        index: "".join(delta.arguments for delta in deltas if delta.index == index)
        for index in ended
    }


def test_calls_of_one_output_are_counted() -> None:
    parts = ["Hm.", CALL, "call:a{x:1}", CALL_END, CALL, "call:b{}call:c{y:", "2}", CALL_END]
    deltas, calls = parsed(*parts)
    assert collected(deltas) == {0: '{"x":1}', 1: "{}", 2: '{"y":2}'}
    assert [(delta.id, delta.name) for delta in deltas if delta.name] == calls


def test_a_call_that_another_marker_ends_has_no_end_and_keeps_its_number() -> None:
    parts = [CALL, "call:a{x:1", CHANNEL, CHANNEL_END, CALL, "call:b{}", CALL_END]
    deltas, calls = parsed(*parts)
    assert collected(deltas) == {1: "{}"}
    assert [delta.name for delta in deltas if delta.name] == ["a", "b"]
    assert [name for _, name in calls] == ["b"]


def test_a_call_without_a_name_gives_nothing() -> None:
    deltas, _ = parsed(CALL, "f(x=1)", CALL_END, CALL, "call:b{}", CALL_END)
    assert collected(deltas) == {0: "{}"}
    assert [delta.name for delta in deltas if delta.name] == ["b"]


def test_a_quote_that_is_spelled_out_is_text_in_the_pieces_too() -> None:
    parts = [CALL, "call:f{a:", QUOTE, 'Q = <|"|>, b:', QUOTE, "}", CALL_END]
    assert json.loads(collected(parsed(*parts)[0])[0]) == {"a": 'Q = <|"|>, b:'}


@pytest.mark.parametrize("opened", [1, 2, 3, 4])
def test_a_call_that_the_prompt_opened_comes_whole(opened: int) -> None:
    parts = [CALL, "call:f{a:", QUOTE, "x y", QUOTE, ",b:1}", CALL_END, CALL, "call:g{}", CALL_END]
    deltas, calls = parsed(*parts, prompt=opened)
    assert collected(deltas) == {0: '{"a":"x y","b":1}', 1: "{}"}
    assert [(delta.id, delta.name) for delta in deltas if delta.name] == calls
