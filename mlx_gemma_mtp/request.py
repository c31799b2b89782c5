"""One request: its prompt and settings, what was generated, and why it ended.

Lives on the host. Knows nothing of the device, of other requests or of threads.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from mlx_gemma_mtp.sampling import SamplingParams
from mlx_gemma_mtp.text import TextStream

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass
class Stats:
    """Counts and seconds of one request.

    A round drafts up to K tokens and yields one more than it accepts, unless the text ends before.
    `drafted_at[i]` counts the rounds that drafted an i-th token (from 0), `accepted_at[i]` those
    that kept it. The clock starts with the prefill.
    """

    prompt_tokens: int = 0
    generated_tokens: int = 0
    rounds: int = 0
    drafted_at: list[int] = field(default_factory=list)
    accepted_at: list[int] = field(default_factory=list)
    first_token_seconds: float = 0.0
    decode_seconds: float = 0.0

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
    """A piece of a streamed text. The last one has a finish_reason and the request's stats."""

    text: str
    tokens: list[int]
    finish_reason: FinishReason | None = None
    stats: Stats | None = None


@dataclass(frozen=True)
class Completion:
    """What a request gave. `tokens` holds all generated ids, the ending one too; `text` does not.

    `text` is empty for a checkpoint without a tokenizer. `seed` gives the same text again, also
    where it was drawn.
    """

    text: str
    tokens: list[int]
    finish_reason: FinishReason
    stats: Stats
    seed: int


class Request:
    """A request under way. `on_chunk` is called with every piece, on the engine's thread."""

    def __init__(
        self,
        ids: Sequence[int],
        params: SamplingParams,
        *,
        max_tokens: int,
        num_draft_tokens: int,
        eos: frozenset[int],
        stream: TextStream | None,
        on_chunk: Callable[[Chunk], None] | None = None,
    ) -> None:
        self.ids = list(ids)
        self.params = params
        self.max_tokens = max_tokens
        self.num_draft_tokens = num_draft_tokens
        self.tokens: list[int] = []
        self.finish_reason: FinishReason | None = None
        self.stats = Stats(prompt_tokens=len(self.ids))
        self._eos = eos
        self._stream = stream
        self._on_chunk = on_chunk
        self._pieces: list[str] = []
        self._begun = 0.0

    def begin(self) -> None:
        """Its prefill starts now."""
        self._begun = time.perf_counter()

    def take(self, tokens: Sequence[int], num_drafted: int | None = None) -> None:
        """Take the tokens a round gave, up to the one that ends the request.

        num_drafted: how many drafts the round verified; None for the token of the prefill. Drafts
        that came true past the end count as drafted, not as accepted.
        """
        if not self.tokens:
            self.stats.first_token_seconds = time.perf_counter() - self._begun
        taken: list[int] = []
        text = ""
        for token in tokens:
            taken.append(token)
            if token in self._eos:
                self.finish_reason = "stop"
            else:
                text += self._stream.add(token) if self._stream else ""
                if self._stream and self._stream.stopped:
                    self.finish_reason = "stop"
                elif len(self.tokens) + len(taken) >= self.max_tokens:
                    self.finish_reason = "length"
            if self.finish_reason:
                break
        self.tokens += taken
        if num_drafted is not None:
            self.stats.count_round(num_drafted, min(len(tokens) - 1, len(taken)))
        self._emit(text, taken)

    def cancel(self) -> None:
        """End the request here, keeping what was said."""
        self.finish_reason = "cancelled"
        self._emit("", [])

    @property
    def completion(self) -> Completion:
        """The finished request's result."""
        assert self.finish_reason is not None
        assert self.params.seed is not None
        text = "".join(self._pieces)
        return Completion(text, self.tokens, self.finish_reason, self.stats, self.params.seed)

    def _emit(self, text: str, tokens: list[int]) -> None:
        if self.finish_reason and self._stream:
            text += self._stream.finish()
        self.stats.generated_tokens = len(self.tokens)
        self.stats.decode_seconds = (
            time.perf_counter() - self._begun - self.stats.first_token_seconds
        )
        self._pieces.append(text)
        if self._on_chunk:
            stats = self.stats if self.finish_reason else None
            self._on_chunk(Chunk(text, tokens, self.finish_reason, stats))
