"""What every engine's turn comes down to: tokens, rounds and seconds, counted alike."""

from __future__ import annotations

from typing import NamedTuple


class Window(NamedTuple):
    """A turn's decoding while all rows decode, and the prompts before it; its parts add up.

    tokens, rounds, seconds: of all rows together. prefill_tokens: of all prompts. prefill_seconds:
    until the last row's first token.
    """

    tokens: int
    rounds: int
    seconds: float
    prefill_tokens: int
    prefill_seconds: float

    @property
    def rate(self) -> float:
        """Tokens per second."""
        return self.tokens / self.seconds

    def plus(self, other: Window) -> Window:
        """Both as one."""
        return Window(
            self.tokens + other.tokens,
            self.rounds + other.rounds,
            self.seconds + other.seconds,
            self.prefill_tokens + other.prefill_tokens,
            self.prefill_seconds + other.prefill_seconds,
        )
