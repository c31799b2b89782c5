"""Tokens that prompts start with, as a tree, and the keys and values that are kept of them.

Knows nothing of budgets, of what is worth keeping, nor of who computes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import mlx.core as mx


class Prefix:
    """The tokens after those of its parent, and what the layers hold of them.

    end: how many tokens there are up to here. full: `KVCache.taken` of its own tokens. window: of
    the sliding window before its end; None if no prompt continues here. exact: all passes that gave
    these bits were, see `exactness`. used: when, in uses of the tree. The root has no tokens.
    """

    def __init__(
        self, parent: Prefix | None, tokens: Sequence[int], full: Sequence[mx.array] = ()
    ) -> None:
        self.parent = parent
        self.tokens = list(tokens)
        self.end: int = len(tokens) + (0 if parent is None else parent.end)
        self.full = list(full)
        self.window: list[mx.array] | None = None
        self.exact: bool = parent is None or parent.exact
        self.used = 0
        self.children: dict[int, Prefix] = {}  # by their first tokens, which differ
        if parent is not None:
            parent.children[tokens[0]] = self

    @property
    def path(self) -> list[Prefix]:
        """All prefixes up to this one, without the root."""
        found, part = list[Prefix](), self
        while part.parent is not None:
            found.append(part)
            part = part.parent
        return found[::-1]

    @property
    def nbytes(self) -> int:
        """Bytes of its own arrays."""
        return sum(array.nbytes for array in (*self.full, *(self.window or ())))

    def after(self) -> Iterator[Prefix]:
        """All prefixes that start with this one, in no order."""
        left = [*self.children.values()]
        while left:
            part = left.pop()
            left += part.children.values()
            yield part

    def follow(self, ids: Sequence[int]) -> tuple[Prefix, int]:
        """Return the longest prefix of these ids, and how many more they share with its child.

        For the root.
        """
        at = self
        while at.end < len(ids):
            child = at.children.get(ids[at.end])
            if child is None:
                break
            matched = common(child.tokens, ids[at.end : child.end])
            if matched < len(child.tokens):
                return at, matched
            at = child
        return at, 0

    def split(self, at: int) -> Prefix:
        """Divide it after this many of its own tokens; returns the first part."""
        assert self.parent is not None
        positions = mx.arange(len(self.tokens))
        # Copies: a view would keep the whole array when the other part is dropped.
        before, after = (
            [mx.take(array, some, axis=2) for array in self.full]
            for some in (positions[:at], positions[at:])
        )
        mx.eval(before, after)
        first = Prefix(self.parent, self.tokens[:at], before)
        first.exact, first.used = self.exact, self.used
        self.parent, self.tokens, self.full = first, self.tokens[at:], after
        first.children[self.tokens[0]] = self
        return first


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many tokens two sequences start with in common."""
    low, high = 0, min(len(one), len(other))
    if one[:high] == other[:high]:
        return high
    while low < high - 1:  # slices compare much quicker than tokens in a loop
        middle = (low + high) // 2
        same = one[low:middle] == other[low:middle]
        low, high = (middle, high) if same else (low, middle)
    return low
