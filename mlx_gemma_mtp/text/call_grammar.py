"""The grammar of tool calls as Gemma 4 writes them, from the schemas of tools.

The common part of JSON schema is followed; where it says more, any value is allowed. Knows nothing
of who reads the calls.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from mlx_gemma_mtp.text.forms import literal
from mlx_gemma_mtp.text.markers import Markers

BARE_KEY = re.compile(r"[^\W\d][\w.-]*")  # others stand in quotes
NUMBERS = {"type", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"}
COMMA = ' "," '
ANY, ANY_OBJECT = "any", "any_object"
ANY_RULES = r"""
any: string | number | "true" | "false" | "null" | any_object | any_array
any_object: "{" (any_pair ("," any_pair)*)? "}"
any_pair: /[A-Za-z_][A-Za-z0-9_]*/ ":" any
any_array: "[" (any ("," any)*)? "]"
number: /-?(0|[1-9][0-9]{0,29})(\.[0-9]{1,29})?([eE][+-]?[0-9]{1,2})?/
integer: /-?(0|[1-9][0-9]{0,29})/
"""


def call_rules(tools: Sequence[Mapping[str, Any]], markers: Markers) -> str:
    """Return the rules of a grammar in which `call` is a call of one of these tools.

    tools: as OpenAI's clients declare them.
    """
    return _Rules(markers).of(tools)


class _Rules:
    """The rules so far; some have the name of a schema that others refer to."""

    def __init__(self, markers: Markers) -> None:
        self._markers = markers
        self._lines = [f"string: {self._quoted('/(?s:.*)/')}"]
        self._names: dict[tuple[int, str], str] = {}  # of references, within the schema of a tool

    def of(self, tools: Sequence[Mapping[str, Any]]) -> str:
        calls = []
        for tool in tools:
            function = tool["function"]
            root = function.get("parameters") or {"type": "object", "properties": {}}
            arguments = self._object(root, root) if _is_object(root) else ANY_OBJECT
            calls.append(f"{literal('call:' + function['name'])} {arguments}")
        self._lines.append(
            f"call: <[{self._markers.call}]> ({_either(calls)}) <[{self._markers.call_end}]>"
        )
        return "\n".join(self._lines) + ANY_RULES

    def _rule(self, body: str) -> str:
        name = f"rule_{len(self._lines)}"
        self._lines.append(f"{name}: {body}")
        return name

    def _quoted(self, inner: str) -> str:
        quote = f"<[{self._markers.quote}]>"
        return f"{quote} {inner} {quote}"

    def _value(self, schema: Any, root: Any) -> str:
        """Return the grammar of a value."""
        if not isinstance(schema, dict):
            return ANY
        if isinstance(reference := schema.get("$ref"), str):
            return self._reference(reference, root)
        if "const" in schema:
            return self._written(schema["const"])
        if isinstance(found := schema.get("enum"), list) and found:
            return _either([self._written(one) for one in found])
        for key in ("anyOf", "oneOf", "allOf"):
            if isinstance(found := schema.get(key), list) and found:
                several = key == "allOf" and len(found) > 1
                return ANY if several else _either([self._value(one, root) for one in found])
        kind = schema.get("type")
        if isinstance(kind, list) and kind:
            return _either([self._value(schema | {"type": one}, root) for one in kind])
        if _is_object(schema):
            return self._object(schema, root)
        match kind:
            case "string":
                return self._string(schema)
            case "integer" | "number":
                kept = {key: value for key, value in schema.items() if key in NUMBERS}
                plain = kind if kept == {"type": kind} else None
                return plain or self._rule(f"%json {json.dumps(kept)}")
            case "boolean":
                return '("true" | "false")'
            case "null":
                return '"null"'
            case "array":
                return self._array(schema, root)
        return ANY

    def _reference(self, reference: str, root: Any) -> str:
        key = (id(root), reference)
        if key not in self._names:
            target = root
            for part in reference.removeprefix("#/").split("/"):
                target = target.get(part) if isinstance(target, dict) else None
            self._names[key] = name = self._rule("")  # a schema may refer to itself
            line = int(name.removeprefix("rule_"))
            self._lines[line] = f"{name}: {self._value(target, root)}"
        return self._names[key]

    def _string(self, schema: Mapping[str, Any]) -> str:
        least, most = schema.get("minLength", 0), schema.get("maxLength", "")
        if not least and most == "":
            return "string"
        return self._rule(self._quoted(f"/(?s:.{{{least},{most}}})/"))

    def _array(self, schema: Mapping[str, Any], root: Any) -> str:
        item = self._value(schema.get("items"), root)
        least, most = schema.get("minItems", 0), schema.get("maxItems")
        if most == 0:
            return '"[]"'
        times = f"{{{max(least - 1, 0)},{'' if most is None else most - 1}}}"
        items = f'{item} ("," {item}){times}'
        return self._rule(f'"[" {items if least else f"({items})?"} "]"')

    def _object(self, schema: Mapping[str, Any], root: Any) -> str:
        """Return the grammar of an object, with its properties in the order of chat templates."""
        named, required = schema.get("properties") or {}, schema.get("required") or []
        if not named and schema.get("additionalProperties", schema is not root):
            return ANY_OBJECT
        # From the last property to the first: what follows an item, and what follows the brace.
        later = first = ""
        for key in sorted(named, key=str.lower, reverse=True):
            item = f'{self._key(key)} ":" {self._value(named[key], root)}'
            others = f" {later}" if later else ""
            start, more = f"{item}{others}", f'"," {item}{others}'
            if key in required:
                first, later = self._rule(start), self._rule(more)
            else:
                first = self._rule(f"{start} | {first}" if first else f"({start})?")
                later = self._rule(f"{more} | {later}" if later else f"({more})?")
        return self._rule(f'"{{" {first} "}}"')

    def _key(self, key: str) -> str:
        return literal(key) if BARE_KEY.fullmatch(key) else self._quoted(literal(key))

    def _written(self, value: Any) -> str:
        """Return the grammar of exactly this value."""
        match value:
            case str():
                return self._quoted(literal(value) if value else "")
            case dict():
                pairs = sorted(value.items(), key=lambda pair: pair[0].lower())
                inside = [f'{self._key(key)} ":" {self._written(one)}' for key, one in pairs]
                return f'"{{" {COMMA.join(inside)} "}}"'
            case list():
                return f'"[" {COMMA.join(map(self._written, value))} "]"'
        return literal(json.dumps(value))


def _is_object(schema: Any) -> bool:
    found = isinstance(schema, dict) and schema.get("type", "object") == "object"
    return found and ("properties" in schema or "type" in schema)


def _either(alternatives: Sequence[str]) -> str:
    return f"({' | '.join(alternatives)})"
