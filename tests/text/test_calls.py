"""Tool calls are read if there is one way to read them, and otherwise kept as they were written."""

import json
from typing import Any

import numpy as np
import pytest

from helpers.calls import read_calls
from mlx_gemma_mtp.text.calls import ToolCall

# Q stands for the quote token.
WELL_FORMED: dict[str, Any] = {
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
    "{a:Qhttp://x/?b=c,d:1Q}": {"a": "http://x/?b=c,d:1"},
    "{a:" + "[" * 49 + "]" * 49 + "}": {"a": json.loads("[" * 49 + "]" * 49)},
}
SLIPS: dict[str, Any] = {
    # Python's words.
    "{a:None,b:True,c:[None,False]}": {"a": None, "b": True, "c": [None, False]},
    # JSON's or Python's quotes.
    '{a:"b",c:["d_1","d_2"],e:1}': {"a": "b", "c": ["d_1", "d_2"], "e": 1},
    "{a:'b',c:['d_1'],e:{'f':QgQ}}": {"a": "b", "c": ["d_1"], "e": {"f": "g"}},
    '{"a":"b, c}",Qd eQ:\'\'}': {"a": "b, c}", "d e": ""},
    r"""{a:"\"\\\u00e9\n",b:'it\'s "so"'}""": {"a": '"\\é\n', "b": 'it\'s "so"'},
    '{a:"two\nlines"}': {"a": "two\nlines"},
    # Quote tokens for the quotes within a string.
    "{a:Qf(QQQ 1 QQQ).df()Q,b:[QdQ]}": {"a": 'f(""" 1 """).df()', "b": ["d"]},
    "{a:QQQQdocQQQQ}": {"a": '"""doc"""'},
    "{a:[Qprint(QbQ,QcQ)Q]}": {"a": ['print("b","c")']},
    "{a:Q{QbQ: QcQ, QdQ: QeQ}Q}": {"a": '{"b": "c", "d": "e"}'},
    "{a:Qhe said Qb: soQ to meQ}": {"a": 'he said "b: so" to me'},
    "{a:Qf(Q} bQ)Q}": {"a": 'f("} b")'},
    "{a:Qcut at Q, b: cQ nowQ}": {"a": 'cut at ", b: c" now'},
    "{a:Qcut at Q, b: truest, cQ nowQ}": {"a": 'cut at ", b: truest, c" now'},
    '{a:"say QhiQ"}': {"a": 'say "hi"'},
    # A comma that is missing before a key, or left at the end.
    "{a:QlookQb:90}": {"a": "look", "b": 90},
    "{a:QbQQcQ:1 d:[QeQ]f:{}g:true}": {"a": "b", "c": 1, "d": ["e"], "f": {}, "g": True},
    "{a:[1,2,],b:{c:QdQ,},e:[QfQ,],}": {"a": [1, 2], "b": {"c": "d"}, "e": ["f"]},
}
UNREADABLE = [
    *("{a:Rome}", "{a:1", "{a:1}}", "{a:1}{b:2}", "{a}", "{:1}", "{ :1}", "{a:}", "{a:1} b"),
    *("{a:Qb}", "{a:\\1}", "{a:NaN}", "{a:-Infinity}", "{a:1e999}", "{a:01}", "{a:1.}", "{a:+1}"),
    *("{a\nb:1}{", "{a:Truer}", "{a:[1,,2]}", "{,a:1}", "{a:[1 2]}", "{a:[QbQ c:1]}", "{a:1b:2}"),
    *("{a:[QbQQcQ]}", "{a:[QbQ QcQ]}", "{a:QbQ cQ}", "{a:QbQc:1Q}", "{a:1,a:2}", "{a:1,QaQ:1}"),
    *("{a:'it's'}", '{a:"bQ,c:"dQ}', '{a:Qb"}', '{a:"C:\\d"}', '{a:"\\ud800"}'),
    *("{a:2026-11-29 b:1}", "{a:9:30}", "{a:" + "9" * 5000 + "}"),
    *("{a:" + "[" * 50 + "]" * 50 + "}", "{a:" + "[" * 50_000 + "]" * 50_000 + "}"),
]
READABLE = WELL_FORMED | SLIPS


