"""One request: its prompt and settings, what was generated, and how it ended.

Lives on the host. Knows nothing of the device or of other requests.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Literal

from mlx_gemma_mtp.channels import Kind, Piece, Router, ToolCall, joined
from mlx_gemma_mtp.errors import as_failure
from mlx_gemma_mtp.messages import Message
from mlx_gemma_mtp.sampling import MAX_DRAFT_TOKENS, SamplingParams
from mlx_gemma_mtp.session import Session
from mlx_gemma_mtp.text import TextStream
from mlx_gemma_mtp.worker import mlx_worker

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass
class Stats:
    """Counts and seconds of one request.

    A round drafts up to K tokens and yields one more than it accepts, unless the text ends before.
    reused_tokens of the prompt were held by the session, and not prefilled.
    `drafted_at[i]` counts the rounds that drafted an i-th token (from 0), `accepted_at[i]` those
    that kept it. queue_seconds is the wait before the prefill, with which the other clocks start.
    longest_pause_seconds is the longest wait for further tokens after the first. experts_read adds
    up how many experts the batch's rounds read in a layer, on average over the layers.
    thought_tokens and tool_call_tokens are those of generated_tokens that are not answer, markers
    included.
    """

    prompt_tokens: int = 0
    reused_tokens: int = 0
    generated_tokens: int = 0
    thought_tokens: int = 0
    tool_call_tokens: int = 0
    rounds: int = 0
    drafted_at: list[int] = field(default_factory=list)
    accepted_at: list[int] = field(default_factory=list)
    queue_seconds: float = 0.0
    first_token_seconds: float = 0.0
    decode_seconds: float = 0.0
    longest_pause_seconds: float = 0.0
    experts_read: float = 0.0

    @property
    def answer_tokens(self) -> int:
        """Tokens of the answer, the ending one included."""
        return self.generated_tokens - self.thought_tokens - self.tool_call_tokens

    @property
    def drafted(self) -> int:
        """Draft tokens verified."""
        return sum(self.drafted_at)

    @property
    def accepted(self) -> int:
        """Draft tokens that came true."""
        return sum(self.accepted_at)

    @property
    def acceptance_rate(self) -> float | None:
        """accepted / drafted; None where nothing was drafted."""
        return self.accepted / self.drafted if self.drafted else None

    @property
    def acceptance_length(self) -> float | None:
        """Tokens per round, the extra one included; None before the first round."""
        return (self.generated_tokens - 1) / self.rounds if self.rounds else None

    @property
    def distinct_experts(self) -> float | None:
        """Experts read per round and layer, for all rows together; None without experts."""
        return self.experts_read / self.rounds if self.experts_read else None

    @property
    def decode_tokens_per_second(self) -> float | None:
        """Speed after the first token, as this request saw it."""
        return (self.generated_tokens - 1) / self.decode_seconds if self.decode_seconds else None

    def count_round(self, drafted: int, accepted: int) -> None:
        """Add one round of this request."""
        self.rounds += 1
        self.drafted_at += [0] * (drafted - len(self.drafted_at))
        self.accepted_at += [0] * (drafted - len(self.accepted_at))
        for position in range(drafted):
            self.drafted_at[position] += 1
            self.accepted_at[position] += position < accepted


@dataclass(frozen=True)
class Chunk:
    """A piece of a streamed text. The last one has a finish_reason and the request's stats.

    A round gives one chunk for each stretch of one kind in it: mostly one. A call's chunks hold it
    as it is written, the last of them also as tool_call. The markers between kinds are in tokens,
    not in text.
    """

    text: str
    tokens: list[int]
    finish_reason: FinishReason | None = None
    stats: Stats | None = None
    kind: Kind = "answer"
    tool_call: ToolCall | None = None


@dataclass(frozen=True)
class Completion:
    """What a request gave. `tokens` holds all generated ids, the ending one too; `text` does not.

    `text` is the answer alone; it is empty for a checkpoint without a tokenizer. `tool_calls` are
    the whole ones. `unclosed` tells what the text ended in the middle of: "thought" or "tool_call".
    `seed` gives the same text again, also where it was drawn.
    """

    text: str
    tokens: list[int]
    finish_reason: FinishReason
    stats: Stats
    seed: int
    thought: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    unclosed: Literal["thought", "tool_call"] | None = None

    @property
    def message(self) -> Message:
        """This turn as a message, to go on from.

        The thought goes with it as "reasoning": templates leave it out of finished turns, and some
        need it until a tool has answered. Calls have ids ("call_0"), for the tool's message to name
        as its "tool_call_id"; a call without a readable name is left out.
        """
        message: Message = {"role": "assistant", "content": self.text}
        if self.thought:
            message["reasoning"] = self.thought.removesuffix("\n")
        named = [call for call in self.tool_calls if call.name]
        if named:
            message["tool_calls"] = [
                {"id": f"call_{number}", "type": "function", "function": call.function}
                for number, call in enumerate(named)
            ]
        return message


class Generation(Future[Completion]):
    """A request under way: a Future of its Completion, made by `Engine.submit`.

    In an event loop, `await asyncio.wrap_future(generation)`; cancelling that cancels the request.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stopping = False

    def result(self, timeout: float | None = None) -> Completion:
        """Wait for the request to end, at most `timeout` seconds.

        Raises the MgmError that ended it, TimeoutError, or UsageError in an `on_chunk` callback.
        """
        if not self.done():
            mlx_worker().check_may_wait()
        try:
            return super().result(timeout)
        finally:
            del self  # an error raised here would keep it alive, and it the error

    def cancel(self) -> bool:
        """Have the request end within a round; its result is what was said until then.

        The finish_reason is "cancelled". False where it has ended already.
        """
        self.stopping = True
        return not self.done()


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
        self._router = Router(stream)
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
