"""Outputs that must have a form: which settings are refused, and what the demo makes of others."""

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from helpers.fake_target import fake_engine, output
from helpers.sampled import read, sample, tokens_of
from helpers.schemas import nested, random_schema
from helpers.structured import answers, count, float32_demo
from mlx_gemma_mtp import SamplingParams
from mlx_gemma_mtp.engine.rules import rule_of
from mlx_gemma_mtp.errors import MgmError, UsageError
from mlx_gemma_mtp.text.constraints import Rule
from mlx_gemma_mtp.text.markers import Markers
from mlx_gemma_mtp.text.tokenizer import Text

SIZE = 2048
ENDS = (1, 50, 106)
EOS, CHANNEL, CALL, CALL_END = 1, 100, 48, 49
TOOLS = [{"type": "function", "function": {"name": name}} for name in ("f", "g")]


def rule(
    text: Text | None, tools: Sequence[dict[str, Any]] = (), ids: Sequence[int] = (), **options: Any
) -> Rule | None:
    prompt = ids or (text.prompt("Hi") if text else [1])
    return rule_of(SamplingParams(**options), tools, text, prompt, SIZE, ends=ENDS)


def allowed(one: Rule | None) -> set[int]:
    assert one is not None
    return {*tokens_of(one.masks([])[0], SIZE)}


def test_without_such_settings_there_is_no_rule(text: Text) -> None:
    for options in ({}, {"temperature": 1, "logit_bias": {1: 5.0}, "stop_token_ids": [7]}):
        assert rule(text, TOOLS, **options) is None


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"json_schema": {}, "ignore_eos": True}, "json_schema needs an end .* ignore_eos"),
        ({"tool_choice": "f", "ignore_eos": True}, "tool_choice='f' needs an end"),
        ({"regex": "a", "tool_choice": "required"}, "regex forms an answer, and tool_choice"),
        ({"regex": "a", "stop_token_ids": [CALL_END]}, "take them from stop_token_ids"),
        ({"tool_choice": "h"}, "tool_choice='h' is not the name of a tool: f, g"),
        ({"json_schema": "{}"}, "json_schema must be a mapping or a pydantic model"),
        ({"json_schema": {"not": {}}}, 'json_schema cannot be followed: "not" is not'),
        (
            {"json_schema": {"patternProperties": {"^a": {}}, "minProperties": 2}},
            "json_schema cannot be followed: .* minProperties",
        ),
        ({"json_schema": {"$ref": "other.json#/a"}}, r'the \$ref "other.json" .* copy it into'),
        *(({"json_schema": nested(deep)}, r"nested too deeply: .* \$defs") for deep in (200, 5000)),
        ({"regex": "a("}, "regex cannot be followed: .*unclosed group"),
        ({"regex": ""}, "regex must be"),
        *(({"choices": choices}, "choices must be") for choices in ([], "ab", ["a", ""], [1])),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    text: Text, options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(UsageError, match=reason) as raised:
        rule(text, TOOLS, **options)
    assert "\n" not in str(raised.value)


def test_what_the_tokenizer_and_the_tools_do_not_have_is_refused(
    text: Text, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match="tool_choice='required' needs tools"):
        rule(text, tool_choice="required")
    with pytest.raises(UsageError, match="choices needs a tokenizer"):
        rule(None, choices=["a"])
    monkeypatch.setattr(text, "markers", Markers())
    with pytest.raises(UsageError, match="no markers of thoughts"):
        rule(text, thinking_budget=1)
    with pytest.raises(UsageError, match="no markers of calls"):
        rule(text, TOOLS, tool_choice="f")


def test_the_error_names_the_extra_if_llguidance_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from mlx_gemma_mtp.files.names import DEMO

    monkeypatch.setitem(sys.modules, "llguidance", None)
    fresh = Text(DEMO)
    for form in ({"choices": ["a"]}, {"regex": "a"}, {"json_schema": {}}):
        with pytest.raises(MgmError, match=r"pip install '\.\[structured\]'"):
            rule(fresh, **form)
    assert rule(fresh, tool_choice="none", thinking_budget=5) is not None  # need no grammar


