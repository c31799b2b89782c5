"""Two lists of tokens that ought to be the same: where they part.

Knows nothing of who wrote them, nor of tokenizers.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import zip_longest
from typing import NamedTuple

BEFORE, AFTER = 8, 4  # how many tokens around a parting tell where it is


class Parting(NamedTuple):
    """The first place at which two lists differ. `position` tokens are the same before it.

    before: the last ones of these. found, wanted: a few from there on; empty where a list ends.
    """

    position: int
    before: list[int]
    found: list[int]
    wanted: list[int]


class Side(NamedTuple):
    """The token with which one of two texts goes on, and how it reads, if that is known.

    No token: it ends.
    """

    token: int | None
    text: str | None

    def __str__(self) -> str:
        if self.token is None:
            return "the end"
        quoted = "" if self.text is None else f" ({json.dumps(self.text, ensure_ascii=False)})"
        return f"token {self.token}{quoted}"


def parting(found: Sequence[int], wanted: Sequence[int]) -> Parting | None:
    """Where `found` parts from `wanted`; None where they are the same."""
    for at, (one, other) in enumerate(zip_longest(found, wanted)):
        if one != other:
            return Parting(
                at,
                list(found[max(at - BEFORE, 0) : at]),
                list(found[at : at + AFTER]),
                list(wanted[at : at + AFTER]),
            )
    return None
