"""The settings of one request, checked. Knows nothing of arrays."""

from __future__ import annotations

import math
import numbers
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeGuard

from mlx_gemma_mtp.errors import UsageError

NO_FILTER = 0  # top_k that keeps every token

MAX_DRAFT_TOKENS = 15  # a bound on buffers; no published drafter gains beyond 8

MAX_LOGPROBS = 20  # as OpenAI's clients may ask for
MAX_PENALTY = 2.0
MAX_BIAS = 100.0

PENALTIES = ("repetition_penalty", "presence_penalty", "frequency_penalty")
FRACTIONS = ("temperature", "top_p", "min_p", *PENALTIES)
COUNTS = ("max_tokens", "top_k", "seed", "num_draft_tokens", "thinking_budget", "logprobs")
FORMS = ("json_schema", "regex", "choices")  # of an answer

LARGEST = 2**31 - 1  # of an int32


@dataclass(frozen=True)
class SamplingParams:
    """Settings of one request. None takes the value of the checkpoint's generation_config.

    max_tokens: maximum tokens to generate; None: until the context is full.
    temperature: 0 is greedy, and so is anything below 1e-6.
    top_k: 0 keeps all tokens. top_p: above 0 and at most 1, which keeps all. min_p: keeps tokens
        that have at least this share of the best one's probability; 0 keeps all.
    seed: the same prompt, settings and seed give the same output; None draws a new seed.
    stop: strings that end the answer and are not part of it, next to those of the checkpoint.
    num_draft_tokens: drafts per round, copies included. "auto" uses what the engine measures to be
        fastest, round by round; 0 is plain decoding.
    ignore_eos: continue past the ends of turns that the checkpoint names, tokens and strings.
    thinking: ask the chat template for a thought before the answer; not for prompts of token ids.

    What follows changes the logits before they are filtered, in this order, and never the drafts'
    part in the output: it is the same with any drafts.

    repetition_penalty: divides positive logits of tokens of prompt and output, and multiplies
        negative ones (Keskar et al. 2019); 1 is off.
    presence_penalty, frequency_penalty: subtracted from the logits of tokens of the output, once
        and per occurrence, from -2 to 2, as OpenAI defines them.
    logit_bias: added to the logits of these token ids, from -100, which bars a token, to 100.
    json_schema: the answer is JSON, on one line, that matches this JSON schema or pydantic model.
        A "number" can have digits without end, unless it has a multipleOf.
    regex: the whole answer matches this, in Rust's syntax.
    choices: the answer is one of these strings. At most one of these three can be set; they need
        the extra "structured". A thought may come before the answer, and with tools a call instead
        of it. Of an answer that is continued, the new text has the form. max_tokens and stop may
        cut it.
    tool_choice: "auto"; "none" forbids calls, "required" makes the output calls alone, and the name
        of a tool makes it one call of this tool. Their arguments follow its schema.
    thinking_budget: maximum tokens of thoughts, without markers; then they are closed.

    stop_token_ids: ids that end the answer, next to those of the checkpoint.
    logprobs: report the log-probability of each token and of this many most likely ones (0 to 20),
        by the logits as they were before all of the above.

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
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    json_schema: Mapping[str, Any] | type | None = None
    regex: str | None = None
    choices: Sequence[str] | None = None
    tool_choice: str = "auto"
    thinking_budget: int | None = None
    stop_token_ids: Sequence[int] = ()
    logprobs: int | None = None

    def __post_init__(self) -> None:
        # Python's own numbers: MLX makes arrays of no others.
        for name in FRACTIONS:
            object.__setattr__(self, name, _number(getattr(self, name)))
        for name in COUNTS:
            object.__setattr__(self, name, _count(getattr(self, name)))
        for message, good in self._checks().items():
            if not good:
                raise UsageError(message)

    def _checks(self) -> dict[str, bool]:
        """What must be true of the settings, by the message for people if it is not."""
        temperature, penalty, bias = self.temperature, self.repetition_penalty, self.logit_bias
        drafts, ids, forms = self.num_draft_tokens, self.stop_token_ids, FORMS
        given = [name for name in forms if getattr(self, name) is not None]
        return {
            "max_tokens must be at least 1": _within(self.max_tokens, 1, LARGEST),
            "temperature must be 0 (greedy) or above": (
                temperature is None or 0 <= temperature < math.inf
            ),
            "top_k must be 0 (off) or a positive integer": _within(self.top_k, 0, LARGEST),
            "top_p must be above 0 and at most 1": self.top_p is None or 0 < self.top_p <= 1,
            "min_p must be from 0 (off) to 1": self.min_p is None or 0 <= self.min_p <= 1,
            "seed must be an integer from 0 to 2**32 - 1": _within(self.seed, 0, 2**32 - 1),
            f'num_draft_tokens must be "auto" or an integer from 0 to {MAX_DRAFT_TOKENS}': (
                (isinstance(drafts, str) and drafts == "auto")
                or (drafts is not None and _within(drafts, 0, MAX_DRAFT_TOKENS))
            ),
            "repetition_penalty must be above 0; 1 is off": (
                penalty is None or 0 < penalty < math.inf
            ),
            f"presence_penalty must be from -{MAX_PENALTY:g} to {MAX_PENALTY:g}": (
                _is_small(self.presence_penalty, MAX_PENALTY)
            ),
            f"frequency_penalty must be from -{MAX_PENALTY:g} to {MAX_PENALTY:g}": (
                _is_small(self.frequency_penalty, MAX_PENALTY)
            ),
            f"logit_bias must give token ids a number from -{MAX_BIAS:g} to {MAX_BIAS:g}": (
                isinstance(bias, Mapping)
                and all(is_count(one) and one >= 0 for one in bias)
                and all(_is_small(_number(one), MAX_BIAS) for one in bias.values())
            ),
            f"logprobs must be an integer from 0 to {MAX_LOGPROBS}": (
                _within(self.logprobs, 0, MAX_LOGPROBS)
            ),
            "thinking_budget must be 0 or more tokens": _within(self.thinking_budget, 0, LARGEST),
            "stop_token_ids must be a list of token ids": (
                isinstance(ids, (list, tuple)) and all(is_count(one) and one >= 0 for one in ids)
            ),
            "stop must be a string or a list of strings that are not empty": (
                isinstance(self.stop, (str, list, tuple))
                and all(isinstance(stop, str) and stop for stop in self.stop_strings)
            ),
            f"only one of {', '.join(forms)} can be set, not {' and '.join(given)}": (
                len(given) <= 1
            ),
            "tool_choice must be auto, none, required or the name of a tool": (
                isinstance(self.tool_choice, str) and bool(self.tool_choice)
            ),
            "ignore_eos must be True or False": isinstance(self.ignore_eos, bool),
            "thinking must be True or False": isinstance(self.thinking, bool),
        }

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
            min_p=pick(self.min_p, "min_p", 0.0),
            repetition_penalty=pick(self.repetition_penalty, "repetition_penalty", 1.0),
            seed=secrets.randbits(32) if self.seed is None else self.seed,
        )


def is_count(value: object) -> bool:
    """True for an integer, Python's or numpy's; False for a bool."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def is_duration(value: object) -> TypeGuard[float]:
    """True for a number of seconds above 0; False for a bool."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0


def _within(value: Any, low: int, high: int) -> bool:
    return value is None or (is_count(value) and low <= value <= high)


def _count(value: Any) -> Any:
    """An integer as Python's own; anything else stays."""
    return int(value) if is_count(value) else value


def _is_small(value: float | None, most: float) -> bool:
    return value is not None and abs(value) <= most


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
