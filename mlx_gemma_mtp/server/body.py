"""JSON bodies, checked. Knows no protocol."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError
from starlette.requests import Request

from mlx_gemma_mtp.server.failures import Failure


class Body(BaseModel):
    """A JSON object. Unknown fields are ignored; values of another type are refused.

    Clients send null for what they leave out, so a field that may be left out takes None.
    """

    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)


B = TypeVar("B", bound=Body)

FIELD = re.compile(r"[a-z_]+")
TYPES = {"str", "int", "float", "bool"}

# What a value must be, by pydantic's names of errors, with the fields of their contexts.
MUST = {
    "string_type": "a string",
    "int_type": "an integer",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "literal_error": "{expected}",
    "greater_than_equal": "at least {ge}",
    "less_than_equal": "at most {le}",
}
IS = {"missing": "missing", "too_short": "empty", "json_invalid": "not JSON: {error}"}


def refused(why: str) -> AfterValidator:
    """Return a validator that refuses all values but empty ones, for this reason.

    For fields that a client would otherwise expect to be followed.
    """

    def check(value: Any) -> Any:
        if value:
            raise PydanticCustomError("refused", "{why}", {"why": why})
        return value

    return AfterValidator(check)


async def read(request: Request, kind: type[B]) -> B:
    """Return the body of a request. Raises a Failure that names the field with a wrong value."""
    if (encoding := request.headers.get("content-encoding", "identity")) != "identity":
        raise Failure(
            f"bodies encoded as {encoding[:20]!r} are not supported: send plain JSON", 415
        )
    try:
        return kind.model_validate_json(await request.body())
    except ValidationError as error:
        raise _failure(error.errors(include_url=False)) from None


def _failure(errors: Sequence[ErrorDetails]) -> Failure:
    """Return what is wrong with one field, in plain words."""
    # Of a union, the types that got furthest say most.
    field = max(map(_field, errors), key=lambda one: one.count("."))
    found = [one for one in errors if _field(one) == field]
    first, name = found[0], field or "the body"
    kinds = [MUST[one["type"]].format(**one.get("ctx", {})) for one in found if one["type"] in MUST]
    if kinds:
        message = f"{name} must be {' or '.join(dict.fromkeys(kinds))}"
    elif first["type"] in IS:
        message = f"{name} is {IS[first['type']].format(**first.get('ctx', {}))}"
    else:
        message = f"{name}: {first['msg']}"
    return Failure(message, field=field or None)


def _field(error: ErrorDetails) -> str:
    """Return where an error is, as "messages.0.content"; "" for the whole body."""
    return ".".join(str(part) for part in error["loc"] if _is_name(part))


def _is_name(part: str | int) -> bool:
    """False for the names that pydantic gives the types of a union, `list[str]` for instance."""
    return isinstance(part, int) or (FIELD.fullmatch(part) is not None and part not in TYPES)
