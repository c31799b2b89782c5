"""The settings of one request, checked. Knows nothing of arrays."""

from __future__ import annotations

import math
import numbers
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from mlx_gemma_mtp.errors import UsageError

NO_FILTER = 0  # top_k that keeps every token

MAX_DRAFT_TOKENS = 15  # a bound on buffers; no published drafter gains beyond 8


def is_count(value: object) -> bool:
    """A whole number, of Python's or numpy's, and not a truth value?"""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _within(value: int | None, low: int, high: int) -> bool:
    return value is None or (is_count(value) and low <= value <= high)


def _real(value: Any) -> bool:
    """None, or a number that a float can hold?"""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return value is None
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number of more than 300 digits
        return False


def _plain(value: Any) -> Any:
    """A number as Python's own int or float: MLX makes arrays of no others."""
    if is_count(value):
        return int(value)
    return value if value is None or isinstance(value, str) else float(value)


@dataclass(frozen=True)
class SamplingParams:
    """Settings of one request; None takes the checkpoint's generation_config.

    max_tokens: most tokens to generate; None: as many as the context holds.
    temperature: 0 is greedy, and so is anything below 1e-6. top_k: 0 keeps all. top_p: in (0, 1].
    seed: same prompt, settings and seed, same text; None draws a fresh one.
    stop: strings that end the text where the answer holds one; they are not part of it.
    num_draft_tokens: drafts per round; "auto" is the engine's choice, round by round, of what it
        measures to be fastest; 0 is plain decoding.
    ignore_eos: go on past end-of-turn tokens.
    thinking: have the chat template ask for a thought before the answer; not for prompts of ids.

    Raises UsageError for a value out of range.
    """

    max_tokens: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: str | Sequence[str] = ()
    num_draft_tokens: int | Literal["auto"] = "auto"
    ignore_eos: bool = False
    thinking: bool = False

    def __post_init__(self) -> None:
        most = 2**31 - 1
        drafts = self.num_draft_tokens
        checks = [
            (
                _within(self.max_tokens, 1, most),
                f"max_tokens must be a whole number in 1 .. {most}",
            ),
            (
                _real(self.temperature) and (self.temperature or 0) >= 0,
                "temperature must be 0 (greedy) or a positive number",
            ),
            (_within(self.top_k, 0, most), "top_k must be 0 (off) or a positive whole number"),
            (
                _real(self.top_p) and (self.top_p is None or 0 < self.top_p <= 1),
                "top_p must be above 0 and at most 1",
            ),
            (_within(self.seed, 0, 2**32 - 1), "seed must be a whole number in 0 .. 2**32 - 1"),
            (
                (isinstance(drafts, str) and drafts == "auto")
                or (drafts is not None and _within(drafts, 0, MAX_DRAFT_TOKENS)),
                f'num_draft_tokens must be "auto" or lie in 0 .. {MAX_DRAFT_TOKENS}',
            ),
            (
                isinstance(self.stop, (str, list, tuple))
                and all(isinstance(stop, str) and stop for stop in self.stop_strings),
                "stop must be a string or a list of strings, none of them empty",
            ),
            (isinstance(self.ignore_eos, bool), "ignore_eos must be True or False"),
            (isinstance(self.thinking, bool), "thinking must be True or False"),
        ]
        for good, message in checks:
            if not good:
                raise UsageError(message)
        for name in ("max_tokens", "temperature", "top_k", "top_p", "seed", "num_draft_tokens"):
            object.__setattr__(self, name, _plain(getattr(self, name)))

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """`stop` as a tuple, also when it was given as one string."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    def resolved(self, defaults: dict[str, Any]) -> SamplingParams:
        """Fill unset values from a generation_config, then with plain ones; draw a seed."""
        sampled = defaults.get("do_sample", True)

        def pick(mine: Any, key: str, fallback: Any) -> Any:
            if mine is not None:
                return mine
            found = defaults.get(key)
            return fallback if found is None else found

        unset_greedy = self.temperature is None and not sampled
        return replace(
            self,
            temperature=0.0 if unset_greedy else pick(self.temperature, "temperature", 1.0),
            top_k=pick(self.top_k, "top_k", NO_FILTER),
            top_p=pick(self.top_p, "top_p", 1.0),
            seed=secrets.randbits(32) if self.seed is None else self.seed,
        )
