"""top_k, top_p and suppressed tokens: which tokens a row may choose."""

from collections.abc import Sequence

import mlx.core as mx
import numpy as np
import pytest

from helpers.draws import SMALL, numbers, params, probabilities, seeds
from mlx_gemma_mtp.decode.params import NO_FILTER
from mlx_gemma_mtp.decode.sampling import _filter, choose, row_settings


def kept(scores: np.ndarray, top_k: Sequence[int], top_p: Sequence[float]) -> np.ndarray:
    """Which scores [N, V] the filter keeps, with the settings of each row."""
    columns = mx.array(top_k, mx.int32), mx.array(top_p, mx.float32)
    out = _filter(mx.array(scores)[:, None], *(column[:, None, None] for column in columns))
    assert ((out == mx.array(scores)[:, None]) | (out == -mx.inf)).all().item()
    return np.isfinite(np.array(out)[:, 0])


@pytest.mark.torch
def test_filters_keep_what_transformers_keeps(rng: np.random.Generator) -> None:
    rows = 200
    scores = numbers(rng, rows, 64)
    top_k = rng.choice([NO_FILTER, 1, 2, 5, 63, 64, 1000], rows)
    top_p = rng.choice([1.0, 1e-6, 0.1, 0.5, 0.8, 0.95, 0.999], rows)
    got = kept(scores, top_k, top_p)
    compared = 0
    for row in range(rows):
        expected = probabilities(scores[row : row + 1], 1.0, int(top_k[row]), float(top_p[row]))[0]
        whole = np.sort(probabilities(scores[row : row + 1], 1.0, int(top_k[row]))[0])
        if np.abs(np.cumsum(whole[::-1]) - top_p[row]).min() < 1e-5 and top_p[row] < 1:
            continue  # in float32 this border may be on either side
        compared += 1
        assert (got[row] == (expected > 0)).all(), f"top_k {top_k[row]}, top_p {top_p[row]}"
    assert compared > 0.9 * rows


def test_equal_scores_stay_or_go_together(rng: np.random.Generator) -> None:
    rows = 200
    scores = rng.integers(-3, 4, (rows, 32)).astype(np.float32)
    top_k = rng.choice([NO_FILTER, 1, 3, 10], rows)
    top_p = rng.choice([1.0, 0.3, 0.7, 0.95], rows)
    got = kept(scores, top_k, top_p)
    for row in range(rows):
        values = np.sort(np.unique(scores[row]))[::-1]
        if top_k[row]:
            least = np.sort(scores[row])[-top_k[row]]
            values = values[values >= least]
        weights = np.array([np.exp(value) * (scores[row] == value).sum() for value in values])
        mass = np.cumsum(weights) / weights.sum()
        if np.abs(mass[:-1] - top_p[row]).min(initial=1) < 1e-5:
            continue
        num_values = 1 + int((mass < top_p[row]).sum()) if top_p[row] < 1 else len(values)
        assert (got[row] == (scores[row] >= values[:num_values].min())).all()


def test_each_row_has_its_own_filter(rng: np.random.Generator) -> None:
    logits = mx.broadcast_to(mx.array(numbers(rng, SMALL)), (3, 400, SMALL))
    rows = [
        params(1.5, k, p, seed)
        for (k, p), seed in zip([(1, 1.0), (3, 1.0), (NO_FILTER, 1.0)], seeds(rng, 3), strict=True)
    ]
    drawn = np.array(
        choose(logits, mx.broadcast_to(mx.arange(400)[None], (3, 400)), row_settings(rows))
    )
    best = np.argsort(np.array(logits[0, 0]))[::-1]
    assert set(drawn[0]) == {best[0]}
    assert set(drawn[1]) == set(best[:3])
    assert len(set(drawn[2])) > 5


@pytest.mark.parametrize("among_candidates", [False, True])
def test_suppressed_tokens_are_never_chosen(
    rng: np.random.Generator, among_candidates: bool
) -> None:
    suppressed = rng.permutation(SMALL)[:4]
    suppress = np.zeros(SMALL, np.float32)
    suppress[suppressed] = -np.inf
    logits = numbers(rng, SMALL)
    logits[suppressed] += 5  # the best if they were allowed
    settings = [(0.0, 0, 1.0), (1.0, 0, 1.0), (1.0, 5, 0.9), (30.0, 0, 1.0), (1e4, 0, 0.99)]
    rows = [params(*one, seed) for one, seed in zip(settings, seeds(rng, 5), strict=True)]
    ids = mx.broadcast_to(mx.array(rng.permutation(SMALL).astype(np.int32)), (5, 500, SMALL))
    for batch in (rows, rows[:1]):
        size = len(batch)
        every = mx.broadcast_to(mx.array(logits), (size, 500, SMALL))
        chosen = choose(
            mx.take_along_axis(every, ids[:size], axis=-1) if among_candidates else every,
            mx.broadcast_to(mx.arange(500)[None], (size, 500)),
            row_settings(batch, mx.array(suppress)),
            softcap=30.0,
            ids=ids[:size] if among_candidates else None,
        )
        for own, tokens in zip(batch, np.array(chosen), strict=True):
            assert not np.isin(tokens, suppressed).any(), own
            if own.temperature == 30.0:
                assert len(set(tokens.tolist())) == SMALL - 4
