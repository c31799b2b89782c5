"""Log-probabilities of chosen tokens, and of the most likely ones, by the logits as they come.

Knows nothing of settings or of how tokens are chosen.
"""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx

from mlx_gemma_mtp.decode.candidates import candidates, narrows
from mlx_gemma_mtp.decode.sampling import capped


class Logprobs(NamedTuple):
    """Natural logarithms, at each position; the most likely tokens come last."""

    chosen: mx.array  # float32 [B, T]
    top_ids: mx.array  # int32 [B, T, N]
    top: mx.array  # float32 [B, T, N]


def logprobs(logits: mx.array, chosen: mx.array, count: int, softcap: float | None) -> Logprobs:
    """Return those of the tokens chosen [B, T], and of the `count` most likely ones.

    From raw logits [B, T, V]. Of equal ones, those with lower ids are among the most likely.
    """
    scores = capped(logits.astype(mx.float32), softcap)
    total = mx.logsumexp(scores, axis=-1, keepdims=True)
    own = mx.take_along_axis(scores, chosen[..., None], axis=-1) - total
    if count == 0:
        nothing = mx.zeros((*chosen.shape, 0))
        return Logprobs(own[..., 0], nothing.astype(mx.int32), nothing)
    if narrows(scores.shape[-1]):
        some, ids, _ = candidates(scores, None)
    else:
        some, ids = scores, mx.arange(scores.shape[-1], dtype=mx.int32)
    last = mx.array(2**32 - 1, mx.uint64)
    # Numbers that sort by score first, and then from the last id to the first.
    order = _ordered(some).astype(mx.uint64) << 32 | (last - ids.astype(mx.uint64))
    best = mx.sort(order, axis=-1)[..., -count:]
    top_ids = (last - (best & last)).astype(mx.int32)
    top = mx.take_along_axis(scores, top_ids, axis=-1) - total
    return Logprobs(own[..., 0], top_ids, top)


def _ordered(scores: mx.array) -> mx.array:
    """Return uint32 numbers in the order of float32 scores."""
    bits, sign = (scores + 0.0).view(mx.uint32), mx.array(2**31, mx.uint32)  # -0 equals 0
    return mx.where(bits >= sign, ~bits, bits | sign)
