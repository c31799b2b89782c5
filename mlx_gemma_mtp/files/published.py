"""The Gemma 4 models that are published: their sizes, their names on the Hub, what they need.

Names and numbers only: looks at no disk, no network and no machine.
"""

from __future__ import annotations

import re
from typing import NamedTuple

CONTEXT = 8192  # tokens of context that `Size.needs` leaves room for

# "e4b", "E4B-it", "gemma-4-e4b", "gemma4:e4b", "26B", "26b_a4b"; not a Hub name, which has a slash.
_SPELLED = re.compile(
    r"(?:gemma[-_ ]?4[-_: ]?)?(e2b|e4b|12b|26b(?:[-_ ]?a4b)?|31b)(?:[-_ ]?it)?", re.IGNORECASE
)


class Size(NamedTuple):
    """One size of Gemma 4, and its drafter.

    hidden_size: of the target, which differs for every size. num_layers: of the target. weights:
    bytes of the target's text weights, by bits. drafter_bytes: unquantized. room: bytes for CONTEXT
    tokens at batch 1. The bytes are computed from the published shapes; a test compares them with
    `memory`.
    """

    kind: str
    hidden_size: int
    num_layers: int
    weights: dict[int, int]
    drafter_bytes: int
    room: int

    @property
    def is_mixture(self) -> bool:
        """True if it has experts."""
        return self.kind.endswith("-A4B")

    @property
    def short(self) -> str:
        """The name to type, such as "e4b"."""
        return self.kind.casefold().removesuffix("-a4b")

    @property
    def original(self) -> str:
        """The Hub name of Google's checkpoint, in bfloat16."""
        return f"google/gemma-4-{self.kind}-it"

    def quantized(self, bits: int) -> str:
        """Return the Hub name of a quantized checkpoint, in 8 or 4 bits."""
        kind = self.kind if self.kind == "12B" else self.kind.casefold()
        return f"mlx-community/gemma-4-{kind}-it-{bits}bit"

    def drafter(self, *, qat: bool = False) -> str:
        """Return the Hub name of Google's drafter. qat: the one for QAT targets."""
        return f"{self.original}{'-qat-q4_0-unquantized' if qat else ''}-assistant"

    def needs(self, bits: int) -> int:
        """Return the bytes to run it with its drafter and CONTEXT tokens."""
        whole = self.weights[16]
        return self.weights.get(bits, whole * bits // 16) + self.drafter_bytes + self.room


def _size(kind: str, hidden_size: int, num_layers: int, *megabytes: int) -> Size:
    bf16, int8, int4, drafter, room = (count * 10**6 for count in megabytes)
    return Size(kind, hidden_size, num_layers, {16: bf16, 8: int8, 4: int4}, drafter, room)


SIZES = (
    _size("E2B", 1536, 35, 9257, 4918, 3980, 157, 465),
    _size("E4B", 2560, 42, 14926, 7930, 5944, 158, 688),
    _size("12B", 3840, 48, 23815, 12652, 7202, 846, 1274),
    _size("26B-A4B", 2816, 30, 50466, 26811, 14569, 839, 950),
    _size("31B", 5376, 60, 61395, 32617, 17974, 939, 2599),
)
SHORT = tuple(size.short for size in SIZES)

# Best first. 31B is left out: it reads eight times the weights of 26B-A4B for every token.
_ADVISED = [(size, bits) for size in (SIZES[3], SIZES[2], SIZES[1], SIZES[0]) for bits in (8, 4)]


def size_of(name: str) -> Size | None:
    """Return the size that a person means by a short name such as "e4b" or "gemma4:e4b"."""
    match = _SPELLED.fullmatch(name.strip())
    return None if match is None else _named(match[1])


def size_within(name: str) -> Size | None:
    """Return the size that a repository's or a folder's name contains."""
    match = re.search(r"(?<![a-z\d])(e2b|e4b|12b|26b|31b)(?![a-z\d])", name, re.IGNORECASE)
    return None if match is None else _named(match[1])


def size_with(hidden_size: object) -> Size | None:
    """Return the size whose target has this hidden size."""
    return next((size for size in SIZES if size.hidden_size == hidden_size), None)


def best_fit(available: int) -> tuple[Size, int]:
    """Return the most capable size, and its bits, that run in these bytes; else the smallest."""
    fitting = (one for one in _ADVISED if one[0].needs(one[1]) <= available)
    return next(fitting, _ADVISED[-1])


def _named(text: str) -> Size:
    return next(size for size in SIZES if size.short == text[:3].casefold())
