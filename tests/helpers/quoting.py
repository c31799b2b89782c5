"""A fake target whose output quotes itself, with a change now and then."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from helpers.fake_target import CONFIG, FakeTarget, output
from mlx_gemma_mtp.model.cache import KVCache, Reach
from mlx_gemma_mtp.model.layer_config import LayerKind

DISTANCE = 23  # from a token to its repetition
CHANGE = 17  # positions that are multiples of this quote nothing


def quoting(prompt: Sequence[int], num_tokens: int) -> list[int]:
    """The tokens that the target generates after this prompt."""
    ids = list(prompt)
    for _ in range(num_tokens):
        quotes = len(ids) % CHANGE and len(ids) >= DISTANCE
        ids.append(ids[-DISTANCE] if quotes else output(ids, 1)[0])
    return ids[len(prompt) :]


class QuotingTarget(FakeTarget):
    """Quotes what a full-attention layer of the cache holds."""

    def _through(
        self, tokens: mx.array, cache: KVCache, reaches: dict[LayerKind, Reach]
    ) -> mx.array:
        hidden = super()._through(tokens, cache, reaches)
        position = cache.offset[:, None] + mx.arange(1, tokens.shape[1] + 1)
        keys = cache.keys[CONFIG.last_owner("full_attention")]
        held, at = keys[:, 0, :, 0], mx.maximum(position - DISTANCE, 0)
        quotes = (position % CHANGE != 0) & (position >= DISTANCE)
        quoted = mx.take_along_axis(held, at, axis=1)
        return mx.where(quotes[..., None], quoted[..., None], hidden)
