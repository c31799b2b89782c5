"""What a client asks for, in the engine's terms. Knows no protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mlx_gemma_mtp.decode.params import SamplingParams
from mlx_gemma_mtp.engine.many import SEEDS
from mlx_gemma_mtp.errors import UsageError
from mlx_gemma_mtp.server.failures import failure_of, of_field
from mlx_gemma_mtp.text.functions import Schema
from mlx_gemma_mtp.text.messages import Prompt
from mlx_gemma_mtp.text.tools import declared

ANY_OBJECT: Schema = {"type": "object", "additionalProperties": True}


@dataclass(frozen=True)
class Asked:
    """A request of a client.

    protocol: for the log and metrics. model: as the client names it; None for the one that is
    served. n: completions of each prompt. one_call: True to end after the first tool call.
    priority: as of `Engine.submit`. stream: whether events are sent as they come. names: what the
    protocol calls settings, by their names in SamplingParams.
    """

    protocol: str
    prompts: Sequence[Prompt]
    params: SamplingParams
    model: str | None = None
    tools: Sequence[Schema] = ()
    n: int = 1
    one_call: bool = False
    priority: int = 0
    stream: bool = False
    names: Mapping[str, str] = field(default_factory=dict)


def params_of(names: Mapping[str, str], **given: Any) -> SamplingParams:
    """Return settings; those that are None are left out, and any integer is a seed.

    A top_p of 0 keeps the best token alone, and a top_k of -1 all. names: as of `Asked`. Raises a
    Failure that names the field with a wrong value.
    """
    given = {name: value for name, value in given.items() if value is not None}
    if given.get("top_p") == 0:
        given |= {"top_p": 1.0, "top_k": 1}
    if given.get("top_k") == -1:
        given["top_k"] = 0
    if "seed" in given:
        given["seed"] %= SEEDS
    try:
        return SamplingParams(**given)
    except UsageError as error:
        raise failure_of(error, names) from None


def schemas_of(tools: Sequence[Any] | None) -> list[Schema]:
    """Return the schemas of tools. Raises Failure."""
    with of_field("tools"):
        return declared(tools)
