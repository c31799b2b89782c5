"""Drafts that need no device: what a row's text is expected to say next, because it said it before.

Texts that quote, edit or repeat do. Plain Python: knows nothing of the device, of rows or of how
often it is right.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

LEAST = 8  # tokens that must have occurred before; fewer do by chance


class Source(Protocol):
    """Drafts for a row, from what its text is so far."""

    def extend(self, tokens: Sequence[int]) -> None:
        """Add the next tokens of the text."""

    def expected(self, count: int) -> list[int]:
        """Return the next `count` tokens that are expected; empty if none are."""


class Repeats:
    """Expects the text to continue as it did at an earlier place with the same last tokens.

    That place is the last one with LEAST of them, and it is kept while it is right. A text that
    repeats its end is expected to do so again.
    """

    def __init__(self, tokens: Sequence[int] = ()) -> None:
        self._tokens = list[int]()
        self._ends: dict[int, int] = {}  # where the last LEAST tokens with this hash end
        self._next: int | None = None  # the place of the token that is expected next
        self.extend(tokens)

    def extend(self, tokens: Sequence[int]) -> None:
        """Add the next tokens of the text, in time that depends on their number alone."""
        before = len(self._tokens)
        self._tokens += tokens
        # The last tokens are noted when others follow: they are not an earlier place of themselves.
        first = max(before - LEAST, 0)
        recent = self._tokens[first:-1]
        runs = zip(*(recent[at:] for at in range(LEAST)), strict=False)
        self._ends.update((hash(run), end) for end, run in enumerate(runs, first + LEAST))
        if self._next is not None:
            self._follow(self._next, self._tokens[before:])
        if self._next is None:
            self._next = self._find()

    def expected(self, count: int) -> list[int]:
        """Return the next `count` tokens that are expected; empty if none are."""
        if self._next is None:
            return []
        found = self._tokens[self._next : self._next + count]
        return (found * (-(-count // len(found))))[:count]

    def _follow(self, place: int, new: list[int]) -> None:
        """Move on with these tokens if they are those expected from this place on."""
        right = self._tokens[place : place + len(new)] == new
        self._next = place + len(new) if right else None

    def _find(self) -> int | None:
        last = self._tokens[-LEAST:]
        end = self._ends.get(hash(tuple(last)))
        return end if end is not None and self._tokens[end - LEAST : end] == last else None
