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

LARGEST = 2**31 - 1  # of an int32


@dataclass(frozen=True)
class SamplingParams:
    """Settings of one request. None takes the value of the checkpoint's generation_config.

    max_tokens: maximum tokens to generate; None: until the context is full.
    temperature: 0 is greedy, and so is anything below 1e-6.
    top_k: 0 keeps all tokens. top_p: above 0 and at most 1, which keeps all.
    seed: the same prompt, settings and seed give the same output; None draws a new seed.
    stop: strings that end the answer and are not part of it, next to those of the checkpoint.
    num_draft_tokens: drafts per round, copies included. "auto" uses what the engine measures to be
        fastest, round by round; 0 is plain decoding.
    ignore_eos: continue past the ends of turns that the checkpoint names, tokens and strings.
    thinking: ask the chat template for a thought before the answer; not for prompts of token ids.

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
        drafts: Any = self.num_draft_tokens
        auto = isinstance(drafts, str) and drafts == "auto"
        temperature, top_p = _number(self.temperature), _number(self.top_p)
        checks = {
            "max_tokens must be at least 1": _within(self.max_tokens, 1, LARGEST),
            "temperature must be 0 (greedy) or above": (
                temperature is None or 0 <= temperature < math.inf
            ),
            "top_k must be 0 (off) or a positive integer": _within(self.top_k, 0, LARGEST),
            "top_p must be above 0 and at most 1": top_p is None or 0 < top_p <= 1,
            "seed must be an integer from 0 to 2**32 - 1": _within(self.seed, 0, 2**32 - 1),
            f'num_draft_tokens must be "auto" or an integer from 0 to {MAX_DRAFT_TOKENS}': (
                auto or (drafts is not None and _within(drafts, 0, MAX_DRAFT_TOKENS))
            ),
            "stop must be a string or a list of strings that are not empty": (
                isinstance(self.stop, (str, list, tuple))
                and all(isinstance(stop, str) and stop for stop in self.stop_strings)
            ),
            "ignore_eos must be True or False": isinstance(self.ignore_eos, bool),
            "thinking must be True or False": isinstance(self.thinking, bool),
        }
        for message, good in checks.items():
            if not good:
                raise UsageError(message)
        # Python's own numbers: MLX makes arrays of no others.
        plain = {"temperature": temperature, "top_p": top_p}
        for name in ("max_tokens", "top_k", "seed", "num_draft_tokens"):
            value = getattr(self, name)
            plain[name] = int(value) if is_count(value) else value
        for name, value in plain.items():
            object.__setattr__(self, name, value)

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """`stop` as a tuple, even if it is one string."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    def resolved(self, defaults: dict[str, Any]) -> SamplingParams:
        """Take unset values from a generation_config, or else plain ones; draw an unset seed."""

        def pick(own: Any, key: str, plain: Any) -> Any:
            values = (own, defaults.get(key), plain)
            return next(value for value in values if value is not None)

        greedy = self.temperature is None and not defaults.get("do_sample", True)
        return replace(
            self,
            temperature=0.0 if greedy else pick(self.temperature, "temperature", 1.0),
            top_k=pick(self.top_k, "top_k", NO_FILTER),
            top_p=pick(self.top_p, "top_p", 1.0),
            seed=secrets.randbits(32) if self.seed is None else self.seed,
        )


def is_count(value: object) -> bool:
    """True for an integer, Python's or numpy's; False for a bool."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _within(value: Any, low: int, high: int) -> bool:
    return value is None or (is_count(value) and low <= value <= high)


def _number(value: Any) -> float | None:
    """A number as a float, NaN if it is not a number; None stays."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return math.nan
    try:
        return float(value)
    except OverflowError:  # an integer of more than 300 digits
        return math.inf
