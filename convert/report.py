"""A plan as people read it: which weights get which format, and what that adds up to.

Tables in Markdown, which a terminal shows as well as a model card. Knows nothing of either.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from rich.filesize import decimal

from mlx_gemma_mtp.files.weights import dtype_name

from .plan import Plan


class Group(NamedTuple):
    """The weights of one name in all layers; `formats` counts the tensors by format."""

    name: str
    formats: Counter[str]
    parameters: int
    nbytes: int


def groups(plan: Plan) -> list[Group]:
    """The plan by names, layers taken together; what cannot be quantized comes last, as one."""
    found: dict[str, Group] = {}
    for output in plan.outputs:
        name = re.sub(r"\.\d+\.", ".*.", output.path) if output.quantizable else "all else"
        group = found.get(name, Group(name, Counter(), 0, 0))
        label = dtype_name(output.dtype) if output.format is None else output.format.name
        group.formats[label] += 1
        found[name] = group._replace(
            parameters=group.parameters + math.prod(output.shape),
            nbytes=group.nbytes + output.nbytes,
        )
    return sorted(found.values(), key=lambda group: group.name == "all else")


def format_table(plan: Plan) -> str:
    """Formats, weights and bytes by group. `4/64` is 4 bits in groups of 64."""
    rows = [
        [
            group.name,
            ", ".join(
                label if len(group.formats) == 1 else f"{label} ({count})"
                for label, count in group.formats.most_common()
            ),
            number(group.parameters),
            decimal(group.nbytes),
        ]
        for group in groups(plan)
    ]
    rows.append(
        [
            "together",
            f"{plan.bits_per_weight:.2f} bits per weight",
            number(plan.parameters),
            decimal(plan.nbytes),
        ]
    )
    return table(["weights", "format", "number", "size"], rows)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, its columns aligned for eyes as well."""
    lines = [list(header), *map(list, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    padded = [
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |"
        for line in lines
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([padded[0], rule, *padded[1:]])


def number(count: float) -> str:
    """Weights as people count them: 30.7 B, 469.5 M."""
    for unit, length in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= length:
            return f"{count / length:.1f} {unit}"
    return str(count)
