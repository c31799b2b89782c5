"""What an output must look like: its thought, its answer, its calls and its end.

A `decode.constraint.Constraint`. Goes by tokens. Knows nothing of schemas, and of grammars only
which tokens may follow.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np

from mlx_gemma_mtp.decode.constraint import Mask
from mlx_gemma_mtp.text.channels import THOUGHT, ChannelParser
from mlx_gemma_mtp.text.grammar import Match, allow, clear, has, mask_of, num_words, without
from mlx_gemma_mtp.text.tokenizer import Text

NAMED = 1 << 20  # more tokens than a name has: it is complete, or another


class _State(NamedTuple):
    """Where an output is."""

    thinking: bool
    calling: bool  # in a call that no grammar follows
    may_think: bool  # a thought may be opened
    num_named: int = NAMED  # tokens of the channel's name
    num_thought: int = 0  # tokens of thoughts, without markers and the name "thought"


class Rule:
    """The rule for one output.

    With a match, an optional thought comes first, then text that matches, and the output ends where
    it may. Neither has a thought or a call in its middle, unless the grammar has. Without a match,
    the output is free, but for the budget of its thoughts.
    """

    def __init__(
        self,
        text: Text,
        prompt: Sequence[int],
        vocab_size: int,
        ends: Collection[int],
        *,
        match: Match | None = None,
        budget: int | None = None,
    ) -> None:
        """vocab_size: of the model. ends: tokens that end the output.

        budget: maximum tokens of thoughts, see `_State`; then they are closed, and no other opened.
        """
        markers, grammars = text.markers, text.grammars
        self._markers, self._size = markers, vocab_size
        self._match, self._budget = match, budget
        self._ends = frozenset(ends)
        self._name = text.encode(THOUGHT)
        self._added = 0  # tokens of the match
        self._all: Mask | None = None  # allowed wherever nothing else is said
        self._thought: Mask | None = None  # in a thought
        if match is not None:
            self._all = self._fit(grammars.all_tokens)
            plain = without(self._fit(grammars.plain_tokens), self._ends)
            inside = (markers.quote, markers.channel_end)
            self._thought = allow(plain, [one for one in inside if one is not None])
        kind, last = ChannelParser(text.stream(), prompt).kind, prompt[-1]
        closed = last == markers.channel_end
        if match is None:
            may_think = not closed or budget != 0
        else:  # where a turn starts, or a tool has answered
            opened = [markers.turn, *text.encode("model\n")]
            starts = list(prompt[-len(opened) :]) == opened or grammars.is_special(last)
            may_think = markers.channel is not None and starts and not closed
        named = 0 if last == markers.channel else NAMED
        calling = kind == "tool_call" and match is None
        self._state = _State(kind == "thought", calling, may_think, named)

    def masks(self, tokens: Sequence[int]) -> list[Mask | None]:
        """See `Constraint.masks`."""
        state, added, found = self._state, self._added, [self._mask()]
        try:
            for token in tokens:
                mask = found[-1]
                if token in self._ends or not (mask is None or has(mask, token)):
                    break
                self._add(token)
                found.append(self._mask())
        finally:
            if self._match is not None:
                self._match.remove(self._added - added)
            self._state, self._added = state, added
        return found

    def is_free(self, count: int) -> bool:
        """See `Constraint.is_free`."""
        if self._match is not None:
            return False
        state, budget = self._state, self._budget
        if budget is None:
            return True
        return (state.thinking or state.may_think) and state.num_thought + count <= budget

    def forced(self, count: int) -> list[int]:
        """See `Constraint.forced`."""
        state = self._state
        if self._match is None or state.thinking or state.may_think:
            return []
        return self._match.forced_tokens()[:count]

    def accept(self, tokens: Sequence[int]) -> None:
        """See `Constraint.accept`."""
        for token in tokens:
            if token not in self._ends:
                self._add(token)

    def _mask(self) -> Mask | None:
        """Return the tokens that are allowed next; None for all."""
        state, budget, channel = self._state, self._budget, self._markers.channel
        if state.thinking and not state.calling:
            if budget is None or state.num_thought < budget:
                return self._thought
            if state.num_named < len(self._name):
                return mask_of([self._name[state.num_named]], self._size)
            return mask_of([self._markers.channel_end or 0], self._size)
        if self._match is None:
            return None if state.may_think or channel is None else self._no_thought
        assert self._all is not None
        mask, may_end = self._match.next_tokens()
        mask = clear(self._fit(mask) & self._all, self._ends)
        also = [*(self._ends if may_end else ()), *([channel] if state.may_think else ())]
        return allow(mask, [one for one in also if one is not None])

    @cached_property
    def _no_thought(self) -> Mask:
        """What is allowed wherever nothing else is said, but for a thought."""
        everything, channel = mask_of(range(self._size), self._size), self._markers.channel
        return without(everything, [] if channel is None else [channel])

    def _add(self, token: int) -> None:
        markers, state = self._markers, self._state
        if token == markers.channel:
            state = state._replace(thinking=True, calling=False, num_named=0)
        elif token == markers.channel_end and (state.thinking or self._match is None):
            spent = self._budget is not None and state.num_thought >= self._budget
            free = self._match is None and not spent
            state = state._replace(thinking=False, calling=False, may_think=free)
        elif state.calling:
            state = state._replace(calling=token != markers.call_end)
        elif self._match is not None and not state.thinking:
            self._match.add(token)
            self._added += 1
            state = state._replace(may_think=False)
        elif token == markers.call:
            state = state._replace(calling=True)
        elif state.thinking:
            state = self._in_thought(token)
        self._state = state

    def _in_thought(self, token: int) -> _State:
        state = self._state
        if state.num_named < len(self._name) and token == self._name[state.num_named]:
            return state._replace(num_named=state.num_named + 1)
        return state._replace(num_named=NAMED, num_thought=state.num_thought + 1)

    def _fit(self, mask: Mask) -> Mask:
        """Return a mask of the tokenizer's tokens as one of the model's, which may have padding."""
        words = num_words(self._size)
        return (
            mask
            if len(mask) == words
            else np.resize(np.append(mask, np.zeros(words, np.uint32)), words)
        )
