"""Tools as schemas and as Python functions, declared alike and called with checked arguments."""

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, Optional, TypedDict, cast

import pytest

from helpers.schemas import nested
from helpers.templates import NEWEST, OTHER, TEMPLATES, with_template
from mlx_gemma_mtp.errors import UsageError
from mlx_gemma_mtp.text.functions import Function, result_of
from mlx_gemma_mtp.text.tokenizer import Text
from mlx_gemma_mtp.text.tools import declared, for_google

HI = [{"role": "user", "content": "Hi"}]


class Unit(Enum):
    CELSIUS = "c"
    FAHRENHEIT = "f"


@dataclass
class Place:
    city: str
    streets: list[str] = field(default_factory=list)


class Span(TypedDict):
    first: int
    last: NotRequired[int]


def weather(
    place: Place,
    unit: Unit = Unit.CELSIUS,
    *,
    days: Annotated[int, "How many."] = 1,
    span: Span | None = None,
    detail: Literal["short", "long"] = "short",
    factors: dict[str, float] | None = None,
    pair: tuple[int, str] = (0, ""),
    tags: Optional[set[str]] = None,  # noqa: UP045 - the old spelling
    other: Any = None,
) -> str:
    """Look up the weather.

    In any place.

    Args:
        place: Where it is,
            as a place.
        unit (Unit): Of degrees.

    Returns:
        The weather: in words.
    """
    return f"{place} {unit}"


def test_the_schema_of_a_function_comes_from_its_signature_and_docstring() -> None:
    text = {"type": "string"}
    null = {"type": "null"}
    place = {"city": text, "streets": {"type": "array", "items": text}}
    span = {"first": {"type": "integer"}, "last": {"type": "integer"}}
    factors = {"type": "object", "additionalProperties": {"type": "number"}}
    (schema,) = declared([weather])
    assert schema["type"] == "function"
    assert schema["function"]["name"] == "weather"
    assert schema["function"]["description"] == "Look up the weather.\n\nIn any place."
    parameters = schema["function"]["parameters"]
    assert (parameters["type"], parameters["required"]) == ("object", ["place"])
    assert parameters["properties"] == {
        "place": {
            "type": "object",
            "properties": place,
            "required": ["city"],
            "description": "Where it is, as a place.",
        },
        "unit": {"enum": ["c", "f"], "type": "string", "description": "Of degrees."},
        "days": {"type": "integer", "description": "How many.", "default": 1},
        "span": {"anyOf": [{"type": "object", "properties": span, "required": ["first"]}, null]},
        "detail": {"enum": ["short", "long"], "type": "string", "default": "short"},
        "factors": {"anyOf": [factors, null]},
        "pair": {
            "type": "array",
            "prefixItems": [{"type": "integer"}, text],
            "minItems": 2,
            "maxItems": 2,
        },
        "tags": {"anyOf": [{"type": "array", "items": text, "uniqueItems": True}, null]},
        "other": {},
    }
    json.dumps(schema)


class Lookup:
    """Look up a word."""

    def __call__(self, word: str) -> str:
        return word


def test_an_object_that_can_be_called_and_a_partial_are_functions() -> None:
    bound = functools.partial(weather, days=3, place=Place("Rome"))
    tools = (Lookup(), functools.partial(Lookup(), word="a"), bound)
    looked, fixed, weathered = [Function(one) for one in tools]
    assert looked.name == fixed.name == "Lookup"
    made = looked.schema["function"]
    assert made["description"] == "Look up a word."
    assert made["parameters"]["properties"] == {"word": {"type": "string"}}
    assert fixed.schema["function"]["parameters"]["properties"] == {}
    assert weathered.name == "weather"
    parameters = weathered.schema["function"]["parameters"]
    assert parameters["required"] == []
    assert "unit" in parameters["properties"]
    with pytest.raises(ValueError, match="unknown arguments: days"):  # a model cannot change it
        weathered.bound({"days": 1})
    bound.__name__ = "in_rome"  # type: ignore[attr-defined]
    assert Function(bound).name == "in_rome"


