"""The tools that a model may call: as callers give them, and as chat templates take them.

Knows nothing of calls and their results.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mlx_gemma_mtp.errors import UsageError, one_line
from mlx_gemma_mtp.text.functions import Function, Schema

Tool = Mapping[str, Any] | Callable[..., Any]

FORMS = 'tools must be a list of Python functions or of {"type": "function", "function": {…}}'
NAME = re.compile(r"[^\s{]+")  # what a call can name


def declared(tools: Sequence[Tool] | None) -> list[Schema]:
    """Return the schemas of tools, in OpenAI's form.

    tools: Python functions, whose schema comes from their signature and docstring, and schemas,
    with {"type": "function", "function": …} around them or not. Raises UsageError for anything
    else, and for two of one name.
    """
    given: object = tools
    if given is None:
        return []
    if not isinstance(given, (list, tuple)):
        raise UsageError(f"{FORMS}, not {type(given).__name__}")
    found = [Function(one).schema if callable(one) else _checked(one) for one in given]
    names = [one["function"]["name"] for one in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"two tools are named {twice}: rename one")
    return found


def _checked(tool: Any) -> Schema:
    try:
        found = json.loads(json.dumps(tool, default=dict))  # a copy of plain values
    except RecursionError:
        raise UsageError("a tool is nested too deeply: make its schema flatter") from None
    except (TypeError, ValueError) as error:
        if not isinstance(tool, Mapping):
            raise UsageError(f"{FORMS}, not of {type(tool).__name__}") from None
        raise UsageError(f"a tool must be a JSON schema: {one_line(error)}") from None
    if not isinstance(found, dict):
        raise UsageError(f"{FORMS}, not of {type(tool).__name__}")
    kind = found.get("type", "function")
    function = found.get("function", found if "type" not in found else None)
    if kind != "function" or not isinstance(function, dict):
        raise UsageError(FORMS)
    name, parameters = function.get("name"), function.get("parameters")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise UsageError(f"a tool needs a name without spaces and braces, not {name!r:.80}")
    if not isinstance(function.get("description"), str | None):
        raise UsageError(f"tool {name}: its description must be text")
    function = {**function, "description": function.get("description") or ""}
    if parameters is None:
        function.pop("parameters", None)
    elif (wrong := _wrong(parameters)) is not None:
        raise UsageError(f"tool {name}: {wrong}")
    else:
        function["parameters"] = {"type": "object", **parameters}
    return {"type": "function", "function": function}


def _wrong(parameters: Any) -> str | None:
    if not isinstance(parameters, dict) or parameters.get("type", "object") != "object":
        return 'its parameters must be a JSON schema of type "object"'
    properties, required = parameters.get("properties", {}), parameters.get("required", [])
    if not isinstance(properties, dict) or not all(
        isinstance(one, dict) for one in properties.values()
    ):
        return "its properties must have a JSON schema each"
    if not isinstance(required, list) or not set(map(repr, required)) <= set(map(repr, properties)):
        return "what is required must be among its properties"
    return None


def for_google(schemas: Sequence[Schema]) -> list[Schema]:
    """Return schemas with the few words that Google's chat templates know, and show.

    References are replaced by what they refer to, and every value has one type: "nullable" if it
    may be null, and what else it may be is named in its description.
    """
    found = []
    for schema in schemas:
        function = dict(schema["function"])
        if parameters := function.get("parameters"):
            function["parameters"] = _shown(parameters, parameters, ())
        found.append({**schema, "function": function})
    return found


def _shown(schema: Any, root: Schema, path: tuple[str, ...]) -> Schema:
    if not isinstance(schema, dict):  # True: anything
        return {"type": "object"}
    found = {key: one for key, one in schema.items() if key not in ("$defs", "definitions")}
    if isinstance(reference := found.pop("$ref", None), str):
        if reference in path:  # it holds itself: what is in it is left to the model
            return {"type": "object", **found}
        return _shown({**_referred(reference, root), **found}, root, (*path, reference))
    for word in ("anyOf", "oneOf", "allOf"):
        if word in found:
            found = _merged(word, found, root, path)
    if "const" in found:
        found["enum"] = [found.pop("const")]
    kinds = found.get("type", _kind(found))
    kinds = kinds if isinstance(kinds, list) else [kinds]
    if "null" in kinds and len(kinds) > 1:
        found["nullable"] = True
        kinds = [kind for kind in kinds if kind != "null"]
    found["type"] = kinds[0] if kinds else "object"
    if len(kinds) > 1:
        found["description"] = f"{found.get('description', '')} ({' or '.join(kinds)})".strip()
    if isinstance(properties := found.get("properties"), dict):
        found["properties"] = {key: _shown(one, root, path) for key, one in properties.items()}
    if "items" in found:
        found["items"] = _shown(found["items"], root, path)
    return found


def _merged(word: str, schema: Schema, root: Schema, path: tuple[str, ...]) -> Schema:
    """Return a schema with its alternatives, or all that must hold, as one."""
    found = {key: one for key, one in schema.items() if key != word}
    each = [_shown(one, root, path) for one in schema[word] if one]
    if word == "allOf":
        for one in each:
            found = {**one, **found}
        return found
    kinds = [one["type"] for one in each]
    real = [one for one in each if one["type"] != "null"]
    if len(real) == 1 and len(each) > 1:
        return {**real[0], "nullable": True, **found}
    unique = list(dict.fromkeys(kinds))
    first: Schema = real[0] if real else {}
    return {**first, **found, "type": unique if len(unique) > 1 else unique[0]} if each else found


def _referred(reference: str, root: Schema) -> Schema:
    """Return what "#/$defs/Name", or "#", refers to. Raises UsageError if it isn't there."""
    found: Any = root
    for key in reference.removeprefix("#").split("/")[1:]:
        key = key.replace("~1", "/").replace("~0", "~")
        found = found.get(key) if isinstance(found, dict) else None
    if not isinstance(found, dict) or not reference.startswith("#"):
        raise UsageError(f"the schema of a tool refers to {reference}, which is not in it")
    return found


def _kind(schema: Schema) -> str:
    """Return the type of a schema that names none."""
    if "items" in schema:
        return "array"
    values = schema.get("enum", ())
    if values and all(isinstance(value, bool) for value in values):
        return "boolean"
    if values and all(isinstance(value, (int, float)) for value in values):
        return "number"
    return "string" if values else "object"
