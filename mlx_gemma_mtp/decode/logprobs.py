"""Log-probabilities of chosen tokens, and of the most likely ones, by the logits as they come.

Knows nothing of settings or of how tokens are chosen.
"""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx

from mlx_gemma_mtp.decode.candidates import NUM_BLOCKS, candidates, narrows
from mlx_gemma_mtp.decode.sampling import capped


class Logprobs(NamedTuple):
    """Natural logarithms, at each position; the most likely tokens come last."""

    chosen: mx.array  # float32 [B, T]
    top_ids: mx.array  # int32 [B, T, N]
    top: mx.array  # float32 [B, T, N]


def logprobs(
    logits: mx.array, chosen: mx.array, count: int | None, softcap: float | None
) -> Logprobs | None:
    """Return those of the tokens chosen [B, T], and of the `count` most likely ones; None for None.

    From raw logits [B, T, V]. Of equal ones, those with lower ids are among the most likely.
    """
    if count is None:
        return None
    scores = capped(logits.astype(mx.float32), softcap)
    total = _total(scores)
    own = mx.take_along_axis(scores, chosen[..., None], axis=-1) - total
    if count == 0:
        return Logprobs(own[..., 0], chosen[..., None][..., :0], own[..., :0])
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


def _total(scores: mx.array) -> mx.array:
    """Return the logarithm [B, T, 1] of the sum of exponentials.

    By blocks: one long sum in float32 is off by more than 1e-4, and GPUs are slow at it.
    """
    if narrows(scores.shape[-1]):
        blocks = scores.reshape(*scores.shape[:-1], NUM_BLOCKS, -1)
        scores = mx.logsumexp(blocks, axis=-1)
    return mx.logsumexp(scores, axis=-1, keepdims=True)


def _ordered(scores: mx.array) -> mx.array:
    """Return uint32 numbers in the order of float32 scores."""
    bits = (scores + 0.0).view(mx.uint32)  # -0 equals 0
    sign, every = mx.array(2**31, mx.uint32), mx.array(2**32 - 1, mx.uint32)
    return bits ^ mx.where(bits >= sign, every, sign)