@pytest.mark.parametrize("arguments", [*READABLE, *UNREADABLE], ids=lambda a: repr(a[:20]))
def test_arguments_are_read_or_kept_as_written(arguments: str) -> None:
    written = f"call:f{arguments}"
    raw = written.replace("Q", '<|"|>')
    assert read_calls(written) == [ToolCall("f", READABLE.get(arguments), raw)]


@pytest.mark.parametrize("raw", ["", "f{}", "call:", "call:f", "call:{}", "Hello", "call f{}"])
def test_a_call_without_a_name_is_kept_as_written(raw: str) -> None:
    assert read_calls(raw) == [ToolCall("", None, raw)]


def test_several_calls_in_a_row_are_read_one_by_one() -> None:
    written = ["call:a{x:QyQ}", "call:b{y:2},\n ", "call:c{}"]
    calls = read_calls("".join(written))
    assert [(call.name, call.arguments) for call in calls] == [
        ("a", {"x": "y"}),
        ("b", {"y": 2}),
        ("c", {}),
    ]
    assert "".join(call.raw for call in calls) == "".join(written).replace("Q", '<|"|>')
    broken = read_calls("call:a{x:1}call:b{y:}call:c{}")  # nobody knows where b ends
    assert [(call.name, call.arguments) for call in broken] == [("a", {"x": 1}), ("b", None)]


def drawn(rng: np.random.Generator, depth: int = 3) -> Any:
    letters = [*"ab \n{}[]:,\"'\\", "é", "None", "1", "call:f{", '<|"|>'[:2]]
    kind = rng.integers(8 if depth else 6)
    if kind < 2:
        return "".join(rng.choice(letters, rng.integers(8)))
    if kind < 6:
        return [True, None, int(rng.integers(-99, 99)), float(rng.normal())][kind - 2]
    items = [drawn(rng, depth - 1) for _ in range(rng.integers(4))]
    if kind == 6:
        return {f"key {index}": item for index, item in enumerate(items)}
    return items


def written(value: Any) -> str:
    """A value as Gemma 4 writes it, with "\0" for the quote token."""
    if isinstance(value, str):
        return f"\0{value}\0"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{written(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(written, value)) + "]"
    return json.dumps(value)


def test_any_well_formed_call_is_read_as_it_was_meant(rng: np.random.Generator) -> None:
    for _ in range(500):
        arguments = {"a": drawn(rng), "b": drawn(rng)}
        (call,) = read_calls(f"call:f{written(arguments)}", quote="\0")
        assert call.arguments == arguments


@pytest.mark.parametrize("before", ["", "call:f{", "call:f{a:Q", "call:f{a:[Q", "call:f{a:'"])
def test_reading_a_call_takes_time_in_proportion_to_its_length(before: str) -> None:
    for junk in (" ", "{", "a", ",", "{a:", " a", "a :", "Q", "Q,", "Q,a:Q", "Q}", '"', "call:f{"):
        for call in read_calls(before + junk * 10_000):
            assert call.arguments is None


def test_the_function_of_a_call_is_what_templates_take() -> None:
    read, broken = read_calls("call:f{a:1} call:g{b:Rome} ")
    assert read.function == {"name": "f", "arguments": {"a": 1}}
    assert broken.function == {"name": "g", "arguments": {"unreadable": "b:Rome"}}


def test_the_word_call_may_be_missing_after_its_marker() -> None:
    [call, other] = read_calls(":f{a:1}call:g{}")
    assert (call.name, call.arguments, other.name) == ("f", {"a": 1}, "g")
    assert read_calls("call:f{}:g{}") == [ToolCall("f", None, "call:f{}:g{}")]
