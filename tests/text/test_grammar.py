"""What an output may be: any allowed tokens give text of the form that was asked for."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jsonschema
import numpy as np
import pytest

from helpers.sampled import read, sample, tokens_of
from helpers.schemas import random_schema, random_tool
from mlx_gemma_mtp.errors import UsageError
from mlx_gemma_mtp.text.call_grammar import call_rules
from mlx_gemma_mtp.text.constraints import Rule
from mlx_gemma_mtp.text.forms import choice_form, json_form, regex_form
from mlx_gemma_mtp.text.tokenizer import Text

SIZE = 2048  # the demo's vocabulary
EOS, RESPONSE, TURN_END = ENDS = (1, 50, 106)
CHANNEL, CHANNEL_END, CALL, CALL_END, QUOTE = 100, 101, 48, 49, 52


def rule(text: Text, grammar: str | None, *, thinking: bool = False, **options: Any) -> Rule:
    match = text.grammars.start(f"start: {grammar}") if grammar else None
    prompt = text.prompt("Hi", thinking=thinking)
    return Rule(text, prompt, options.pop("size", SIZE), ENDS, match=match, **options)


def answer(text: Text, grammar: str, rng: np.random.Generator, **options: Any) -> str:
    output = sample(rule(text, grammar), rng, ENDS, **options)
    assert output[-1] in ENDS
    return read(text, output, ENDS)[0]["answer"]


def accept(text: Text, one: Rule, string: str) -> None:
    for token in text.encode(string):
        assert token in tokens_of(one.masks([])[0], SIZE), string
        one.accept([token])


def test_any_allowed_tokens_are_json_of_the_schema(text: Text, rng: np.random.Generator) -> None:
    for number in range(25):
        schema = random_schema(rng)
        found = answer(text, json_form(schema), rng, drafts=2 * (number % 10 == 0))
        jsonschema.validate(json.loads(found), schema)


def test_properties_without_a_schema_are_left_out_unless_it_says_otherwise(
    text: Text, rng: np.random.Generator
) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    for _ in range(5):
        assert {*json.loads(answer(text, json_form(schema), rng))} <= {"a"}
    whole = rule(text, json_form(schema | {"additionalProperties": {"type": "null"}}))
    accept(text, whole, '{"a": 1, "b": null}')
    both = {"allOf": [schema, {"properties": {"b": {"type": "null"}}, "required": ["b"]}]}
    accept(text, rule(text, json_form(both)), '{"a": 1, "b": null}')


def test_a_pydantic_model_is_a_schema(text: Text, rng: np.random.Generator) -> None:
    pydantic = pytest.importorskip("pydantic")
    inner = pydantic.create_model("Inner", x=(bool, ...))
    model = pydantic.create_model("Outer", inner=(list[inner], ...), n=(int | None, None))
    for _ in range(5):
        model.model_validate_json(answer(text, json_form(model), rng))


@pytest.mark.parametrize(
    "regex", [r"\d{3}-\d{4}", "(yes|no)/(ja|nein)", "a\nb|[é😀]{2,5}", r"^[^a-z ]{1,9}$", r"\\|/"]
)
def test_any_allowed_tokens_match_the_regex(
    text: Text, rng: np.random.Generator, regex: str
) -> None:
    for _ in range(5):
        assert re.fullmatch(regex, answer(text, regex_form(regex), rng))


def test_any_allowed_tokens_are_one_of_the_choices(text: Text, rng: np.random.Generator) -> None:
    choices = ["a", "ab", "abc", "é 😀", '"', "<|tool_call>", "<eos>", "two\nlines"]
    choices += [r"\d", "a/b", "x|y", "[^$.]", "(a)", "{}", "#&-~", "<[5]>"]
    found = {answer(text, choice_form(choices), rng) for _ in range(400)}
    assert found == {*choices}
    many = [f"choice {number}" for number in range(5000)]
    assert answer(text, choice_form(many), rng) in many


def test_any_allowed_tokens_match_a_schema_of_one_of(text: Text, rng: np.random.Generator) -> None:
    schema = {"oneOf": [{"type": "boolean"}, {"const": "b"}]}
    found = {answer(text, json_form(schema), rng) for _ in range(50)}
    assert found == {"true", "false", '"b"'}


def test_every_token_of_a_character_is_allowed_where_the_character_is(text: Text) -> None:
    one = rule(text, json_form({"type": "string"}))
    accept(text, one, '"日本 é😀"')
    assert tokens_of(one.masks([])[0], SIZE) == [*ENDS]


def test_ids_without_a_token_are_never_allowed(text: Text) -> None:
    padded = rule(text, "/(?s:.*)/", size=SIZE + 100)
    [mask] = padded.masks([])
    assert mask is not None
    assert len(mask) == -(-(SIZE + 100) // 32)
    assert max(tokens_of(mask, SIZE)) < SIZE
    small = rule(text, "/(?s:.*)/", size=1000)
    assert [len(mask) for mask in small.masks([]) if mask is not None] == [-(-1000 // 32)]


def test_an_end_is_allowed_where_the_text_is_complete_and_nowhere_else(text: Text) -> None:
    one = rule(text, choice_form(["ab", "abc"]))
    seen = []
    for token in text.encode("a") + text.encode("b") + text.encode("c"):
        seen.append({*tokens_of(one.masks([])[0], SIZE)} & {*ENDS})
        one.accept([token])
    assert seen == [set(), set(), {*ENDS}]
    assert tokens_of(one.masks([])[0], SIZE) == [*ENDS]


def test_a_token_of_text_that_also_ends_the_output_is_allowed_at_the_end_alone(text: Text) -> None:
    [letter] = text.encode("b")
    match = text.grammars.start('start: "ab" "b"?')
    one = Rule(text, text.prompt("Hi"), SIZE, [letter], match=match)
    one.accept(text.encode("a"))
    others = tokens_of(one.masks([])[0], SIZE)  # the byte
    assert letter not in others
    one.accept(others[:1])
    assert letter in tokens_of(one.masks([])[0], SIZE)


def test_masks_end_where_a_draft_is_not_allowed_or_ends_the_output(text: Text) -> None:
    one, [a, b] = rule(text, choice_form(["é"])), text.encode("é")
    for drafts, number in (([], 1), ([b], 1), ([a], 2), ([a, b], 3), ([a, b, EOS, a], 3)):
        assert len(one.masks(drafts)) == number


def thought(text: Text, string: str) -> list[int]:
    return [CHANNEL, *text.encode(f"thought\n{string}"), CHANNEL_END]


def test_the_form_is_that_of_the_answer_after_the_thought(
    text: Text, rng: np.random.Generator
) -> None:
    one = rule(text, choice_form(["yes", "no"]), thinking=True)
    for token in thought(text, "Hm, {no} yes."):
        allowed = {*tokens_of(one.masks([])[0], SIZE)}
        assert token in allowed
        assert not allowed & {*ENDS, CALL}
        one.accept([token])
    assert CHANNEL not in tokens_of(one.masks([])[0], SIZE)
    accept(text, one, "yes")
    assert tokens_of(one.masks([])[0], SIZE) == [*ENDS]
    straight = rule(text, choice_form(["yes", "no"]), thinking=True)
    accept(text, straight, "no")


def test_a_thought_may_open_where_a_turn_starts_and_nowhere_else(text: Text) -> None:
    def may_think(prompt: Sequence[int]) -> bool:
        one = Rule(text, prompt, SIZE, ENDS, match=text.grammars.start('start: "yes"'))
        return CHANNEL in tokens_of(one.masks([])[0], SIZE)

    start = text.prompt("Hi", thinking=True)
    assert may_think(start)
    assert may_think([*start, CALL, *text.encode("call:f{}"), CALL_END, RESPONSE, 51])
    assert not may_think(text.prompt("Hi"))  # closed by the template
    assert not may_think([*start, *text.encode("It")])  # a started answer
    one = Rule(text, [*start, CHANNEL], SIZE, ENDS, match=text.grammars.start('start: "yes"'))
    assert CHANNEL_END in tokens_of(one.masks([])[0], SIZE)  # in a thought


@pytest.mark.parametrize("grammar", [None, '"yes"'])
@pytest.mark.parametrize("budget", [0, 1, 5])
def test_a_thought_is_closed_after_its_budget(text: Text, grammar: str | None, budget: int) -> None:
    one = rule(text, grammar, thinking=True, budget=budget)
    name, words = text.encode("thought\n"), text.encode("Let me think about it for long")
    for token in [CHANNEL, *name, *words[:budget]]:
        [mask] = one.masks([])
        assert token in tokens_of(mask, SIZE)
        one.accept([token])
    assert tokens_of(one.masks([])[0], SIZE) == [CHANNEL_END]
    assert len(one.masks([CHANNEL_END])) == 2
    one.accept([CHANNEL_END])
    assert CHANNEL not in tokens_of(one.masks([])[0], SIZE)
    assert text.encode("yes")[0] in tokens_of(one.masks([])[0], SIZE)


def test_what_is_free_has_no_mask_whatever_comes(text: Text, rng: np.random.Generator) -> None:
    """Tokens are drawn from markers and words, so thoughts open, close, and hold calls."""
    drawn = [CHANNEL, CHANNEL_END, CALL, CALL_END, *text.encode("thought\n and so on")]
    free = 0
    for _ in range(200):
        one = rule(text, None, thinking=True, budget=int(rng.integers(12)))
        for _ in range(40):
            count = int(rng.integers(1, 6))
            coming = [int(token) for token in rng.choice(drawn, count - 1)]
            if one.is_free(count):
                assert one.masks(coming) == [None] * count
                free += 1
            mask = one.masks([])[0]
            token = int(rng.choice(drawn))
            if mask is not None and token not in (allowed := tokens_of(mask, SIZE)):
                token = min(allowed)
            one.accept([token])
    assert free > 1000


def test_a_budget_leaves_a_shorter_thought_and_the_answer_as_they_are(text: Text) -> None:
    one = rule(text, None, thinking=True, budget=9)
    for token in [*thought(text, "Hm."), *text.encode("Yes, it is. " * 9)]:
        assert one.masks([]) == [None]
        one.accept([token])
    assert one.masks([EOS]) == [None]


def test_a_name_of_the_channel_that_is_cut_short_is_completed_first(text: Text) -> None:
    name = text.encode("thought\n")
    one = rule(text, '"yes"', thinking=True, budget=0)
    one.accept([CHANNEL])
    for token in [*name, CHANNEL_END]:
        assert tokens_of(one.masks([])[0], SIZE) == [token]
        one.accept([token])


def tools(rng: np.random.Generator) -> list[dict[str, Any]]:
    return [random_tool(rng, name) for name in ("search", "get_weather", "f")]


def fits(arguments: Any, tool: Mapping[str, Any]) -> None:
    jsonschema.validate(arguments, tool["function"]["parameters"])


def test_any_allowed_tokens_are_calls_of_declared_tools(
    text: Text, rng: np.random.Generator
) -> None:
    for number in range(15):
        declared = tools(rng)
        rules = f"call+\n{call_rules(declared, text.markers)}"
        output = sample(rule(text, rules), rng, ENDS, drafts=2 * (number % 10 == 0))
        by_kind, calls = read(text, output, ENDS)
        assert (by_kind["answer"], by_kind["thought"], output[-1] in ENDS) == ("", "", True)
        assert len(calls) == output.count(CALL) == output.count(CALL_END) > 0
        for call in calls:
            by_name = {tool["function"]["name"]: tool for tool in declared}
            fits(call.arguments, by_name[call.name])


def test_an_argument_without_a_known_schema_is_any_readable_value(
    text: Text, rng: np.random.Generator
) -> None:
    properties = {"a": {}, "b": {"not": {}}, "c": {"type": "object"}}
    parameters = {"type": "object", "properties": properties, "required": ["c"]}
    tool = {"function": {"name": "f", "parameters": parameters}}
    rules = f"call\n{call_rules([tool], text.markers)}"
    for _ in range(8):
        output = sample(rule(text, rules), rng, ENDS, most=200)
        if output[-1] in ENDS:
            _, [call] = read(text, output, ENDS)
            assert call.arguments is not None
            assert isinstance(call.arguments["c"], dict)


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        (
            {"type": "object", "properties": {"a": {"not": {}}}},
            r'^"not" is not supported: leave it',
        ),
        ({"type": "array", "uniqueItems": True}, r'^"uniqueItems" is not supported'),
        ({"type": "string", "format": "cube"}, 'the format "cube" is not supported'),
        ({"type": "strin"}, "strin"),
        ({"$ref": "#/$defs/gone"}, r"/\$defs/gone"),
        ({"type": "string", "pattern": "(?<=a)b"}, "look-around"),
        ({"enum": []}, "Unsatisfiable"),
    ],
)
def test_a_schema_that_cannot_be_followed_is_refused_with_its_keyword(
    text: Text, schema: dict[str, Any], reason: str
) -> None:
    with pytest.raises(UsageError, match=reason) as raised:
        rule(text, json_form(schema))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("schema", [{"a": {1, 2}}, [], "{}", int, {"maximum": float("nan")}])
def test_what_is_no_schema_is_refused(schema: object) -> None:
    with pytest.raises(UsageError, match="json_schema must be"):
        json_form(schema)


def test_a_model_that_has_no_schema_is_refused() -> None:
    model = pytest.importorskip("pydantic").create_model("Model", a=(Callable[[], int], ...))
    with pytest.raises(UsageError, match="json_schema: Cannot generate"):
        json_form(model)


def test_matches_of_one_grammar_do_not_share_their_text(text: Text) -> None:
    first, second = (rule(text, choice_form(["ab", "cd"])) for _ in range(2))
    accept(text, first, "ab")
    accept(text, second, "cd")