def test_a_form_has_no_call_if_calls_are_forbidden(text: Text) -> None:
    assert rule(text, TOOLS, tool_choice="none") is None  # its bias bars them
    assert CALL not in allowed(rule(text, TOOLS, tool_choice="none", choices=["a"]))


def test_a_required_call_is_of_any_tool_and_a_named_one_is_a_single_call(
    text: Text, rng: np.random.Generator
) -> None:
    def calls(choice: str) -> list[str]:
        one = rule(text, TOOLS, tool_choice=choice)
        assert one is not None
        tokens = sample(one, rng, ENDS)
        by_kind, found = read(text, tokens, ENDS)
        assert by_kind["answer"] == ""
        return [call.name for call in found]

    assert [calls("f") for _ in range(5)] == [["f"]] * 5
    required = [calls("required") for _ in range(20)]
    assert all(required)
    assert {name for names in required for name in names} == {"f", "g"}


def test_an_answer_with_a_form_may_be_a_call_instead_if_there_are_tools(text: Text) -> None:
    one = rule(text, TOOLS, choices=["yes"])
    assert CALL in allowed(one)
    assert one is not None
    for token in [CALL, *text.encode("call:f{}"), CALL_END]:
        assert token in allowed(one)
        one.accept([token])
    assert allowed(one) == {CALL, *ENDS}
    assert CALL not in allowed(rule(text, choices=["yes"]))


def test_the_rule_of_a_continued_answer_starts_with_the_new_text(text: Text) -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "It is "}]
    one = rule(text, ids=text.prompt(messages), choices=["blue"])
    assert one is not None
    for token in text.encode("blue"):
        assert token in allowed(one)
        one.accept([token])
    assert allowed(one) == {*ENDS}


def test_stop_token_ids_end_the_output_with_and_without_the_ends_of_the_checkpoint() -> None:
    prompt = [3, 14, 15]
    tokens = output(prompt, 12)
    last = tokens[7]
    expected = tokens[: tokens.index(last) + 1]
    with fake_engine() as engine:
        for ignore_eos in (False, True):
            params = SamplingParams(max_tokens=12, stop_token_ids=[last], ignore_eos=ignore_eos)
            [done] = engine.generate(prompt, params)
            assert (done.tokens, done.finish_reason) == (expected, "stop")
        with pytest.raises(UsageError, match="stop_token_ids: 97 is outside the vocabulary"):
            engine.generate(prompt, SamplingParams(stop_token_ids=[97]))


def test_forced_tokens_are_those_that_the_masks_allow_alone(
    text: Text, rng: np.random.Generator
) -> None:
    num_forced = 0
    for number in range(8):
        options = {"json_schema": random_schema(rng), "thinking_budget": number}
        one, other = rule(text, **options), rule(text, **options)
        assert one is not None
        assert other is not None
        tokens = sample(other, rng, ENDS)
        for length, token in enumerate(tokens[:-1]):
            forced, same = one.forced(5), rule(text, **options)
            num_forced += len(forced)
            assert same is not None
            same.accept(tokens[:length])
            assert forced == same.forced(5)
            masks = one.masks(forced)[: len(forced)]
            assert [tokens_of(mask, SIZE) for mask in masks] == [[alone] for alone in forced]
            one.accept([token])
    assert num_forced > 0


@pytest.mark.slow
def test_answers_fit_their_schemas_and_do_not_depend_on_drafts(rng: np.random.Generator) -> None:
    schemas = [random_schema(rng) for _ in range(6)]
    with float32_demo() as engine:
        plain, drafted = (answers(engine, schemas, drafts) for drafts in (0, 3))
        assert [one.tokens for one in plain] == [one.tokens for one in drafted]
        assert count(schemas, plain)["valid"] >= 2
        assert sum(one.stats.accepted for one in drafted) > 0
