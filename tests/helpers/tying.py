"""A fake target whose logits tie, so that some choices among candidates are not sure."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np

from helpers.fake_target import VOCAB, FakeTarget
from mlx_gemma_mtp.decode.round import Newest
from mlx_gemma_mtp.decode.sampling import choose
from mlx_gemma_mtp.model.cache import KVCache


class TyingTarget(FakeTarget):
    """Its next token is one of 4,096, by logits of seven values: hundreds tie at any edge.

    Every third hidden state has a hundred favourites, so that its choice is sure.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        super().__init__()
        table = rng.integers(0, 7, (VOCAB, 4096))
        table[::3, :2000:20] += rng.integers(8, 20, 100)
        self._table = mx.array(table.astype(np.float32))

    def logits(self, hidden: mx.array) -> mx.array:
        return self._table[hidden[..., 0].astype(mx.int32)]


def guess(target: FakeTarget, _: object, cache: KVCache, newest: Newest, *rest: Any) -> mx.array:
    """Drafts of the target itself, right unless a choice is not sure."""
    settings, num_draft_tokens = rest
    own, token = KVCache(cache.config, cache.buffers), newest.token
    drafts = [mx.zeros((len(token), 0), mx.int32)]
    for _step in range(num_draft_tokens):
        logits = target.logits(target(token[:, None], own))
        own.offset = own.offset + 1
        token = choose(logits, own.offset[:, None], settings).tokens[:, 0]
        drafts.append(token[:, None])
    return mx.concatenate(drafts, axis=1)
