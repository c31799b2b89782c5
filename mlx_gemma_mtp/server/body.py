"""JSON bodies, checked. Knows no protocol."""

from __future__ import annotations

import re
from typing import Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError
from pydantic_core import PydanticCustomError
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


def refused(why: str) -> AfterValidator:
    """Return what makes a field refuse all values, but empty ones, for this reason.

    For what a client would otherwise believe to be followed.
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
        # Of a union, the type that got furthest says most.
        first = max(error.errors(include_url=False), key=lambda one: len(one["loc"]))
        names = [str(part) for part in first["loc"] if _is_name(part)]
        field = ".".join(names) or None
        message = first["msg"]
        raise Failure(f"{field}: {message}" if field else message, field=field) from None


def _is_name(part: str | int) -> bool:
    """False for the names that pydantic gives the types of a union, `list[str]` for instance."""
    return isinstance(part, int) or (FIELD.fullmatch(part) is not None and part not in TYPES)
