"""The results of a request: chunks, a completion, counts and seconds. Knows no models."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from mlx_gemma_mtp.text.call_stream import CallDelta
from mlx_gemma_mtp.text.calls import ToolCall
from mlx_gemma_mtp.text.channels import Kind
from mlx_gemma_mtp.text.messages import Message

FinishReason = Literal["stop", "length", "cancelled"]


class TokenLogprobs(NamedTuple):
    """Log-probabilities at one position: of the token, and of the most likely ones, best first.

    Natural logarithms, by the model's logits before settings change them.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]  # of a token id each, as many as SamplingParams.logprobs


@dataclass
class Stats:
    """Counts and seconds of one request.

    A round drafts up to K tokens and yields one more than it accepts, unless the request ends
    first. reused_tokens of the prompt were not prefilled for this request: the session or the
    prefix cache held them, or an equal request had them read.
    drafted_at[i] counts the rounds that drafted token i (from 0), accepted_at[i] the rounds that
    accepted it. copies_drafted_at and copies_accepted_at count those among them whose drafts were
    copied from the prompt or the output so far, or the only ones that a schema allowed.
    queue_seconds is the wait before the prefill; the other clocks start with the prefill.
    longest_pause_seconds is the longest wait for more tokens after the first. thought_tokens and
    tool_call_tokens are parts of generated_tokens, with their markers.
    """

    prompt_tokens: int = 0
    reused_tokens: int = 0
    generated_tokens: int = 0
    thought_tokens: int = 0
    tool_call_tokens: int = 0
    rounds: int = 0
    drafted_at: list[int] = field(default_factory=list)
    accepted_at: list[int] = field(default_factory=list)
    copies_drafted_at: list[int] = field(default_factory=list)
    copies_accepted_at: list[int] = field(default_factory=list)
    queue_seconds: float = 0.0
    first_token_seconds: float = 0.0
    decode_seconds: float = 0.0
    longest_pause_seconds: float = 0.0

    @property
    def answer_tokens(self) -> int:
        """Tokens of the answer, with the end token."""
        return self.generated_tokens - self.thought_tokens - self.tool_call_tokens

    @property
    def drafted(self) -> int:
        """Draft tokens verified."""
        return sum(self.drafted_at)

    @property
    def accepted(self) -> int:
        """Draft tokens accepted."""
        return sum(self.accepted_at)

    @property
    def copies_drafted(self) -> int:
        """Copied tokens verified."""
        return sum(self.copies_drafted_at)

    @property
    def copies_accepted(self) -> int:
        """Copied tokens accepted."""
        return sum(self.copies_accepted_at)

    @property
    def acceptance_rate(self) -> float | None:
        """accepted / drafted; None if nothing was drafted."""
        return self.accepted / self.drafted if self.drafted else None

    @property
    def acceptance_length(self) -> float | None:
        """Tokens per round, the extra one included; None before the first round."""
        return (self.generated_tokens - 1) / self.rounds if self.rounds else None

    @property
    def decode_tokens_per_second(self) -> float | None:
        """Speed after the first token, as this request saw it."""
        return (self.generated_tokens - 1) / self.decode_seconds if self.decode_seconds else None

    def count_round(self, drafted: int, accepted: int, *, copied: bool = False) -> None:
        """Add one round of this request. copied: its drafts were."""
        self.rounds += 1
        _count(self.drafted_at, drafted)
        _count(self.accepted_at, accepted, of=drafted)
        if copied:
            _count(self.copies_drafted_at, drafted)
            _count(self.copies_accepted_at, accepted, of=drafted)


@dataclass(frozen=True)
class Chunk:
    """A piece of streamed output. The last one has a finish_reason and the request's stats.

    A round gives one chunk for each run of tokens of one kind, so mostly one. The chunks of a tool
    call hold its text, and the last of them the tool_call. If the model wrote several calls between
    one pair of markers, each comes in a chunk at the end. `call_deltas` are what is certain of the
    calls so far, as JSON text. Markers are in tokens, not in text.
    """

    text: str
    tokens: list[int]
    finish_reason: FinishReason | None = None
    stats: Stats | None = None
    kind: Kind = "answer"
    tool_call: ToolCall | None = None
    logprobs: tuple[TokenLogprobs, ...] | None = None  # of `tokens`; None if not asked for
    call_deltas: tuple[CallDelta, ...] = ()


@dataclass(frozen=True)
class Completion:
    """The output of a request. `tokens` has all generated ids, with the end token; `text` has not.

    `text` is the answer only, and empty for a checkpoint without a tokenizer. If the prompt ended
    within a thought, `thought` is the rest of it. `tool_calls` are the complete ones, with all of a
    call that started in the prompt. `unclosed` is what the output ended in the middle of: "thought"
    or "tool_call". `seed` repeats the output, also if it was drawn. `exact`: every pass of it,
    prompt included, gives the same bits with any drafts, batch and load: see `load`. `stop` is the
    stop string that ended the answer; None if anything else did.
    """

    text: str
    tokens: list[int]
    finish_reason: FinishReason
    stats: Stats
    seed: int
    thought: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    unclosed: Literal["thought", "tool_call"] | None = None
    exact: bool = False
    logprobs: tuple[TokenLogprobs, ...] | None = None  # of `tokens`; None if not asked for
    stop: str | None = None

    @property
    def message(self) -> Message:
        """This turn as a message, for the next prompt.

        The thought is its "reasoning": templates drop it from finished turns, and some need it
        until a tool has answered. Calls have random ids, which a tool's message names as its
        "tool_call_id". Unreadable arguments are {"unreadable": text}; a call without a readable
        name is dropped.
        """
        message: Message = {"role": "assistant", "content": self.text}
        if self.thought:
            message["reasoning"] = self.thought.removesuffix("\n")
        named = [call for call in self.tool_calls if call.name]
        if named:
            message["tool_calls"] = [
                {"id": call.id, "type": "function", "function": call.function} for call in named
            ]
        return message


def _count(counts: list[int], reached: int, *, of: int = 0) -> None:
    """Add 1 at each of the first positions, which are `reached`; there are `of` at least."""
    counts += [0] * (max(reached, of) - len(counts))
    for position in range(reached):
        counts[position] += 1
