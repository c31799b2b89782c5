"""A request that is decoding: what it may expect of drafts, and what became of them.

A row has three sources of drafts: the drafter, copies of its own text, and what its constraint
forces. The last two need no drafter, and both are called copies here. Knows nothing of the
device or of other rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import NamedTuple

from mlx_gemma_mtp.decode.acceptance import Acceptance
from mlx_gemma_mtp.decode.copies import Repeats, Source
from mlx_gemma_mtp.decode.depth import MOST
from mlx_gemma_mtp.decode.division import Chances
from mlx_gemma_mtp.engine.request import Request
from mlx_gemma_mtp.engine.results import TokenLogprobs


class Stretch(NamedTuple):
    """What a text is expected to say, from its last known token on, which stands at `start`."""

    start: int
    tokens: list[int]


class Row:
    """A request that is decoding, and its place in the batch.

    drafted: the acceptance of the drafter's drafts; None without a drafter. copied: that of copies;
    None if it takes none. length: the most positions it may have committed.
    """

    def __init__(
        self, request: Request, drafted: Acceptance | None, copied: Acceptance | None
    ) -> None:
        self.request = request
        self.length = len(request.ids)
        self._drafted = drafted
        self._copied = copied
        self._source: Source | None = None
        if copied is not None:
            self._source = Repeats([*request.ids, *request.tokens])

    def chances(self, most: int, coming: int) -> Chances:
        """What the next round may give it.

        most: drafts of a round. coming: how many tokens the round in flight should give; 0 if none
        is in flight.
        """
        request, pinned = self.request, self.request.num_draft_tokens
        if pinned is None:
            left = request.max_tokens - len(request.tokens) - min(coming, 1)
            most = max(0, min(most, left - 1))
        else:
            pinned = most = min(most, pinned)
        copied, num_forced = self._copies_reached(most, coming)
        if pinned is not None and self._drafted is not None and len(copied) == num_forced:
            copied = []  # forced tokens replace drafts, and the round is laid out as the last one
        most = most if pinned is not None else min(most, MOST)
        drafted = [] if self._drafted is None else self._drafted.reached[:most]
        if copied and sum(copied) >= sum(drafted):
            return Chances(copied, pinned, copied=True)
        return Chances(drafted, pinned)

    def forced(self, count: int) -> list[int]:
        """Return the next tokens, up to `count`, as far as a constraint allows nothing else."""
        constraint, ended = self.request.constraint, self.request.ended
        return [] if constraint is None or ended else constraint.forced(count)

    def stretch(self, count: int) -> Stretch | None:
        """Return up to `count` tokens of a copy, the last known one first; None without a copy."""
        expected, _ = self._expected(count - 1)
        if not expected:
            return None
        return Stretch(self._last_position, [self.request.tokens[-1], *expected])

    def take(
        self,
        tokens: Sequence[int],
        num_drafts: int,
        num_steps: int,
        stretch: Stretch | None,
        logprobs: Sequence[TokenLogprobs] | None = None,
    ) -> None:
        """Take the tokens of a round that verified num_drafts drafts of this row.

        num_steps: how many of them are the drafter's, unless the row was where `stretch` expected
        it to be: then all were copied from there.
        """
        copied = stretch is not None and self._is_on(stretch)
        if self._drafted is not None and not copied:
            self._drafted.seen(min(num_drafts, num_steps), min(len(tokens) - 1, num_steps))
        if self._copied is not None and self._source is not None:
            if expected := self._source.expected(len(tokens)):
                pairs = zip(expected, tokens, strict=True)
                right = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
                self._copied.seen(len(tokens), right)
            self._source.extend(tokens)
        self.request.take(tokens, num_drafts, copied=copied, logprobs=logprobs)

    @property
    def _last_position(self) -> int:
        return len(self.request.ids) + len(self.request.tokens) - 1

    def _expected(self, count: int) -> tuple[list[int], int]:
        """Return up to `count` tokens of a copy, and how many of them are forced.

        Nothing is in flight of a row whose constraint forces tokens.
        """
        if not count:
            return [], 0
        forced = self.forced(count)
        copied = [] if self._source is None else self._source.expected(count)
        return copied if copied[: len(forced)] == forced else forced, len(forced)

    def _copies_reached(self, most: int, coming: int) -> tuple[list[float], int]:
        """The chances of up to `most` copied drafts, and how many of these are forced.

        Those in flight must be right as well, all of them.
        """
        expected, num_forced = self._expected(most)
        certain = [1.0] * num_forced
        if self._copied is None or len(expected) == num_forced:
            return certain, num_forced
        reached = self._copied.reached
        there = reached[min(coming, len(reached)) - 1] if coming else 1.0
        return (certain + [there * one for one in reached])[:most], num_forced

    def _is_on(self, stretch: Stretch) -> bool:
        """True if the text has been as expected so far, as far as the device looks."""
        at = self._last_position - stretch.start
        return at < len(stretch.tokens) and stretch.tokens[at] == self.request.tokens[-1]
