"""Tool calls: what one is, and its arguments as chat templates take them.

Knows nothing of how models write them, of tokens, templates, and what is done with a call.
"""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

UNREADABLE = "unreadable"  # templates take arguments that cannot be read as {UNREADABLE: text}


def new_id(kind: str = "call_") -> str:
    """Return a random id of a call, or of something else that starts with `kind`."""
    return f"{kind}{secrets.token_hex(12)}"


@dataclass(frozen=True)
class ToolCall:
    """A complete tool call.

    raw: its text, `call:NAME{key:<|"|>text<|"|>,n:1}`. arguments: None if they cannot be read
    without a guess. name: empty if not even `call:NAME{` can be read. id: random, for the message
    with its result.
    """

    name: str
    arguments: dict[str, Any] | None
    raw: str
    id: str = field(default_factory=new_id, compare=False)

    @property
    def function(self) -> dict[str, Any]:
        """The call as chat templates take it; {"unreadable": text} for unreadable arguments."""
        written = self.raw.partition("{")[2].rstrip().removesuffix("}")
        arguments = {UNREADABLE: written} if self.arguments is None else self.arguments
        return {"name": self.name, "arguments": arguments}


def as_mapping(arguments: Mapping[str, Any] | str | None) -> Mapping[str, Any]:
    """Return the arguments of a call in a message as chat templates take them.

    Text is read as JSON, the form of OpenAI's clients. Text that is not a JSON object is returned
    as {"unreadable": text}, so that a conversation can continue after a broken call.
    """
    if not isinstance(arguments, str):
        return {} if arguments is None else arguments
    if not arguments.strip():
        return {}
    try:
        found = json.loads(arguments, parse_float=finite, parse_constant=finite)
    except (ValueError, RecursionError):
        found = None
    return found if isinstance(found, dict) else {UNREADABLE: arguments}


def finite(number: str) -> float:
    """Return a number that is written out. Raises ValueError for one that JSON doesn't have."""
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(f"{number} is not a number in JSON")
    return value
