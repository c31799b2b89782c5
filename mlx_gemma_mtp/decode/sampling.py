"""Choosing tokens, so that the output depends on prompt, settings and seed alone.

The token at position p of a request with seed s is
    arg max over v of  filtered_logits[v] / temperature + gumbel(s, p, v)
which is a draw from the softmax (Gumbel-max: Gumbel 1954; Maddison et al. 2014). The noise depends
on seed, position and token only. So target and drafter share it, whatever was drafted, batched or
rejected before. Temperature 0 leaves the noise out. Knows nothing of models or caches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import mlx.core as mx

from mlx_gemma_mtp.decode.params import NO_FILTER, SamplingParams

LEAST_TEMPERATURE = 1e-6  # logits divided by much less would overflow float32


class RowSettings(NamedTuple):
    """Sampling settings of every row on the device, and which steps the batch needs."""

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
    """Resolved settings as arrays; None is a free row."""
    filled = [row or SamplingParams(temperature=0, top_k=0, top_p=1, seed=0) for row in rows]

    def column(values: list[Any], dtype: mx.Dtype) -> mx.array:
        return mx.array(values, dtype)[:, None]

    temperatures = [row.temperature or 0.0 for row in filled]
    temperatures = [value if value >= LEAST_TEMPERATURE else 0.0 for value in temperatures]
    sampled = [row for row, value in zip(filled, temperatures, strict=True) if value]
    return RowSettings(
        temperature=column(temperatures, mx.float32),
        top_k=column([row.top_k for row in filled], mx.int32),
        top_p=column([row.top_p for row in filled], mx.float32),
        seed=column([row.seed for row in filled], mx.uint32),
        suppress=suppress,
        greedy=not sampled,
        filtered=any(row.top_k or row.top_p != 1 for row in sampled),
    )


def capped(logits: mx.array, softcap: float | None) -> mx.array:
    """Return logits after the softcap of a target's config, if it has one."""
    return logits if softcap is None else mx.tanh(logits / softcap) * softcap


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

    ids [B, T, C] names the token of each logit, out of vocab_size; without ids C is the
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
            scores = capped(scores, softcap) + barred  # the cap made -inf finite
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
    """Set scores outside the top_k best, or outside the smallest set of probability top_p, to -inf.

    Both use a threshold, so equal scores stay or go together. top_k comes first, as in
    Transformers.
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
    """Gumbel noise [B, T, C], a function of seed [B, 1], position [B, T] and token alone."""
    pair = mx.broadcast_arrays(seed, position.astype(mx.uint32))
    key = mx.stack(list(pair), axis=-1)  # [B, T, 2]
    flat = mx.vmap(lambda one: mx.random.gumbel((vocabulary,), key=one))(key.reshape(-1, 2))
    noise = flat.reshape(*position.shape, vocabulary)
    return noise if ids is None else mx.take_along_axis(noise, ids, axis=-1)
