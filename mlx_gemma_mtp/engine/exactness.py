"""When a completion has the same bits whatever else the engine does: the rule, in one place.

It is exact if every pass of it was of the class in use: rounds as `Depth` divides them (`round`),
and prompts as follows (`Exactness.of`).

- exact=True: each prompt is read by itself, in passes of the sizes that agree, the last one padded.
  If fewer than two agree, all passes but the last have `Limits.decoding_chunk` tokens, so that they
  follow from the prompt alone. There are no more rows than the class holds. Without a class
  requests decode one by one and without drafts, and those passes are all alike.
- "auto": nothing that takes longer than some padding. If all sizes agree, a prompt that is read by
  itself is padded. If not, it is exact if all its passes but the last happen to have
  `Limits.decoding_chunk` tokens: as a rule if it has at most that many. Prompts that wait are read
  together, and are not exact.
- False: nothing is done for it.

A turn of a session is judged by its own passes, not by those that its session remembers.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from mlx_gemma_mtp.decode.depth import Depth
from mlx_gemma_mtp.decode.division import Division, Exact
from mlx_gemma_mtp.memory import Limits

NO_DRAFTS = (
    "no passes with drafts were found to agree on this machine: exact=True decodes without drafts"
)
NO_CLASS = f"{NO_DRAFTS}, one request at a time"


class Exactness(NamedTuple):
    """How an engine has to work for exact completions.

    limits: with the sizes that passes over prompts may have. max_batch: the most rows. sizes: to
    which a pass over one prompt is padded; empty: to none. alone: no pass has several prompts.
    prompts: passes over one prompt can be exact; fixed: if they follow from the prompt. least:
    tokens in any product over last tokens. lone: a round of one token is exact, because there are
    no others. note: for people, if not empty.
    """

    limits: Limits
    max_batch: int
    sizes: tuple[int, ...] = ()
    alone: bool = False
    prompts: bool = False
    fixed: bool = False
    least: int = 1
    lone: bool = False
    note: str = ""

    @classmethod
    def of(cls, exact: Exact, depth: Depth, limits: Limits, max_batch: int) -> Exactness:
        """Return the rule for this engine. depth: with its table and class."""
        found, insists = depth.pass_class, exact is True
        if exact is False or (found is None and not insists):
            return cls(limits, max_batch)
        agreeing = () if depth.table is None else depth.table.chunks
        sizes = tuple(size for size in limits.chunks if size in agreeing)
        fixed = found is None or len(sizes) < (2 if insists else len(limits.chunks))
        rule = cls(limits, max_batch, () if fixed else sizes, prompts=True, fixed=fixed)
        if insists:
            chunks = rule.sizes or (limits.decoding_chunk,)
            rule = rule._replace(limits=replace(limits, chunks=chunks), alone=True)
        if found is None:
            return rule._replace(max_batch=1, lone=True, note=NO_CLASS)
        rule = rule._replace(least=found.least_width)
        if not insists:
            return rule
        note = NO_DRAFTS if found.most_positions == 1 else ""
        return rule._replace(max_batch=min(max_batch, found.most_width), note=note)

    def round(self, division: Division) -> bool:
        """Return whether a round gives its tokens the bits of the class."""
        return division.exact or (self.lone and division.shape.width == 1)

    def follows(self, num_tokens: int, left: int) -> bool:
        """Return whether a pass over this many tokens of one prompt, of those left, is exact."""
        return not self.fixed or num_tokens == min(left, self.limits.decoding_chunk)

    def continues(self, start: int) -> bool:
        """Return whether passes from this position on are divided as from the first."""
        return not self.fixed or start % self.limits.decoding_chunk == 0

    @property
    def most_padding(self) -> int:
        """The most tokens of padding in a pass over one prompt."""
        return self.sizes[0] - 1 if self.sizes else 0

    def padded(self, num_tokens: int) -> int:
        """Return how many tokens the next pass computes if one prompt has num_tokens for it.

        Fewer than num_tokens if it would need too much padding: then another pass follows.
        """
        fitting = min((size for size in self.sizes if size >= num_tokens), default=num_tokens)
        if fitting - num_tokens <= self.most_padding:
            return fitting
        return max(size for size in self.sizes if size < num_tokens)
