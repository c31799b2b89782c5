"""Divisions of rounds that no controller would choose: drawn at random, or given beforehand."""

from collections.abc import Iterator, Sequence

import numpy as np

from mlx_gemma_mtp.decode.depth import Depth
from mlx_gemma_mtp.decode.division import Chances, Division, Shape


def divided(
    rows: Sequence[Chances | None], drafts: Sequence[int], *, spare: int = 0, padding: int = 0
) -> Division:
    """A round with these drafts. spare: positions of each row without a token. padding: tokens."""
    each = [-1 if row is None else count for row, count in zip(rows, drafts, strict=True)]
    steps = [count for row, count in zip(rows, each, strict=True) if row and not row.copied]
    num_tokens = sum(each) + len(each)
    shape = Shape(
        len(each), max(steps, default=0), max(each) + 1 + spare, num_tokens, num_tokens + padding
    )
    return Division(tuple(each), shape)


def wanted(row: Chances | None, count: int) -> int:
    """The drafts of a row that should have `count` of them, if it may."""
    if row is None:
        return -1
    return min(count if row.pinned is None else row.pinned, len(row.reached))


class AnyDepth(Depth):
    """Other drafts for each row in every round, up to `most`, and other padding."""

    def __init__(self, rng: np.random.Generator, most: int) -> None:
        super().__init__()
        self._rng, self._most = rng, most

    def choose(self, rows: Sequence[Chances | None]) -> Division:
        drafts = [wanted(row, int(self._rng.integers(self._most + 1))) for row in rows]
        spare = int(self._rng.integers(self._most - max(drafts) + 1))
        return divided(rows, drafts, spare=spare, padding=int(self._rng.integers(4)))


class GivenDepth(Depth):
    """The same number of drafts for all rows that may have it, round by round."""

    def __init__(self, counts: Iterator[int]) -> None:
        super().__init__()
        self._counts = counts

    def choose(self, rows: Sequence[Chances | None]) -> Division:
        count = next(self._counts)
        return divided(rows, [wanted(row, count) for row in rows])
