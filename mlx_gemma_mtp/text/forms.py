"""The form of an answer as a grammar: a JSON schema, a regex, or one of some choices.

Knows nothing of tokens, thoughts and calls.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from mlx_gemma_mtp.errors import UsageError, one_line
from mlx_gemma_mtp.text.grammar import TOO_DEEP, escaped

# As `json.dumps` writes it: with free white space, a model can write spaces without end.
LAYOUT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
# Nothing keeps out what fits two schemas of a oneOf.
OPTIONS = LAYOUT | {"coerce_one_of": True}

SCHEMAS = {"items", "additionalProperties"}  # keywords with a schema
LISTS = {"anyOf", "oneOf", "allOf", "prefixItems"}  # with a list of them
NAMED = {"properties", "patternProperties", "$defs", "definitions"}  # with schemas by name
SPECIAL = re.compile(r"[\\.+*?()|\[\]{}^$]")  # in a regex
OTHERS = {"anyOf", "oneOf", "$ref"}  # what else an object with properties must match


def as_schema(schema: object) -> object:
    """Return the schema of a pydantic model; anything else stays. Raises UsageError."""
    if not isinstance(schema, type) or not hasattr(schema, "model_json_schema"):
        return schema
    try:
        return schema.model_json_schema()
    except Exception as error:  # noqa: BLE001 - pydantic's own, which is no dependency
        raise UsageError(f"json_schema: {one_line(error)}") from None


def json_form(schema: object) -> str:
    """Return the grammar of JSON text that matches a schema, or a pydantic model's.

    It is written on one line, with the properties in the schema's order. Objects have no other
    properties than the schema names, unless it says so, or combines schemas of one object.
    Raises UsageError for anything that is not a schema; the compiler refuses keywords.
    """
    schema = as_schema(schema)
    if not isinstance(schema, Mapping):
        raise UsageError("json_schema must be a mapping or a pydantic model")
    try:
        plain = json.loads(json.dumps(schema, allow_nan=False))
        nodes = list(_schemas(plain))
    except RecursionError:
        raise UsageError(f"json_schema cannot be followed: {TOO_DEEP}") from None
    except (TypeError, ValueError):
        raise UsageError("json_schema must be a JSON schema, of plain JSON values") from None
    patterned = (one for one in nodes if "patternProperties" in one)
    if any(one.get("minProperties", 0) not in (0, 1) for one in patterned):
        raise UsageError(
            "json_schema cannot be followed: with patternProperties a key may come twice, so that "
            "minProperties does not hold. Name the properties instead"
        )
    combines = any("allOf" in one or ("properties" in one and OTHERS & {*one}) for one in nodes)
    if not combines:
        for node in nodes:
            if _is_closed(node):
                node.setdefault("additionalProperties", False)
    return f"%json {json.dumps(plain | {'x-guidance': OPTIONS})}"


def regex_form(regex: object) -> str:
    r"""Return the grammar of text that a regex matches as a whole; \d is a digit from 0 to 9.

    Raises UsageError.
    """
    if not isinstance(regex, str) or not regex:
        raise UsageError("regex must be a string that is not empty")
    return f"/{escaped(regex)}/"


def choice_form(choices: object) -> str:
    """Return the grammar of one of these strings. Raises UsageError."""
    given = choices if isinstance(choices, (list, tuple)) else []
    if not given or not all(isinstance(one, str) and one for one in given):
        raise UsageError("choices must be a list of strings that are not empty")
    return regex_form("|".join(SPECIAL.sub(r"\\\g<0>", one) for one in given))  # takes thousands


def form_of(json_schema: object, regex: object, choices: object) -> str | None:
    """Return the grammar of the one that is given; None if none is. Raises UsageError."""
    if json_schema is not None:
        return json_form(json_schema)
    if regex is not None:
        return regex_form(regex)
    return None if choices is None else choice_form(choices)


def literal(text: str) -> str:
    """Return the grammar of exactly this text."""
    return json.dumps(text)


def _schemas(schema: Any) -> Iterator[dict[str, Any]]:
    """Yield a schema and all schemas in it."""
    if not isinstance(schema, dict):
        return
    yield schema
    for key, value in schema.items():
        if key in SCHEMAS:
            inner = [value]
        elif key in LISTS and isinstance(value, list):
            inner = value
        elif key in NAMED and isinstance(value, dict):
            inner = [*value.values()]
        else:
            continue
        for one in inner:
            yield from _schemas(one)


def _is_closed(schema: Mapping[str, Any]) -> bool:
    """True for an object that can have the named properties alone."""
    named, required = schema.get("properties"), schema.get("required", [])
    if not isinstance(named, dict) or "patternProperties" in schema:
        return False
    return isinstance(required, list) and all(one in named for one in required)
