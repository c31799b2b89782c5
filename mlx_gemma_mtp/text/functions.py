"""A Python function as a tool: its schema, and its arguments, checked.

Reads the signature, the type hints and a Google-style docstring. Knows nothing of models, templates
and calls.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Annotated, Any, Literal, NotRequired, Required, Union, get_args, get_origin

from mlx_gemma_mtp.errors import UsageError, one_line

Schema = dict[str, Any]

PLAIN = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}
LISTS = (list, Sequence, tuple, set, frozenset)
DEEPEST = 20  # types within types; a type that holds itself has no end

_ARGUMENTS = re.compile(r"\s*(?:Args|Arguments|Parameters):\s*")
_SECTION = re.compile(
    r"\s*(?:Returns?|Yields?|Raises|Examples?|Notes?|Warnings?|See Also|Todo|Attributes):\s*"
)
_ARGUMENT = re.compile(r"\*{0,2}(\w+)\s*(?:\([^)]*\))?:\s*(.*)")


class Function:
    """A function that a model may call. name, schema: as OpenAI's "tools" has them."""

    def __init__(self, function: Callable[..., Any]) -> None:
        """Take a function, a method, an object with __call__, or a functools.partial.

        A model can give the arguments that a partial has not set. Raises UsageError for a signature
        that a call with named arguments cannot fill.
        """
        set_before: Mapping[str, Any] = {}
        called: Any = function
        if isinstance(function, functools.partial):
            set_before, called = function.keywords, function.func
        if isinstance(called, type):
            raise UsageError(f"a tool must be a function or a schema, not {called!r:.80}")
        named = called if inspect.isroutine(called) else type(called)
        hinted = called if inspect.isroutine(called) else named.__call__
        self.function = function
        self.name = getattr(function, "__name__", named.__name__)
        if not self.name.isidentifier():
            raise UsageError("a tool needs a name: a function made with def, not a lambda")
        self._hints: dict[str, Any] = {}
        try:
            parameters = {**inspect.signature(function).parameters}
            hints = typing.get_type_hints(hinted, include_extras=True)
        except (TypeError, ValueError, NameError) as error:
            raise UsageError(
                f"the signature of {self.name} is unclear: {one_line(error)}"
            ) from None
        about, described = _docstring(inspect.getdoc(hinted if hinted.__doc__ else named) or "")
        parameters = {name: one for name, one in parameters.items() if name not in set_before}
        properties = {}
        for name, parameter in parameters.items():
            if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                raise UsageError(f"{self.name}: {parameter} cannot be given by name")
            if name not in hints:
                raise UsageError(f"{self.name}: {name} needs a type, such as {name}: str")
            self._hints[name] = hints[name]
            try:
                schema = schema_of(hints[name])
            except UsageError as error:
                raise UsageError(f"{self.name}: {name}: {error}") from None
            if name in described:
                schema["description"] = described[name]
            if isinstance(parameter.default, (str, int, float, bool)):
                schema["default"] = getattr(parameter.default, "value", parameter.default)
            properties[name] = schema
        self._required = [n for n, p in parameters.items() if p.default is p.empty]
        fields = {"type": "object", "properties": properties, "required": self._required}
        made = {"name": self.name, "description": about, "parameters": fields}
        self.schema: Schema = {"type": "function", "function": made}

    def bound(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments as the function takes them.

        Raises ValueError, in words for a model, if one is missing, unknown or of a wrong type.
        """
        unknown = [name for name in arguments if name not in self._hints]
        missing = [name for name in self._required if name not in arguments]
        if unknown:
            raise ValueError(f"unknown arguments: {', '.join(unknown)}")
        if missing:
            raise ValueError(f"missing arguments: {', '.join(missing)}")
        return {name: value_of(self._hints[name], value, name) for name, value in arguments.items()}


def result_of(value: Any) -> str | dict[str, Any]:
    """Return what a function returned as the content of a tool's message: text, or JSON's values.

    Anything but text and mappings is the "value" of a mapping. Raises ValueError for text that is
    not UTF-8.
    """
    found = json.loads(json.dumps(value, default=_as_json))
    json.dumps(found, ensure_ascii=False).encode()
    return found if isinstance(found, (str, dict)) else {"value": found}


def _as_json(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, (set, frozenset)):
        return list(value)
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Enum):
        return value.value
    if hasattr(value, "model_dump"):  # a pydantic model
        return value.model_dump(mode="json")
    return str(value)


def schema_of(hint: Any, depth: int = 0) -> Schema:
    """Return the JSON schema of a type. Raises UsageError if there is none."""
    if depth > DEEPEST:
        raise UsageError("its type holds itself: use dict")
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        texts = [one for one in inner[1:] if isinstance(one, str)]
        return schema_of(inner[0], depth) | ({"description": texts[0]} if texts else {})
    if origin in (Required, NotRequired):
        return schema_of(inner[0], depth)
    if hint in (Any, object):
        return {}
    if hint in PLAIN:
        return {"type": PLAIN[hint]}
    if origin is Literal:
        return _choice(list(inner))
    if origin in (Union, types.UnionType):
        return {"anyOf": [schema_of(one, depth + 1) for one in inner]}
    if isinstance(hint, type) and issubclass(hint, Enum):
        return _choice([one.value for one in hint])
    kind = origin or hint
    if kind in LISTS:
        return _list(kind, inner, depth)
    if kind in (dict, Mapping):
        if inner and inner[0] is not str:
            raise UsageError("the keys of a mapping must be str")
        return {"type": "object"} | (
            {"additionalProperties": schema_of(inner[1], depth + 1)} if inner else {}
        )
    if hasattr(hint, "model_json_schema"):  # a pydantic model
        found: Schema = hint.model_json_schema()
        return found
    if typing.is_typeddict(hint) or dataclasses.is_dataclass(hint):
        fields, required = _fields(hint)
        properties = {name: schema_of(one, depth + 1) for name, one in fields.items()}
        return {"type": "object", "properties": properties, "required": required}
    raise UsageError(f"{hint!r} is not a type of JSON")


def value_of(hint: Any, value: Any, where: str) -> Any:
    """Return a value of JSON as this type. Raises ValueError that says where it doesn't fit."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Annotated, Required, NotRequired):
        return value_of(inner[0], value, where)
    if hint in (Any, object):
        return value
    wrong = ValueError(f"{where} must be {_named(hint)}, not {value!r:.80}")
    if hint in PLAIN:
        return _plain(hint, value, wrong)
    if origin is Literal:
        same = [one for one in inner if one == value and type(one) is type(value)]
        return _first(same, wrong)
    if origin in (Union, types.UnionType):
        for one in sorted(inner, key=lambda one: one is not type(value)):
            try:
                return value_of(one, value, where)
            except ValueError:
                continue
        raise wrong
    if isinstance(hint, type) and issubclass(hint, Enum):
        return _first([one for one in hint if one.value == value], wrong)
    kind = origin or hint
    if kind in LISTS:
        if not isinstance(value, list):
            raise wrong
        each = inner if kind is tuple and inner[-1:] != (...,) else inner[:1] * len(value)
        if inner and len(each) != len(value):
            raise wrong
        pairs = zip(each or [Any] * len(value), value, strict=True)
        items = [value_of(one, item, f"{where}[{at}]") for at, (one, item) in enumerate(pairs)]
        return items if kind in (list, Sequence) else kind(items)
    if not isinstance(value, Mapping):
        raise wrong
    if kind in (dict, Mapping):
        one = inner[1] if inner else Any
        return {key: value_of(one, item, f"{where}.{key}") for key, item in value.items()}
    if hasattr(hint, "model_validate"):  # a pydantic model, whose errors are ValueErrors
        return hint.model_validate(value)
    fields, required = _fields(hint)
    lacks = [name for name in required if name not in value]
    if lacks or not set(value) <= set(fields):
        raise ValueError(f"{where} must have {', '.join(fields)}, not {', '.join(value)}")
    made = {key: value_of(fields[key], item, f"{where}.{key}") for key, item in value.items()}
    return hint(**made)


def _plain(hint: type, value: Any, wrong: ValueError) -> Any:
    """Return a plain value; a model may write 3 for 3.0, and 3.0 for 3."""
    if hint in (int, float) and isinstance(value, (int, float)) and not isinstance(value, bool):
        if hint is float or value == int(value):
            return hint(value)
    elif isinstance(value, hint) and hint not in (int, float):
        return value
    raise wrong


def _first(found: Sequence[Any], wrong: ValueError) -> Any:
    if not found:
        raise wrong
    return found[0]


def _choice(values: list[Any]) -> Schema:
    kinds = {PLAIN.get(type(value)) for value in values}
    if None in kinds:
        raise UsageError("the values of a choice must be text, numbers, True, False or None")
    return {"enum": values} | ({"type": kinds.pop()} if len(kinds) == 1 else {})


def _list(kind: Any, inner: tuple[Any, ...], depth: int) -> Schema:
    schema: Schema = {"type": "array"}
    if kind is tuple and inner and inner[-1] is not ...:
        items = [schema_of(one, depth + 1) for one in inner]
        return schema | {"prefixItems": items, "minItems": len(items), "maxItems": len(items)}
    if inner:
        schema["items"] = schema_of(inner[0], depth + 1)
    return schema | ({"uniqueItems": True} if kind in (set, frozenset) else {})


def _fields(hint: Any) -> tuple[dict[str, Any], list[str]]:
    """Return the types of a dataclass's or TypedDict's fields, and which of them are required."""
    hints = typing.get_type_hints(hint, include_extras=True)
    if typing.is_typeddict(hint):
        return hints, [name for name in hints if name in hint.__required_keys__]
    missing = dataclasses.MISSING
    fields = [one for one in dataclasses.fields(hint) if one.init]
    required = [f.name for f in fields if f.default is missing and f.default_factory is missing]
    return {one.name: hints[one.name] for one in fields}, required


def _named(hint: Any) -> str:
    """Return a type in words for a model."""
    schema = schema_of(hint)
    if "enum" in schema:
        return f"one of {', '.join(map(repr, schema['enum']))}"
    if "anyOf" in schema:
        return " or ".join(_named(one) for one in get_args(hint))
    words = {"array": "a list", "object": "an object", "integer": "an integer", "null": "null"}
    kind = schema.get("type", "value")
    return words.get(kind, f"a {kind}")


def _docstring(text: str) -> tuple[str, dict[str, str]]:
    """Return what a Google-style docstring says of the function, and of each argument."""
    about: list[str] = []
    arguments: dict[str, str] = {}
    section, indent, last = "about", 0, ""
    for line in text.splitlines():
        if _ARGUMENTS.fullmatch(line):
            section, indent = "arguments", 0
        elif _SECTION.fullmatch(line):
            section = "other"
        elif section == "about":
            about.append(line)
        elif section == "arguments" and line.strip():
            depth = len(line) - len(line.lstrip())
            indent = indent or depth
            found = _ARGUMENT.match(line.strip()) if depth <= indent else None
            if found:
                last, arguments[found[1]] = found[1], found[2].strip()
            elif last:
                arguments[last] = f"{arguments[last]} {line.strip()}".strip()
    return "\n".join(about).strip(), arguments
