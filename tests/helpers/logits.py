"""Logits over one fixed text, by this runtime and by mlx-lm, and when two implementations agree."""

from typing import Any

import mlx.core as mx
import numpy as np

from helpers.checkpoints import VOCAB
from mlx_gemma_mtp.model.cache import KVCache
from mlx_gemma_mtp.model.target import Target

LENGTH = 24  # tokens; longer than any window of the tiny models
# Of the largest logit, since what float32 rounds off grows with it. The largest difference of 3,520
# drafts from Transformers' was 2e-5 of it.
TOLERANCE = 1e-4


def text() -> mx.array:
    """Token ids [1, LENGTH]."""
    return mx.array([np.random.default_rng(0).integers(0, VOCAB, LENGTH).tolist()])


def logits(target: Target) -> np.ndarray:
    """Before the softcap: [T, V]."""
    cache = KVCache.empty(target.config, 1, capacity=32, most=LENGTH, dtype=target.dtype)
    found = np.array(target.logits(target(text(), cache))[0])
    assert np.isfinite(found).all()
    assert found.std() > 0.3  # flat logits would prove nothing
    return found


def capped_logits(target: Target) -> np.ndarray:
    """After the softcap: [T, V]."""
    cap = target.config.final_logit_softcapping
    assert cap is not None
    return np.tanh(logits(target) / cap) * cap


def logits_of_mlx_lm(model: Any) -> np.ndarray:
    """Of a model of mlx-lm's, after the softcap: [T, V]."""
    return np.array(model(text(), cache=model.make_cache())[0])


def assert_logits_agree(found: np.ndarray, expected: np.ndarray, where: str = "") -> None:
    """Logits of two implementations, both in float32."""
    most = TOLERANCE * np.abs(expected).max()
    np.testing.assert_allclose(found, expected, atol=most, rtol=0, err_msg=where)
