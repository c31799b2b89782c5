"""Text that a template can cut and join, and in which no special token can be spelled out.

Knows nothing of templates, nor of the ids of tokens.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from mlx_gemma_mtp.errors import UsageError

NOTHING = r"(?!)"  # a pattern that never matches
FIRST_DISGUISE = 0xD800  # and up: lone surrogates, which no UTF-8 text contains


class Disguise:
    """Replaces every character that special tokens start with by one that no text contains.

    special: matches any special token.
    """

    def __init__(self, special: Sequence[str]) -> None:
        firsts = sorted({ord(content[0]) for content in special})
        self._on = {first: FIRST_DISGUISE + at for at, first in enumerate(firsts)}
        self._off = {disguise: first for first, disguise in self._on.items()}
        self.special = re.compile("|".join(map(re.escape, special)) or NOTHING)
        self._disguised = re.compile("|".join(map(chr, self._off)) or NOTHING)

    def put_on(self, value: Any) -> Any:
        """Return a JSON value with all its strings in disguise. Raises UsageError for any other.

        One character stands for one, so that templates can cut and trim the strings.
        """
        if isinstance(value, str):
            check_writable(value)
            return value.translate(self._on)
        if isinstance(value, Mapping):
            return {self.put_on(key): self.put_on(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.put_on(item) for item in value]
        if value is None or isinstance(value, (bool, int, float)):
            return value
        raise UsageError(  # a template could call its methods
            f"messages and tools must be plain JSON values; convert the {type(value).__name__}"
        )

    def parts(self, written: str) -> Iterator[str]:
        """Yield a text without the disguise, in parts to be encoded one by one.

        It is cut after the first character of each string that only looks like a special token.
        """
        text = written.translate(self._off)
        starts = (found.start() for found in self._disguised.finditer(written))
        cuts = [at + 1 for at in starts if self.special.match(text, at)]
        for start, end in pairwise([0, *cuts, len(text)]):
            yield text[start:end]


def check_writable(text: str) -> None:
    """Raise UsageError for half a character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UsageError("the prompt is not valid UTF-8 text") from None
