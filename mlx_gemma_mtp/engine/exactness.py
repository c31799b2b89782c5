"""When a completion has the same bits whatever else the engine does: the rule, in one place.

It is exact if every pass of it was of the class in use: rounds as `Depth` divides them (`round`),
and prompts as follows (`Exactness.of`).

- exact=True: each prompt is read by itself, in passes of the sizes that agree, the last one padded.
  If fewer than two agree, passes have `Limits.decoding_chunk` tokens, and follow from the prompt
  alone. There are no more rows than the class holds. Without a class requests decode one by one and
  without drafts, and those passes are all alike.
- "auto": the same if all sizes agree, because then it costs nothing but the padding. But prompts
  that wait are read together, and their completions are not exact.
- False: nothing is done for it.

A turn of a session is judged by its own passes, not by those that its session remembers.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from mlx_gemma_mtp.decode.depth import Depth
from mlx_gemma_mtp.decode.division import Division, Exact
from mlx_gemma_mtp.memory import Limits

NO_DRAFTS = "no passes with drafts agree on this machine: exact=True decodes without drafts"
NO_CLASS = f"{NO_DRAFTS}, one request at a time"


class Exactness(NamedTuple):
    """How an engine has to work for exact completions.

    limits: with the sizes that passes over prompts may have. max_batch: the most rows. sizes: to
    which a pass over one prompt is padded; empty: to none. alone: no pass has several prompts.
    prompts: passes over one prompt are exact. least: tokens in any product over last tokens. lone:
    a round of one token is exact, because there are no others. note: for people, if not empty.
    """

    limits: Limits
    max_batch: int
    sizes: tuple[int, ...] = ()
    alone: bool = False
    prompts: bool = False
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
        fixed = replace(limits, chunks=(limits.decoding_chunk,))
        if found is None:
            return cls(fixed, 1, alone=True, prompts=True, lone=True, note=NO_CLASS)
        least = found.least_width
        if not insists:
            agree = sizes == limits.chunks
            return cls(limits, max_batch, sizes if agree else (), prompts=agree, least=least)
        max_batch = min(max_batch, found.most_width)
        note = NO_DRAFTS if found.most_positions == 1 else ""
        if len(sizes) < 2:
            return cls(fixed, max_batch, (), True, True, least, note=note)
        return cls(replace(limits, chunks=sizes), max_batch, sizes, True, True, least, note=note)

    def round(self, division: Division) -> bool:
        """Return whether a round gives its tokens the bits of the class."""
        return division.exact or (self.lone and division.shape.width == 1)

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
