"""Settings and logits to draw from, and the probabilities that draws must follow."""

from typing import Any

import numpy as np

from mlx_gemma_mtp import SamplingParams
from mlx_gemma_mtp.decode.params import NO_FILTER

SMALL = 16  # tokens of a small vocabulary
LEAST_P = 1e-4
SOFTCAP = 3.0  # low enough to matter

SETTINGS = {
    "plain": (1.0, NO_FILTER, 1.0),
    "cold": (0.6, NO_FILTER, 1.0),
    "hot, top_k": (1.5, 5, 1.0),
    "top_p": (1.0, NO_FILTER, 0.7),
    "both": (0.9, 8, 0.8),
}


def params(temperature: float, top_k: int, top_p: float, seed: int = 0) -> SamplingParams:
    return SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)


def numbers(rng: np.random.Generator, *shape: int, spread: float = 2.0) -> np.ndarray:
    return (rng.standard_normal(shape) * spread).astype(np.float32)


def seeds(rng: np.random.Generator, count: int) -> list[int]:
    return [int(seed) for seed in rng.choice(2**32, count, replace=False)]


def probabilities(
    logits: np.ndarray,
    temperature: float,
    top_k: int = NO_FILTER,
    top_p: float = 1.0,
    softcap: float | None = None,
) -> np.ndarray:
    """The probabilities that Transformers would sample from, for raw logits [N, V]."""
    import torch
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    scores = torch.from_numpy(logits.astype(np.float64))
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    warpers: list[Any] = [TemperatureLogitsWarper(temperature)]
    warpers += [TopKLogitsWarper(top_k)] if top_k else []
    warpers += [TopPLogitsWarper(top_p)] if top_p < 1 else []
    for warp in warpers:
        scores = warp(None, scores)
    return torch.softmax(scores, dim=-1).numpy()


def p_value(counts: np.ndarray, expected_shares: np.ndarray) -> float:
    """Pearson's chi-square: the chance of counts at least this far from the expected ones.

    Cells that expect fewer than 5 are put together.
    """
    import torch

    counts, expected = counts.ravel(), expected_shares.ravel() * counts.sum()
    assert not counts[expected == 0].any(), "a token of probability 0 was drawn"
    small = expected < 5
    counts = np.append(counts[~small], counts[small].sum())
    expected = np.append(expected[~small], expected[small].sum())
    counts, expected = counts[expected > 0], expected[expected > 0]
    statistic = ((counts - expected) ** 2 / expected).sum()
    freedom = torch.tensor((len(counts) - 1) / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(freedom, torch.tensor(statistic / 2)))
