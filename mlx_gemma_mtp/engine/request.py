"""One request: its prompt and settings, what was generated, and how it ended.

Lives on the host. Knows nothing of the device or of other requests.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from mlx_gemma_mtp.decode.params import MAX_DRAFT_TOKENS, SamplingParams
from mlx_gemma_mtp.engine.results import Chunk, Completion, FinishReason, Generation, Stats
from mlx_gemma_mtp.engine.session import Session
from mlx_gemma_mtp.errors import as_failure
from mlx_gemma_mtp.text.channels import ChannelParser, Kind, Piece, joined
from mlx_gemma_mtp.text.tokenizer import TextStream


class Request:
    """A request under way. `on_chunk` is called with every piece, on the engine's thread.

    What fails on the host's side of it, a callback included, ends this request alone.
    """

    def __init__(
        self,
        ids: Sequence[int],
        params: SamplingParams,
        *,
        max_tokens: int,
        num_draft_tokens: int | None,
        eos: frozenset[int],
        stream: TextStream | None,
        on_chunk: Callable[[Chunk], None] | None = None,
        session: Session | None = None,
    ) -> None:
        self.ids = list(ids)
        self.params = params
        self.session = session
        self.max_tokens = max_tokens
        self.pinned_drafts = num_draft_tokens  # None: as many as the engine chooses
        self.tokens: list[int] = []
        self.stats = Stats(prompt_tokens=len(self.ids))
        self.generation = Generation()
        self._finish_reason: FinishReason | None = None
        self._eos = eos
        self._router = ChannelParser(stream)
        self._on_chunk = on_chunk
        self._pieces: list[Piece] = []
        self._queued = 0.0
        self._begun = 0.0
        self._last_take = 0.0

    @property
    def ended(self) -> bool:
        """Finished, cancelled or failed?"""
        return self.generation.done()

    @property
    def most_drafts(self) -> int:
        """The most drafts a round may verify for this request."""
        return MAX_DRAFT_TOKENS if self.pinned_drafts is None else self.pinned_drafts

    def queue(self) -> None:
        """It waits from now on."""
        self._queued = time.perf_counter()

    def begin(self) -> None:
        """Its prefill starts now."""
        self._begun = time.perf_counter()
        self.stats.queue_seconds = self._begun - self._queued

    def take(self, tokens: Sequence[int], num_drafted: int | None = None) -> None:
        """Take the tokens a round gave, up to the one that ends the request.

        num_drafted: how many drafts the round verified; None for the token of the prefill. Drafts
        that came true past the end count as drafted, not as accepted.
        """
        try:
            self._take(tokens, num_drafted)
        except BaseException as error:  # noqa: BLE001 - the submitter gets it
            self.fail(error)

    def cancel(self) -> None:
        """End the request here, keeping what was said."""
        self._finish_reason = "cancelled"
        try:
            self._emit([])
        except BaseException as error:  # noqa: BLE001 - the submitter gets it
            self.fail(error)

    def fail(self, error: BaseException) -> None:
        """End the request with this error, as `errors.as_failure` words it."""
        self.generation.set_exception(as_failure(error))

    def _take(self, tokens: Sequence[int], num_drafted: int | None) -> None:
        now = time.perf_counter()
        if self.tokens:
            pause = now - self._last_take
            self.stats.longest_pause_seconds = max(self.stats.longest_pause_seconds, pause)
        else:
            self.stats.first_token_seconds = now - self._begun
        self._last_take = now
        taken: list[Piece] = []
        for length, token in enumerate(tokens, len(self.tokens) + 1):
            if token in self._eos:
                self._finish_reason = "stop"
                taken.append(self._router.end(token))
            else:
                taken += self._router.add(token)
                if self._router.stopped:
                    self._finish_reason = "stop"
                elif length >= self.max_tokens:
                    self._finish_reason = "length"
            if self._finish_reason:
                break
        num_taken = sum(len(piece.tokens) for piece in taken)
        self.tokens += tokens[:num_taken]
        if num_drafted is not None:
            self.stats.count_round(num_drafted, min(len(tokens) - 1, num_taken))
        self._emit(taken)

    def _emit(self, taken: list[Piece]) -> None:
        reason, stats = self._finish_reason, self.stats
        if reason:
            taken = [*taken, self._router.finish()]
        pieces = joined(taken) or [Piece(self._router.kind, "", [])]
        for piece in pieces:
            stats.thought_tokens += len(piece.tokens) if piece.kind == "thought" else 0
            stats.tool_call_tokens += len(piece.tokens) if piece.kind == "tool_call" else 0
        stats.generated_tokens = len(self.tokens)
        if self.tokens:  # else the clock never started: it was cancelled before the first
            stats.decode_seconds = time.perf_counter() - self._begun - stats.first_token_seconds
        self._pieces += pieces
        if self._on_chunk:
            for kind, text, tokens, call in pieces[:-1]:
                self._on_chunk(Chunk(text, tokens, kind=kind, tool_call=call))
            kind, text, tokens, call = pieces[-1]
            self._on_chunk(Chunk(text, tokens, reason, stats if reason else None, kind, call))
        if reason:
            self.generation.set_result(self._completion(reason))

    def _completion(self, reason: FinishReason) -> Completion:
        def said(kind: Kind) -> str:
            return "".join(piece.text for piece in self._pieces if piece.kind == kind)

        assert self.params.seed is not None
        kind = self._router.kind
        return Completion(
            said("answer"),
            self.tokens,
            reason,
            self.stats,
            self.params.seed,
            thought=said("thought"),
            tool_calls=tuple(piece.call for piece in self._pieces if piece.call),
            unclosed=None if kind == "answer" else kind,
        )
