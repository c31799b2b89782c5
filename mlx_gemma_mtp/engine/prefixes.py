"""What is kept of prompts and answers, within a budget, so that it is prefilled once.

Full-attention layers hold every token once, whoever shares it. Sliding ones hold a window before
the ends at which another prompt may continue. Knows nothing of text, nor of who reads what when.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import mlx.core as mx

from mlx_gemma_mtp.engine.budget import Budget
from mlx_gemma_mtp.engine.exactness import Exactness
from mlx_gemma_mtp.engine.prefix import Prefix, common
from mlx_gemma_mtp.errors import is_lack_of_memory, one_line
from mlx_gemma_mtp.model.cache import KVCache
from mlx_gemma_mtp.model.config import TargetConfig

log = logging.getLogger("mlx_gemma_mtp")


class Prefixes:
    """The prefixes that an engine keeps. The worker calls everything but the counts.

    A prompt is kept up to those of its ends (`_ends`) from which another one is likely to continue.
    """

    def __init__(
        self,
        config: TargetConfig,
        exactness: Exactness,
        budget: Budget,
        most: int = 0,
        turn: int | None = None,
    ) -> None:
        """most: bytes; 0 keeps nothing. turn: the token with which every turn starts."""
        self.least = exactness.limits.chunks[0]  # tokens that are worth a pass of their own
        self.nbytes = 0
        self._num_hits = self._num_tokens = 0
        self._window = config.sliding_window
        self._exactness = exactness
        self._budget = budget
        self._most = self._allowed = most
        self._turn = turn
        self._uses = 0
        self._root = Prefix(None, [])

    def __bool__(self) -> bool:
        """True if it keeps anything at all."""
        return self._most > 0

    @property
    def counts(self) -> tuple[int, int, int]:
        """Bytes, and since the start the requests with a hit and the tokens of all hits."""
        return self.nbytes, self._num_hits, self._num_tokens

    @property
    def spare(self) -> int:
        """Slots that the sliding layers of a prompt's cache must have more than a window."""
        return self._exactness.limits.opening if self else 0

    def clear(self) -> bool:
        """Drop everything. Returns whether there was anything."""
        held, self.nbytes = self.nbytes > 0, 0
        self._root = Prefix(None, [])
        return held

    def give_way(self, context: int, batch: int) -> None:
        """Keep no more than fits next to this many rows of up to `context` positions."""
        left = self._budget.left(context, batch) if self else None
        self._allowed = self._most if left is None else max(0, min(self._most, left))
        self._make_room(0)

    def find(self, ids: Sequence[int]) -> Prefix | None:
        """Return the longest prefix from which this prompt can continue, if any.

        The prompt's last token is not in it: its logits are needed.
        """
        found: Prefix | None = self._root.follow(ids[:-1])[0]
        while found is not None and found.window is None:
            found = found.parent
        if found is not None:
            self._use(found)
        return found

    def cuts(self, ids: Sequence[int], start: int) -> list[int]:
        """Return where to keep a prompt of which the first `start` tokens are there, in order.

        At the ends that are worth it, and where it parts from the prompts before it: so a few
        tokens that change in the middle of long instructions cost the rest of them only twice.
        """
        if not self:
            return []
        known, matched = self._root.follow(ids)
        *ends, last = sorted(self._rounded(end) for end in self._ends(ids))
        found, before = list[int](), start
        for end in sorted({*ends, self._rounded(known.end + matched)}):
            if end < last and end - before >= self.least:
                found.append(end)
                before = end
        return [*found, last] if last > start and last >= self.least else found

    def shared(self, ids: Sequence[int], other: Sequence[int]) -> int:
        """Return how many tokens one of these prompts could continue from if it had the other."""
        return self._rounded(min(common(ids, other), len(ids) - 1)) if self else 0

    def lend(self, prefix: Prefix, cache: KVCache, num_requests: int) -> None:
        """Fill all rows of an empty cache with a prefix, for this many requests."""
        each = zip(*(part.full for part in prefix.path), strict=True)
        cache.put("full_attention", [mx.concatenate([*one], axis=2) for one in each], 0)
        assert prefix.window is not None
        cache.put("sliding_attention", prefix.window, max(0, prefix.end - self._window))
        cache.offset = mx.full(cache.offset.shape, prefix.end, mx.int32)
        self._use(prefix)
        self._num_hits += num_requests
        self._num_tokens += num_requests * prefix.end

    def keep(
        self, cache: KVCache, row: int, ids: Sequence[int], length: int, prompt: int, *, exact: bool
    ) -> None:
        """Keep what a row of a cache holds of the first `length` of these tokens.

        The row's sliding layers must hold the window before there. prompt: how many tokens are the
        prompt's. exact: all passes over the tokens were. If memory runs out, everything is dropped.
        """
        exactness = self._exactness
        if length > prompt and exactness.fixed:  # a round's bits may differ from those of a prefill
            exact = False
            if exactness.alone:
                return
        if not self or length < self.least:
            return
        try:
            self._keep(cache, row, ids[:length], exact=exact)
        except (RuntimeError, MemoryError) as error:
            if not is_lack_of_memory(error):
                raise
            log.info("dropped all prefixes: %s", one_line(error))
            self.clear()
        else:
            self._thin(ids[:length], [*self._ends(ids[:prompt]), length])

    def _keep(self, cache: KVCache, row: int, ids: Sequence[int], *, exact: bool) -> None:
        length, (known, matched) = len(ids), self._root.follow(ids)
        self._use(known.children[ids[known.end]] if matched else known)
        if known.end == length and known.window is not None:
            return
        start = max(0, length - self._window)
        parts = cache.bytes_of("full_attention"), cache.bytes_of("sliding_attention")
        needed = parts[0] * (length - known.end - matched) + parts[1] * (length - start)
        if not self._make_room(needed):
            return
        if matched:
            known = known.children[ids[known.end]].split(matched)
        if known.end < length:
            full = cache.taken("full_attention", row, known.end, length)
            known = Prefix(known, ids[known.end :], full)
            known.used = self._uses
        known.window = cache.taken("sliding_attention", row, start, length)
        known.exact &= exact
        self._count()

    def _ends(self, ids: Sequence[int]) -> list[int]:
        """Return the ends of a prompt from which another one is likely to continue.

        - Where the second turn starts. Before it are the instructions and tools, or a first
          question: what conversations have in common.
        - Where the last message starts: it may be asked again in other words.
        - Where the model's turn starts. Templates leave the thoughts of earlier turns out, so the
          next prompt often differs from there on.
        - The end of the prompt: within a turn, the results of tools are added to it. It comes only
          if the model's turn did not just start.

        The end of a finished request is kept as well: the next turn continues there if the template
        shows the answer as it was generated.
        """
        turns, end = [at for at, token in enumerate(ids) if token == self._turn], len(ids) - 1
        if turns and len(ids) - turns[-1] <= self._exactness.limits.opening:
            end = turns[-1]
        return [*turns[1:2], *turns[-2:], end]

    def _rounded(self, end: int) -> int:
        """Return an end that divides no pass if all passes must follow from the prompt alone."""
        rule = self._exactness
        return end - end % rule.limits.decoding_chunk if rule.fixed and rule.alone else end

    def _use(self, prefix: Prefix) -> None:
        self._uses += 1
        for part in prefix.path:
            part.used = self._uses

    def _thin(self, ids: Sequence[int], ends: Sequence[int]) -> None:
        """Drop the windows on the way to these ids, but for those where prompts part, and the last
        ones up to these ends: so a conversation keeps a few of them, however many turns it has.
        """
        path = self._root.follow(ids)[0].path
        known = [part.end for part in path if part.window is not None]
        kept = {max((at for at in known if at <= end), default=0) for end in ends}
        for part in path:
            if part.window is not None and part.end not in kept and len(part.children) == 1:
                part.window = None
        self._count()

    def _make_room(self, needed: int) -> bool:
        """Drop what was not used for longest until there is room. Returns False if there is not.

        Of a path, the last part goes first. What is used right now stays.
        """
        if needed > self._allowed:
            return False
        while self.nbytes + needed > self._allowed:
            ends = [part for part in self._root.after() if not part.children]
            oldest = min(ends, key=lambda part: part.used)
            if needed and oldest.used == self._uses:
                return False
            self._drop(oldest)
        return True

    def _drop(self, prefix: Prefix) -> None:
        """Drop a prefix without children, and those before it that lead nowhere then.

        What is used right now stays.
        """
        parent = prefix.parent
        while parent is not None:
            del parent.children[prefix.tokens[0]]
            if parent.children or parent.window is not None or parent.used == self._uses:
                break
            prefix, parent = parent, parent.parent
        self._count()

    def _count(self) -> None:
        self.nbytes = sum(part.nbytes for part in self._root.after())
