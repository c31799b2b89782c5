"""Choosing tokens, so that the output depends on prompt, settings and seed alone.

The token at position p of a request with seed s is
    arg max over v of  filtered_logits[v] / temperature + gumbel(s, p, v)
which is a draw from the softmax (Gumbel-max: Gumbel 1954; Maddison et al. 2014). The noise depends
on seed, position and token only. So target and drafter share it, whatever was drafted, batched or
rejected before. Temperature 0 leaves the noise out. With a small top_k, only the tokens that can
be chosen are sorted and get noise. Knows nothing of models or caches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import mlx.core as mx

from mlx_gemma_mtp.decode.candidates import NUM_CANDIDATES, candidates, narrows
from mlx_gemma_mtp.decode.control import Control, changed, control_of, is_allowed, of_rows
from mlx_gemma_mtp.decode.params import NO_FILTER, SamplingParams

LEAST_TEMPERATURE = 1e-6  # logits divided by much less would overflow float32

MOST_TOP_K = 64  # half of NUM_BEST, so that many tokens may tie with the last one
PAIR_BITS = 17  # of a pair of tokens, in the key of its noise
SPREAD = 0x9E3779B9  # 2**32 divided by the golden ratio
# A softcap may swap two logits that differ by a unit in the last place of float32.
ROUNDING = 1e-6

# What a free row plays with. Its filter is as small as any, so it asks for no step of its own.
FREE = SamplingParams(temperature=1, top_k=1, top_p=1, seed=0)


class RowSettings(NamedTuple):
    """Sampling settings of every row on the device, and which steps the batch needs."""

    temperature: mx.array  # float32 [B, 1], 1 if greedy
    kth: mx.array  # int32 [B, 1], -top_k: its last one in ascending scores; 0 keeps all
    top_p: mx.array  # float32 [B, 1]
    seed: mx.array  # uint32 [B, 1]
    suppress: mx.array | None  # int32 [S], the tokens that must not be chosen
    is_greedy: mx.array | None  # bool [B, 1], temperature 0; None if no row is
    greedy: bool  # every row is at temperature 0
    filtered: bool  # some row sets top_k or top_p
    narrow: bool  # some row sets a top_k up to MOST_TOP_K
    full: bool  # choose among the whole vocabulary, because some sampled row sets none or a larger
    min_p: mx.array | None = None  # float32 [B, 1]; None if no sampled row sets it
    control: Control | None = None
    masks: mx.array | None = None  # uint32 [B, T, W], the tokens that are allowed; None for all
    logprobs: int | None = None  # how many most likely tokens are reported; None: nothing is

    @property
    def steps(self) -> tuple[object, ...]:
        """The steps that few batches need: rounds are compiled for them."""
        control = self.control
        parts = self.min_p, self.masks, control and control.penalties, control and control.bias
        return (self.logprobs, *(part is None for part in parts))

    def of(self, rows: mx.array, positions: mx.array) -> RowSettings:
        """The settings of tokens at positions [N] of rows [N], both int32, as N rows."""
        control, masks = self.control, self.masks
        return self._replace(
            temperature=self.temperature[rows],
            kth=self.kth[rows],
            top_p=self.top_p[rows],
            seed=self.seed[rows],
            is_greedy=of_rows(self.is_greedy, rows),
            min_p=of_rows(self.min_p, rows),
            control=None if control is None else control.of(rows),
            masks=None if masks is None else masks[rows, positions][:, None],
        )


class Chosen(NamedTuple):
    """Tokens, and whether the candidates that they were chosen from were enough.

    sure is False if tokens that equal the last of the top_k may be missing. Then choose again with
    `full` set. None stands for True everywhere.
    """

    tokens: mx.array  # int32 [B, T]
    sure: mx.array | None  # bool [B, T]


def row_settings(
    rows: Sequence[SamplingParams | None],
    suppress: mx.array | None = None,
    vocab_size: int = 0,
) -> RowSettings:
    """Resolved settings as arrays; None is a free row. suppress: token ids int32 [S].

    vocab_size: needed with biases.
    """
    filled = [row or FREE for row in rows]

    def column(values: list[Any], dtype: mx.Dtype) -> mx.array:
        return mx.array(values, dtype)[:, None]

    is_greedy = [(row.temperature or 0.0) < LEAST_TEMPERATURE for row in filled]
    temperatures = [
        1 if flag else row.temperature for row, flag in zip(filled, is_greedy, strict=True)
    ]
    # Any top_k may stand next to temperature 0, also more than there are candidates.
    top_ks = [
        NO_FILTER if flag else row.top_k or NO_FILTER
        for row, flag in zip(filled, is_greedy, strict=True)
    ]
    sampled = [row for row, flag in zip(rows, is_greedy, strict=True) if row and not flag]
    is_narrow = [1 <= (row.top_k or 0) <= MOST_TOP_K for row in sampled]
    has_min_p = any(row.min_p for row in sampled)
    return RowSettings(
        temperature=column(temperatures, mx.float32),
        kth=column([-one for one in top_ks], mx.int32),
        top_p=column([row.top_p for row in filled], mx.float32),
        seed=column([row.seed for row in filled], mx.uint32),
        suppress=suppress,
        is_greedy=column(is_greedy, mx.bool_) if any(is_greedy) else None,
        greedy=not sampled,
        filtered=any(row.top_k or row.top_p != 1 for row in sampled),
        narrow=any(is_narrow),
        full=not all(is_narrow),
        min_p=column([row.min_p or 0.0 for row in filled], mx.float32) if has_min_p else None,
        control=control_of(filled, vocab_size),
        logprobs=max((row.logprobs for row in filled if row.logprobs is not None), default=None),
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
    counts: mx.array | None = None,
) -> Chosen:
    """Choose the tokens for position [B, T] from raw logits [B, T, C].

    ids [B, T, C] names the token of each logit, out of vocab_size; without ids C is the
    vocabulary. counts: see `control`; needed with penalties. The softcap is monotone, so a greedy
    choice skips it, unless the logits are changed after it. Equal values go to the lowest token id.
    The result is the same with and without `settings.full`, if it is sure.
    """
    size = vocab_size or logits.shape[-1]
    logits = _bar(logits, ids, settings.suppress)
    if settings.masks is not None:
        barred = mx.array(-mx.inf, logits.dtype)
        logits = mx.where(is_allowed(settings.masks, size, ids), logits, barred)
    if settings.control is not None:
        logits, softcap = _changed(logits, settings, softcap, counts, ids), None
    if settings.greedy:
        return Chosen(_best(logits, ids, size), None)
    tokens, sure = _draw(logits, position, settings, softcap, ids, size)
    if settings.is_greedy is not None:
        tokens = mx.where(settings.is_greedy, _best(logits, ids, size), tokens)
        sure = None if sure is None else sure | settings.is_greedy
    return Chosen(tokens, sure)


def _changed(
    logits: mx.array,
    settings: RowSettings,
    softcap: float | None,
    counts: mx.array | None,
    ids: mx.array | None,
) -> mx.array:
    """Return the logits in float32, capped and changed; rows without control are as they were."""
    control, raw = settings.control, logits.astype(mx.float32)
    assert control is not None
    scores = _capped(raw, softcap)
    if softcap is not None and settings.is_greedy is not None:
        scores = mx.where((settings.is_greedy & ~control.changes)[..., None], raw, scores)
    return changed(scores, control, counts, ids)


def _draw(
    logits: mx.array,
    position: mx.array,
    settings: RowSettings,
    softcap: float | None,
    ids: mx.array | None,
    size: int,
) -> Chosen:
    """Draw from the best NUM_CANDIDATES logits if every row has a small top_k, or else from all."""
    left_out: mx.array | None = None
    if not settings.full and narrows(logits.shape[-1]):
        logits, ids, left_out = candidates(logits, ids)
    scores = _scores(logits, settings, softcap)
    threshold = sure = None
    if left_out is not None:
        ranked = mx.sort(scores, axis=-1)
        kth = _kth(ranked, settings.kth[..., None])
        threshold = _threshold(ranked, kth, settings.top_p[..., None])
        sure = _is_below(_scores(left_out, settings, softcap), kth - ROUNDING * mx.abs(kth))[..., 0]
    elif settings.filtered:
        threshold = _threshold_of_all(scores, settings)
    if settings.min_p is not None:
        least = scores.max(axis=-1, keepdims=True) + mx.log(settings.min_p)[..., None]
        threshold = least if threshold is None else mx.maximum(threshold, least)
    values = scores + gumbel(settings.seed, position, size, ids)
    if threshold is not None:
        values = mx.where(scores >= threshold, values, -mx.inf)
    return Chosen(_best(values, ids, size), sure)


def gumbel(seed: mx.array, position: mx.array, size: int, ids: mx.array | None = None) -> mx.array:
    """Gumbel noise float32 [B, T, C] of seed [B, 1], position [B, T] and token `ids` [B, T, C].

    Without ids, of all `size` tokens. Each number is a function of its own three: it doesn't depend
    on which other tokens there are. Two tokens share a key, which gives two random words.
    """
    seed, position = (part[..., None, None].astype(mx.uint32) for part in (seed, position))
    pairs = mx.arange((size + 1) // 2)[:, None] if ids is None else ids[..., None] >> 1
    # 64 bits of a key for 32 of the seed, 17 of the pair, and the position: its upper bits, from
    # 32,768 on, change the seed.
    low = position << PAIR_BITS ^ pairs.astype(mx.uint32)
    high = seed ^ (position >> (32 - PAIR_BITS)) * SPREAD
    words = _threefry(mx.where(mx.array([True, False]), high, low))
    if ids is None:
        words = words.reshape(*words.shape[:-2], -1)[..., :size]
    else:
        words = mx.where((ids & 1) == 0, words[..., 0], words[..., 1])
    # A uniform number in (-1, 0). Near 0, where the large noise comes from, all 32 bits count.
    minus_uniform = mx.minimum(words.astype(mx.float32) * -(2.0**-32 - 2.0**-56), -(2.0**-33))
    return mx.log(-1 / mx.log1p(minus_uniform))  # -log(-log(1 - uniform))


def _threefry(keys: mx.array) -> mx.array:
    """Two random words uint32 [..., 2] for each key [..., 2] (Threefry: Salmon et al. 2011)."""
    return mx.vmap(lambda key: mx.random.split(key, 1))(keys.reshape(-1, 2)).reshape(keys.shape)


def _bar(logits: mx.array, ids: mx.array | None, suppress: mx.array | None) -> mx.array:
    """Set the logits of suppressed tokens to -inf, in place if nobody else holds the logits."""
    if suppress is None:
        return logits
    least = mx.array(-mx.inf, logits.dtype)
    if ids is not None:
        return mx.where((ids[..., None] == suppress).any(axis=-1), least, logits)
    places = mx.broadcast_to(suppress, (*logits.shape[:-1], len(suppress)))
    return mx.put_along_axis(logits, places, least, axis=-1)


def _best(values: mx.array, ids: mx.array | None, size: int) -> mx.array:
    """Return the token int32 [B, T] of the largest value [B, T, C]; the lowest id of equal ones."""
    if ids is None:
        return mx.argmax(values, axis=-1).astype(mx.int32)
    is_best = values == values.max(axis=-1, keepdims=True)
    return mx.where(is_best, ids, size - 1).min(axis=-1).astype(mx.int32)


def _capped(logits: mx.array, softcap: float | None) -> mx.array:
    """Return float32 logits after the softcap; -inf stays, which it would make finite."""
    scores = capped(logits, softcap)
    return scores if softcap is None else mx.where(logits == -mx.inf, -mx.inf, scores)


def _scores(logits: mx.array, settings: RowSettings, softcap: float | None) -> mx.array:
    """Return logits / temperature in float32."""
    return _capped(logits.astype(mx.float32), softcap) / settings.temperature[..., None]


def _kth(ranked: mx.array, place: mx.array) -> mx.array:
    """Return the score [B, T, 1] at this place, from the end if negative, of ascending scores."""
    return mx.take_along_axis(ranked, mx.broadcast_to(place, (*ranked.shape[:-1], 1)), axis=-1)


def _threshold(ranked: mx.array, kth: mx.array, top_p: mx.array) -> mx.array:
    """Return the least score [B, T, 1] inside top_k and top_p, from ascending scores.

    top_k comes first, as in Transformers; top_p is the smallest set of that probability in what is
    left. Equal scores stay or go together.
    """
    shares = mx.where(ranked >= kth, mx.exp(ranked - ranked[..., -1:]), 0)
    larger = mx.cumsum(shares, axis=-1, reverse=True, inclusive=False)
    inside = (larger < top_p * (larger[..., :1] + shares[..., :1])) | (top_p >= 1)
    lowest = mx.where(inside, ranked, mx.inf).min(axis=-1, keepdims=True)
    return mx.maximum(kth, lowest)


def _is_below(score: mx.array, kth: mx.array) -> mx.array:
    """True if tokens of this score or less are outside top_k."""
    return (score < kth) | (score == -mx.inf)


def _threshold_of_all(scores: mx.array, settings: RowSettings) -> mx.array:
    """Return the `_threshold` [B, T, 1] of each row in the scores of the whole vocabulary."""
    place, top_p = settings.kth[..., None], settings.top_p[..., None]
    ranked = mx.sort(scores, axis=-1)
    kth = _kth(ranked, mx.maximum(place, -scores.shape[-1]))
    threshold = _threshold(ranked, kth, top_p)
    if not settings.narrow or not narrows(scores.shape[-1]):
        return threshold
    # Sums of other lengths are rounded differently. So a row that might have candidates sums up as
    # many scores, unless top_k leaves more.
    following, best = ranked[..., -NUM_CANDIDATES - 1, None], ranked[..., -NUM_CANDIDATES:]
    fits = (place < 0) & (place >= -MOST_TOP_K) & _is_below(following, kth)
    return mx.where(fits, _threshold(best, kth, top_p), threshold)
