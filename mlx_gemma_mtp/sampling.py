"""Choosing tokens so that a text depends on its prompt, settings and seed alone.

The token at position p of a request with seed s is
    arg max over v of  filtered_logits[v] / temperature + gumbel(s, p, v)
which is a draw from the softmax (Gumbel-max: Gumbel 1954; Maddison et al. 2014). The noise is a
function of seed and position, so target and drafter share it, whatever was drafted, batched or
rejected on the way. Temperature 0 leaves the noise out. Knows nothing of models or caches.
"""

from __future__ import annotations

import math
import numbers
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import mlx.core as mx

from mlx_gemma_mtp.errors import UsageError

LEAST_TEMPERATURE = 1e-6  # logits divided by much less overflow float32
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


class RowSettings(NamedTuple):
    """Sampling settings of every row on the device, and what the batch as a whole needs."""

    temperature: mx.array  # float32 [B, 1]
    top_k: mx.array  # int32 [B, 1]
    top_p: mx.array  # float32 [B, 1]
    seed: mx.array  # uint32 [B, 1]
    suppress: mx.array | None  # float32 [V], -inf at tokens that must not be chosen
    greedy: bool  # every row is at temperature 0
    filtered: bool  # some row sets top_k or top_p


def row_settings(
    rows: Sequence[SamplingParams | None], suppress: mx.array | None = None
) -> RowSettings:
    """Lay resolved settings out as arrays; None is a free row."""
    filled = [row or SamplingParams(temperature=0, top_k=0, top_p=1, seed=0) for row in rows]

    def column(values: list[Any], dtype: mx.Dtype) -> mx.array:
        return mx.array(values, dtype)[:, None]

    heat = [row.temperature or 0.0 for row in filled]
    heat = [value if value >= LEAST_TEMPERATURE else 0.0 for value in heat]
    sampled = [row for row, value in zip(filled, heat, strict=True) if value]
    return RowSettings(
        temperature=column(heat, mx.float32),
        top_k=column([row.top_k for row in filled], mx.int32),
        top_p=column([row.top_p for row in filled], mx.float32),
        seed=column([row.seed for row in filled], mx.uint32),
        suppress=suppress,
        greedy=not sampled,
        filtered=any(row.top_k or row.top_p != 1 for row in sampled),
    )


def choose(
    logits: mx.array,
    position: mx.array,
    settings: RowSettings,
    *,
    softcap: float | None = None,
    ids: mx.array | None = None,
    vocab_size: int | None = None,
) -> mx.array:
    """Choose the tokens for position [B, T] from raw logits [B, T, C]: int32 [B, T].

    ids [B, T, C] names the token of each logit, of vocab_size in all; without them C is the
    vocabulary. The softcap is monotone, so a greedy choice skips it.
    """
    barred = mx.array(0.0)
    if settings.suppress is not None:
        barred = settings.suppress if ids is None else settings.suppress[ids]
        logits = logits + barred
    if settings.greedy:
        best = mx.argmax(logits, axis=-1)
    else:
        temperature = settings.temperature[..., None]  # [B, 1, 1]
        scores = logits.astype(mx.float32)
        if softcap is not None:
            scores = mx.tanh(scores / softcap) * softcap + barred  # the cap made -inf finite
        scores = scores / mx.where(temperature > 0, temperature, 1)
        if settings.filtered:
            scores = _filter(scores, settings.top_k[..., None], settings.top_p[..., None])
        size = vocab_size or logits.shape[-1]
        scores = scores + _noise(settings.seed, position, size, ids)
        best = mx.argmax(mx.where(temperature > 0, scores, logits), axis=-1)
    if ids is not None:
        best = mx.take_along_axis(ids, best[..., None], axis=-1)[..., 0]
    return best.astype(mx.int32)


def _filter(scores: mx.array, top_k: mx.array, top_p: mx.array) -> mx.array:
    """-inf outside the top_k best and outside the smallest set of probability top_p.

    Both by a threshold, so equal scores stay or go together. In Transformers' order: top_k first.
    """
    size = scores.shape[-1]
    ranked = -mx.sort(-scores, axis=-1)
    last = mx.clip(top_k - 1, 0, size - 1)
    last = mx.broadcast_to(last, (*scores.shape[:2], 1))
    kth = mx.where(top_k == NO_FILTER, -mx.inf, mx.take_along_axis(ranked, last, axis=-1))
    ranked = mx.where(ranked >= kth, ranked, -mx.inf)
    probabilities = mx.softmax(ranked, axis=-1)
    before = mx.cumsum(probabilities, axis=-1) - probabilities
    inside = (before < top_p) | (top_p >= 1)
    lowest = mx.where(inside, ranked, mx.inf).min(axis=-1, keepdims=True)
    return mx.where(scores >= mx.maximum(kth, lowest), scores, -mx.inf)


def _noise(seed: mx.array, position: mx.array, vocabulary: int, ids: mx.array | None) -> mx.array:
    """Gumbel noise [B, T, C] that depends on seed [B, 1], position [B, T] and token alone."""
    pair = mx.broadcast_arrays(seed, position.astype(mx.uint32))
    key = mx.stack(list(pair), axis=-1)  # [B, T, 2]
    flat = mx.vmap(lambda one: mx.random.gumbel((vocabulary,), key=one))(key.reshape(-1, 2))
    noise = flat.reshape(*position.shape, vocabulary)
    return noise if ids is None else mx.take_along_axis(noise, ids, axis=-1)
