"""How nearly two tokens tie at a place in a text, and how near may be mere rounding.

One plain pass of the target gives the logits there. Knows nothing of engines, nor of who wrote
the texts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from mlx_gemma_mtp.decode.params import SamplingParams
from mlx_gemma_mtp.decode.round import prefill
from mlx_gemma_mtp.memory import Limits
from mlx_gemma_mtp.model.cache import KVCache, capacity_for
from mlx_gemma_mtp.model.target import Target

CHUNKS = Limits().chunks

# Summing in another order moved what a random 31B of 12 layers thinks of two tokens by 1.25 in the
# median, by 8 at the 99th percentile and 14.5 at most, in bfloat16. Larger models have more layers.
NEAR_ULPS = 16
FARTHEST = 1000.0  # beyond it, a token's way to the filters' edge counts as infinite


class Margin(NamedTuple):
    """By how much two tokens miss a tie, and the most that is still a near tie.

    Both in units of a score, which is logit / temperature. size is infinite where no rounding
    explains one of them: a suppressed token.
    """

    size: float
    bound: float

    @property
    def near_tie(self) -> bool:
        """Is it rounding? Never where the bound is 0, a perfect tie included."""
        return self.bound > 0 and self.size <= self.bound


class Standing(NamedTuple):
    """Where every token of the vocabulary stands at one position; both arrays are [V].

    score: what `sampling.choose` maximizes, before the filters: at temperature 0 the logit, else
    capped logit / temperature + noise. depth: how far its logit / temperature lies inside top_k
    and top_p, below 0 outside; infinite without filters, minus infinity for a suppressed token.
    """

    score: np.ndarray
    depth: np.ndarray

    def shortfall(self, token: int) -> float:
        """What keeps a token from being chosen: 0 for the one that is.

        It must come inside the filters, and each token that scores higher must lose its lead or
        fall out of them, whichever is nearer: two runs may draw the filters' edge differently.
        """
        leads = np.minimum(self.score - self.score[token], self.depth)
        return max(float(leads.max()), float(-self.depth[token]), 0.0)


def margin(
    target: Target,
    ids: Sequence[int],
    tokens: tuple[int, int],
    params: SamplingParams,
    suppressed: int | Sequence[int] = (),
) -> Margin:
    """The margin between two tokens that were chosen after `ids`, prompt and text.

    params: resolved. It is the larger shortfall of the two, so where one of them scores highest
    and both are inside the filters, the difference of their scores. The bound is 0 where
    activations and weights are float32; else NEAR_ULPS units in the last place of the larger of the
    two logits in the activations' type, over the temperature where there is one. To be called on
    the thread that does all MLX work.
    """
    logits = _logits(target, ids)
    where = standing(logits, len(ids), params, target.config.final_logit_softcapping, suppressed)
    size = max(where.shortfall(token) for token in tokens)
    if is_exact(target):
        return Margin(size, 0.0)
    larger = float(np.abs(np.array(logits.astype(mx.float32))[list(tokens)]).max())
    _, exponent = math.frexp(larger)  # larger is in 2^(exponent - 1) .. 2^exponent
    ulp = mx.finfo(target.dtype).eps * 2.0 ** (exponent - 1)
    return Margin(size, NEAR_ULPS * ulp / (params.temperature or 1.0))


def is_exact(target: Target) -> bool:
    """Float32 throughout? Then no text may part."""
    arrays = dict(tree_flatten(target.parameters())).values()
    return all(array.dtype == mx.float32 for array in arrays)


def standing(
    logits: mx.array,
    position: int,
    params: SamplingParams,
    softcap: float | None,
    suppressed: int | Sequence[int] = (),
) -> Standing:
    """Where the tokens stand that might be chosen for this position, from raw logits [V]."""
    barred = np.zeros(len(logits), bool)
    barred[np.array(suppressed, int)] = True
    scaled = logits.astype(mx.float32)
    if not params.temperature:
        return Standing(np.array(scaled), np.where(barred, -np.inf, np.inf))
    if softcap is not None:
        scaled = mx.tanh(scaled / softcap) * softcap
    scaled = scaled / params.temperature
    noise = mx.random.gumbel(logits.shape, key=mx.array([params.seed, position], mx.uint32))
    depth = _depth(np.where(barred, -np.inf, np.array(scaled)), params)
    return Standing(np.array(scaled + noise), depth)


def _depth(scaled: np.ndarray, params: SamplingParams) -> np.ndarray:
    """How far inside top_k and top_p each token lies, of logits / temperature [V].

    That is the least x so that the token may cross the edge when logits change by x against each
    other: it then passes the tokens within x, and the odds of those still before it change by a
    factor of e^x at most. Found by bisection, for all tokens at once.
    """
    ranked = -np.sort(-scaled.astype(np.float64))
    num_fitting = min(params.top_k or len(ranked), np.isfinite(ranked).sum())
    mass = np.exp(ranked[:num_fitting] - ranked[0]).cumsum()
    # gate[j]: may a token come behind j others? By top_p it may while its log-odds are below 0.
    gate = np.full(len(ranked) + 1, np.inf)
    gate[:num_fitting] = -np.inf
    if params.top_p is not None and params.top_p < 1:
        before = mass[:-1] / mass[-1]
        with np.errstate(divide="ignore"):
            odds = np.log(before) - np.log1p(-before)
        gate[1:num_fitting] = odds - math.log(params.top_p / (1 - params.top_p))

    def num_above(floor: np.ndarray) -> np.ndarray:
        return np.searchsorted(-ranked, -floor)

    inside = gate[num_above(scaled)] < 0
    side = np.where(inside, 1.0, -1.0)
    low, high = np.zeros(len(scaled)), np.full(len(scaled), FARTHEST)
    for _ in range(40):
        x = (low + high) / 2
        # It is no longer before itself when it is above the floor.
        crossed = side * gate[num_above(scaled - side * x) - inside] + x >= 0
        low, high = np.where(crossed, low, x), np.where(crossed, x, high)
    return side * np.where(high < FARTHEST, high, np.inf)


def _logits(target: Target, ids: Sequence[int]) -> mx.array:
    """The target's raw logits [V] for the token after ids."""
    most = min(CHUNKS[-1], len(ids))
    capacity = capacity_for(len(ids))
    cache = KVCache.empty(target.config, 1, capacity=capacity, most=most, dtype=target.dtype)
    for start in range(0, len(ids), most):
        hidden = prefill(target, cache, mx.array([ids[start : start + most]]))
        mx.eval(hidden, cache.keys, cache.values)
    return target.logits(hidden)[0, 0]
