"""One request: its prompt and settings, its output so far, and how it ended.

Lives on the host. Knows nothing of the device or of other requests.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import InitVar, dataclass, field
from inspect import isawaitable

from mlx_gemma_mtp.decode.constraint import Constraint
from mlx_gemma_mtp.decode.params import MAX_DRAFT_TOKENS, SamplingParams
from mlx_gemma_mtp.engine.generation import Generation
from mlx_gemma_mtp.engine.results import Chunk, Completion, FinishReason, Stats, TokenLogprobs
from mlx_gemma_mtp.engine.session import Session
from mlx_gemma_mtp.errors import ClosedError, RequestTimeoutError, UsageError, as_failure
from mlx_gemma_mtp.text.channels import ChannelParser, Kind, Piece, joined
from mlx_gemma_mtp.text.functions import Schema
from mlx_gemma_mtp.text.text_stream import TextStream

log = logging.getLogger("mlx_gemma_mtp")


@dataclass(eq=False)
class Request:
    """A request under way.

    num_draft_tokens: None for the number that the engine chooses. on_chunk: called with every piece
    of output, on the engine's thread; an error in it, or in any other work on the host, ends this
    request alone. session: claimed by `queue`, and released at its end. priority: higher ones are
    served first, negative ones in the background: see `PromptReader`. deadline: when it fails if it
    has not ended, by `time.perf_counter`. timeout: seconds from `queue` to its deadline; None to
    leave that as it is. generation: gets the output and the end. constraint: what
    its output may be; None for anything. schemas: of the tools, which the prompt names.
    """

    ids: list[int]
    params: SamplingParams
    max_tokens: int
    num_draft_tokens: int | None
    eos: frozenset[int]
    stream: InitVar[TextStream | None]
    on_chunk: Callable[[Chunk], object] | None = None
    session: Session | None = None
    constraint: Constraint | None = None
    schemas: Sequence[Schema] = ()
    priority: int = 0
    deadline: float | None = None
    timeout: float | None = None
    generation: Generation = field(default_factory=Generation)

    def __post_init__(self, stream: TextStream | None) -> None:
        self.queued = 0.0  # when, by `time.perf_counter`
        self.order = (0, 0)  # among the requests of an engine: the lowest first
        self.unread = len(self.ids)  # tokens of the prompt that are left to read, or an estimate
        self.waits: Callable[[], bool] | None = None  # True while another one reads its prefix
        self.leave: Callable[[], object] = lambda: None  # gives its place to another request
        self.tokens: list[int] = []
        self._logprobs: list[TokenLogprobs] = []  # of the tokens, if asked for
        self.exact = False  # all its passes so far were
        self.stats = Stats(prompt_tokens=len(self.ids))
        self.ended = False  # True if it is finished, cancelled or failed
        self._finish_reason: FinishReason | None = None
        may_call = self.params.tool_choice != "none"
        tools = [one["function"]["name"] for one in self.schemas if may_call]
        self._channels = ChannelParser(stream, self.ids, tools)
        self._started = self._last_take = 0.0

    @property
    def held(self) -> int:
        """Tokens of the prompt that need not be read, as far as known."""
        return len(self.ids) - self.unread

    @property
    def constrained(self) -> bool:
        """True if a constraint may limit the tokens of two rounds, one in flight and the next."""
        if self.constraint is None or self.ended:
            return False
        return not self.constraint.is_free(2 * (MAX_DRAFT_TOKENS + 1))

    def queue(self) -> None:
        """Claim its session, and start the clock of its wait. Raises UsageError."""
        if self.session:
            self.session._claim(self.generation)
        self.generation._prompt_tokens = len(self.ids)
        self.queued = time.perf_counter()
        if self.timeout is not None:
            self.deadline = self.queued + self.timeout

    def unqueue(self) -> None:
        """Release its session: it was refused a place."""
        if self.session:
            self.session._release(self.generation)

    def start(self, *, exact: bool) -> None:
        """Its prefill starts now. exact: its passes are, see `exactness`."""
        self.exact = exact
        self._started = time.perf_counter()
        self.stats.queue_seconds = self._started - self.queued

    def take(
        self,
        tokens: Sequence[int],
        num_drafted: int | None = None,
        *,
        copied: bool = False,
        logprobs: Sequence[TokenLogprobs] | None = None,
    ) -> None:
        """Add the tokens of a round, up to the one that ends the request.

        num_drafted: the drafts that the round verified; None for the token after the prompt.
        copied: they were copies. Accepted drafts past the end count as drafted, not as accepted.
        logprobs: of the tokens, if asked for.
        """
        self._logprobs += logprobs or []
        try:
            self._take(tokens, num_drafted, copied)
        except BaseException as error:  # noqa: BLE001 - the submitter gets it
            self.fail(error)

    def cancel(self) -> None:
        """End the request here and keep its output so far."""
        self._finish_reason = "cancelled"
        self.take([])

    def relay(self, chunk: Chunk) -> None:
        """Add a piece of output that another process made."""
        self.tokens += chunk.tokens
        try:
            self._tell(chunk)
        except BaseException as error:  # noqa: BLE001 - the submitter gets it
            self.fail(error)

    def finish(self, completion: Completion) -> None:
        """End the request with the output that another process made."""
        self._end()
        self.generation._finish(completion)

    def time_out(self) -> None:
        """End the request, whose deadline is over."""
        seconds = "" if self.timeout is None else f" of {self.timeout:g} seconds"
        self.fail(
            RequestTimeoutError(
                f"the request took longer than its timeout{seconds}: allow it more, or give it a "
                "higher priority"
            )
        )

    def fail(self, error: BaseException) -> None:
        """End the request with this error, in the words of `errors.as_failure`."""
        self._end()
        failure = as_failure(error)
        expected = isinstance(failure, (ClosedError, RequestTimeoutError))
        log.log(logging.INFO if expected else logging.WARNING, "%s", failure)
        self.generation._fail(failure)

    def _take(self, tokens: Sequence[int], num_drafted: int | None, copied: bool) -> None:
        now, stats = time.perf_counter(), self.stats
        if tokens and self.tokens:
            pause = now - self._last_take
            stats.longest_pause_seconds = max(stats.longest_pause_seconds, pause)
        elif tokens:
            stats.first_token_seconds = now - self._started
        self._last_take = now
        taken: list[Piece] = []
        for length, token in enumerate(tokens, len(self.tokens) + 1):
            if token in self.eos:
                self._finish_reason = "stop"
                taken.append(self._channels.end(token))
            else:
                taken += self._channels.add(token)
                if self._channels.stop is not None:
                    self._finish_reason = "stop"
                elif length >= self.max_tokens:
                    self._finish_reason = "length"
            if self._finish_reason:
                break
        num_taken = sum(len(piece.tokens) for piece in taken)
        self.tokens += tokens[:num_taken]
        if num_drafted is not None:
            stats.count_round(num_drafted, min(len(tokens) - 1, num_taken), copied=copied)
        del self._logprobs[len(self.tokens) :]
        self._emit(taken)
        if self.constraint is not None and not self._finish_reason:
            self.constraint.accept(tokens[:num_taken])

    def _emit(self, taken: list[Piece]) -> None:
        reason, stats = self._finish_reason, self.stats
        if reason:
            taken = [*taken, self._channels.finish()]
        pieces = joined(taken) or [Piece(self._channels.kind, "", [])]
        stats.thought_tokens += sum(len(one.tokens) for one in pieces if one.kind == "thought")
        stats.tool_call_tokens += sum(len(one.tokens) for one in pieces if one.kind == "tool_call")
        stats.generated_tokens = len(self.tokens)
        if self.tokens:  # otherwise it was cancelled before the clock started
            stats.decode_seconds = time.perf_counter() - self._started - stats.first_token_seconds
        at = len(self.tokens) - sum(len(piece.tokens) for piece in pieces)
        for number, (kind, text, tokens, call, deltas) in enumerate(pieces, 1):
            end, found = reason if number == len(pieces) else None, self._reported(at, len(tokens))
            at += len(tokens)
            self._tell(Chunk(text, tokens, end, stats if end else None, kind, call, found, deltas))
        if reason:
            completion = self._completion(reason)
            self._end()
            self.generation._finish(completion)

    def _tell(self, chunk: Chunk) -> None:
        self.generation._add(chunk)
        if self.on_chunk and isawaitable(self.on_chunk(chunk)):
            raise UsageError("on_chunk returned a coroutine: give the coroutine function itself")

    def _reported(self, start: int, count: int) -> tuple[TokenLogprobs, ...] | None:
        """Return the log-probabilities of `count` tokens; None if they were not asked for."""
        asked = self.params.logprobs is not None
        return tuple(self._logprobs[start : start + count]) if asked else None

    def _end(self) -> None:
        # Before anyone can see that it ended: the next turn may come at once.
        self.ended = True
        self.leave()
        self.unqueue()

    def _completion(self, reason: FinishReason) -> Completion:
        def output(kind: Kind) -> str:
            return "".join(chunk.text for chunk in chunks if chunk.kind == kind)

        chunks = self.generation._chunks
        stats, seed, kind = self.stats, self.params.seed, self._channels.kind
        assert seed is not None
        calls = tuple(chunk.tool_call for chunk in chunks if chunk.tool_call)
        unclosed = None if kind == "answer" else kind
        text, thought = output("answer"), output("thought")
        found = self._reported(0, len(self.tokens))
        return Completion(
            text,
            self.tokens,
            reason,
            stats,
            seed,
            thought,
            calls,
            unclosed,
            self.exact,
            found,
            self._channels.stop,
        )
