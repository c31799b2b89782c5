"""The rows that decode together: their cache, where each stands, and the rounds they play.

Knows requests and the device; knows nothing of threads, prompts as text, or who is waiting.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, cast

import mlx.core as mx

from mlx_gemma_mtp.cache import KVCache, capacity_for
from mlx_gemma_mtp.request import Request
from mlx_gemma_mtp.sampling import MAX_DRAFT_TOKENS, RowSettings, row_settings
from mlx_gemma_mtp.speculate import Head, PlayRound, Round, first_token, prefill
from mlx_gemma_mtp.target import Target

PREFILL_CHUNK = 512  # positions of a prompt per forward
SIZES = (1, 2, 4, 8)


class Flight(NamedTuple):
    """A round that was dispatched and not yet read."""

    round: Round
    rows: list[Request | None]
    num_draft_tokens: int


class Batch:
    """Up to `size` requests decoding side by side."""

    def __init__(
        self, target: Target, play_round: PlayRound, size: int, suppressed: list[int]
    ) -> None:
        config = target.config
        self._target = target
        self._play_round = play_round
        self._suppress: mx.array | None = None
        if suppressed:
            self._suppress = mx.zeros((config.vocab_size,))
            self._suppress[mx.array(suppressed)] = -mx.inf
        self._rows: list[Request | None] = [None] * size
        self._lengths = [0] * size  # most positions each row may have committed
        self._cache = KVCache.empty(
            config, size, capacity=capacity_for(1), most=MAX_DRAFT_TOKENS + 1, dtype=target.dtype
        )
        self._head = Head(
            mx.zeros((size,), mx.int32), mx.zeros((size, 1, config.hidden_size), target.dtype)
        )
        self._settings: RowSettings
        self._limit: mx.array
        self._refresh()

    @property
    def active(self) -> list[Request]:
        """The requests that are not finished."""
        return [row for row in self._rows if row is not None and row.finish_reason is None]

    def join(self, row: int, request: Request, cancelled: Callable[[], bool]) -> None:
        """Prefill a request and give it the row; its first token is taken here."""
        request.begin()
        one = KVCache.empty(
            self._target.config,
            1,
            capacity=capacity_for(len(request.ids)),
            most=min(PREFILL_CHUNK, len(request.ids)),
            dtype=self._target.dtype,
        )
        for start in range(0, len(request.ids), PREFILL_CHUNK):
            if cancelled():
                request.cancel()
                return
            chunk = mx.array([request.ids[start : start + PREFILL_CHUNK]])
            hidden = prefill(self._target, chunk, one)
            mx.eval(hidden, one.keys, one.values)  # one chunk's activations at a time
        head = first_token(
            self._target, hidden, one, row_settings([request.params], self._suppress)
        )
        mx.eval(head)
        request.take(cast(list[int], head.newest.tolist()))
        self._cache.take_over(row, one, len(request.ids))
        self._cache.offset = _put(self._cache.offset, row, one.offset)
        self._head = Head(
            _put(self._head.newest, row, head.newest), _put(self._head.hidden, row, head.hidden)
        )
        self._rows[row] = request
        self._lengths[row] = len(request.ids)
        self._refresh()

    def decode(self, cancelled: Callable[[], bool]) -> None:
        """Play rounds until every request has ended.

        A round is dispatched before the one before it is read, so the device never waits for the
        host; what a row gets after its end is dropped.
        """
        waiting: Flight | None = None
        while True:
            if cancelled():
                for request in self.active:
                    request.cancel()
                return
            in_flight = 0 if waiting is None else 1
            going = any(len(r.tokens) + in_flight < r.max_tokens for r in self.active)
            following = self._dispatch() if going else None
            if waiting is not None:
                self._deliver(waiting)
            if following is None:
                return
            waiting = following

    def _dispatch(self) -> Flight:
        drafts = max(request.num_draft_tokens for request in self.active)
        for row, request in enumerate(self._rows):
            if request is not None and request.finish_reason is None:
                self._lengths[row] += drafts + 1
        self._cache.grow(capacity_for(max(self._lengths)))
        played = self._play_round(self._cache, self._head, self._settings, self._limit, drafts)
        mx.async_eval(played)
        self._head = played.head
        return Flight(played, list(self._rows), drafts)

    def _deliver(self, flight: Flight) -> None:
        tokens = cast(list[list[int]], flight.round.tokens.tolist())
        accepted = cast(list[int], flight.round.accepted.tolist())
        before = self.active
        for row, request in enumerate(flight.rows):
            if request is None or request.finish_reason is not None:
                continue
            drafted = min(request.num_draft_tokens, flight.num_draft_tokens)
            self._lengths[row] -= flight.num_draft_tokens - accepted[row]
            request.take(tokens[row][: accepted[row] + 1], drafted)
        if self.active != before:
            self._refresh()

    def _refresh(self) -> None:
        """Lay out the settings of the rows anew; a finished row stays where it is."""
        rows = [row if row and row.finish_reason is None else None for row in self._rows]
        params = [row.params if row else None for row in rows]
        self._settings = row_settings(params, self._suppress)
        self._limit = mx.array([row.num_draft_tokens if row else -1 for row in rows], mx.int32)


def _put(array: mx.array, row: int, value: mx.array) -> mx.array:
    """array [B, ...] with this row replaced by value [1, ...]; the old array stays as it was."""
    return mx.concatenate([array[:row], value.astype(array.dtype), array[row + 1 :]])
