"""Logits of one fixed text from this runtime and mlx-lm, and when two implementations agree."""

from typing import Any

import mlx.core as mx
import numpy as np

from helpers.checkpoints import VOCAB
from mlx_gemma_mtp.model.cache import KVCache
from mlx_gemma_mtp.model.target import Target

LENGTH = 24  # tokens; longer than any window of the tiny models
# A share of the largest logit, because float32's rounding grows with it. The largest difference in
# 3,520 drafts from Transformers' was a share of 2e-5.
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
    """The logits of an mlx-lm model, after the softcap: [T, V]."""
    return np.array(model(text(), cache=model.make_cache())[0])


def assert_logits_agree(found: np.ndarray, expected: np.ndarray, where: str = "") -> None:
    """Assert that the float32 logits of two implementations are equal up to rounding."""
    most = TOLERANCE * np.abs(expected).max()
    np.testing.assert_allclose(found, expected, atol=most, rtol=0, err_msg=where)