def test_arguments_become_what_the_function_takes() -> None:
    given = {
        "place": {"city": "Rome", "streets": ["a"]},
        "unit": "f",
        "days": 2.0,
        "span": {"first": 1},
        "factors": {"a": 1},
        "pair": [1, "b"],
        "tags": ["x", "x"],
        "other": [{}],
    }
    assert Function(weather).bound(given) == {
        "place": Place("Rome", ["a"]),
        "unit": Unit.FAHRENHEIT,
        "days": 2,
        "span": {"first": 1},
        "factors": {"a": 1.0},
        "pair": (1, "b"),
        "tags": {"x"},
        "other": [{}],
    }
    assert Function(weather).bound({"place": {"city": ""}, "span": None})["span"] is None


@pytest.mark.parametrize(
    ("why", "arguments"),
    [
        ("missing arguments: place", {}),
        ("unknown arguments: x", {"x": 1}),
        ("place must be an object, not 'Rome'", {"place": "Rome"}),
        ("place must have city", {"place": {"streets": []}}),
        ("place must have city", {"place": {"city": "a", "x": 1}}),
        (
            r"place.streets\[1\] must be a string, not 5",
            {"place": {"city": "", "streets": ["", 5]}},
        ),
        ("unit must be one of 'c', 'f', not 'k'", {"unit": "k"}),
        ("detail must be one of", {"detail": "x"}),
        ("days must be an integer, not '2'", {"days": "2"}),
        ("days must be an integer, not 2.5", {"days": 2.5}),
        ("days must be an integer, not True", {"days": True}),
        ("span must be an object or null", {"span": {"last": 1}}),
        ("pair must be a list", {"pair": [1]}),
        ("factors must be", {"factors": {"a": "b"}}),
    ],
)
def test_wrong_arguments_are_refused_in_words_for_a_model(
    why: str, arguments: dict[str, Any]
) -> None:
    right = {"place": {"city": "Rome"}}
    given = arguments if why.startswith("missing") else right | arguments
    with pytest.raises(ValueError, match=f"^{why}"):
        Function(weather).bound(given)


def untyped(a) -> None:  # type: ignore[no-untyped-def]
    pass


def starred(*a: int) -> None:
    pass


def odd(a: bytes) -> None:
    pass


def unknown(a: "Nothing") -> None:  # type: ignore[name-defined]  # noqa: F821
    pass


@dataclass
class Node:
    children: "list[Node]"


def endless(a: Node) -> None:
    pass


def keyed(a: dict[int, str]) -> None:
    pass


def plain() -> None:
    pass


SCHEMA = {"name": "f", "description": "?", "parameters": {"type": "object", "properties": {}}}
WRONG: dict[str, Any] = {
    "must be a list": {"type": "function"},
    "not str": "f",
    "must be a function": [Place],
    "a needs a type": [untyped],
    "cannot be given by name": [starred],
    "not a type of JSON": [odd],
    "is unclear": [unknown],
    "holds itself": [endless],
    "keys of a mapping": [keyed],
    "needs a name": [lambda: None, {"name": "a b"}, {"name": ""}, {"name": 5}, {}],
    "two tools are named f": [SCHEMA, {"type": "function", "function": SCHEMA}],
    "tools must be a list of": [5, {"type": "web_search"}, {"type": "function"}, None],
    "its description": [SCHEMA | {"description": 5}],
    "its parameters": [SCHEMA | {"parameters": one} for one in ([], {"type": "string"})],
    "its properties": [SCHEMA | {"parameters": {"properties": one}} for one in ([], {"a": 5})],
    "what is required": [SCHEMA | {"parameters": {"required": ["a"]}}],
    "JSON schema": [SCHEMA | {"parameters": {"a": object()}}],
    "nested too deeply": [
        SCHEMA | {"parameters": {"properties": {"a": nested(depth)}}} for depth in (200, 5000)
    ],
    "refers to": [
        SCHEMA | {"parameters": {"properties": {"a": {"$ref": where}}}} for where in ("#/x", "x")
    ],
}


@pytest.mark.parametrize("why", WRONG)
def test_what_is_no_tool_is_refused_in_one_line(text: Text, why: str) -> None:
    wrong = WRONG[why]
    together = not isinstance(wrong, list) or why.startswith("two")
    for tools in [wrong] if together else [[one] for one in wrong]:
        with pytest.raises(UsageError, match=why) as error:
            text.chat(HI, tools)
        assert len(str(error.value).splitlines()) == 1


def test_functions_and_schemas_are_declared_alike(tmp_path: Path) -> None:
    schema = declared([weather])[0]
    for name, template in TEMPLATES.items():
        text = with_template(tmp_path / name, template)
        forms: Sequence[Any] = (weather, schema, schema["function"])
        assert len({tuple(text.chat(HI, [one])) for one in forms}) == 1
        assert text.chat(HI, []) == text.chat(HI, None) == text.chat(HI)
    assert declared(None) == declared([]) == []
    assert declared((plain,))[0]["function"]["parameters"]["properties"] == {}
    assert declared([{"name": "f"}]) == [
        {"type": "function", "function": {"name": "f", "description": ""}}
    ]


def test_googles_templates_get_one_type_and_no_references(text: Text, tmp_path: Path) -> None:
    properties = {
        "a": {"anyOf": [{"$ref": "#/$defs/A"}, {"type": "null"}], "description": "An A."},
        "b": {"type": ["integer", "null"]},
        "c": {"const": "x"},
        "d": {"anyOf": [{"type": "string"}, {"type": "integer"}], "description": "Either"},
        "e": {"type": "array", "items": {"$ref": "#/$defs/A"}},
        "f": {"allOf": [{"$ref": "#/$defs/A"}], "title": "F"},
        "g": True,
    } | {"h": {"enum": [1, 2]}, "i": {"items": {}}}
    properties["j"] = {"$ref": "#"}
    own = {"type": "object", "properties": {"n": {"$ref": "#/$defs/A"}}}
    parameters = {"type": "object", "properties": properties, "$defs": {"A": own}}
    properties["g"] = {}
    schema = declared([SCHEMA | {"parameters": parameters}])
    (shown,) = for_google(schema)
    whole = shown["function"]["parameters"]["properties"].pop("j")
    assert whole["properties"].pop("j") == {"type": "object"}
    assert whole == shown["function"]["parameters"]
    plain_own = {"type": "object", "properties": {"n": {"type": "object"}}}
    assert shown["function"]["parameters"] == {
        "type": "object",
        "properties": {
            "a": {**plain_own, "nullable": True, "description": "An A."},
            "b": {"type": "integer", "nullable": True},
            "c": {"type": "string", "enum": ["x"]},
            "d": {"type": "string", "description": "Either (string or integer)"},
            "e": {"type": "array", "items": plain_own},
            "f": {**plain_own, "title": "F"},
            "g": {"type": "object"},
            "h": {"type": "number", "enum": [1, 2]},
            "i": {"type": "array", "items": {"type": "object"}},
        },
    }
    assert "$defs" not in text.decode(text.chat(HI, schema))
    tojson = "{{ tools | tojson }}"
    google = with_template(tmp_path, NEWEST + tojson)
    assert "$defs" not in google.decode(google.chat(HI, schema))
    other = with_template(tmp_path, OTHER + tojson)  # takes schemas as they are
    assert json.loads(other.decode(other.chat(HI, schema)).partition("model\n")[2]) == schema


def test_results_are_text_or_a_mapping_of_json() -> None:
    assert result_of("so") == "so"
    assert result_of({"a": {1: (2, None)}}) == {"a": {"1": [2, None]}}
    assert result_of(Place("Rome")) == {"city": "Rome", "streets": []}
    for value, shown in [(None, None), (5, 5), ([1, Unit.CELSIUS], [1, "c"]), ([Path("a")], ["a"])]:
        assert result_of(value) == {"value": shown}
    with pytest.raises(ValueError, match="surrogates"):
        result_of(cast(Any, "\ud800"))
