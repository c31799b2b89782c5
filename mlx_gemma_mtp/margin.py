"""How far two tokens are from a tie at one place of a completion, and what rounding explains.

One plain pass of the target gives the logits there. Knows nothing of engines and drafts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from mlx_gemma_mtp.decode.control import changed, control_of, counts_of_prompts
from mlx_gemma_mtp.decode.params import SamplingParams
from mlx_gemma_mtp.decode.round import prefill
from mlx_gemma_mtp.decode.sampling import capped, gumbel
from mlx_gemma_mtp.engine.pair import OpenPair
from mlx_gemma_mtp.model.cache import KVCache, capacity_for
from mlx_gemma_mtp.model.target import Target

# Summing in another order moved the logit difference of two tokens, in a random 31B of 12 layers in
# bfloat16, by 1.25 units in the last place (median), 8 (99%) and 14.5 (maximum).
NEAR_ULPS = 16
FARTHEST = 1000.0  # a larger distance to the edge of the filters counts as infinite


@dataclass(frozen=True)
class Margin:
    """How far two tokens are from a tie, and the largest distance that rounding explains.

    Both in units of logit / temperature. size is FARTHEST if one of the tokens is suppressed.
    """

    size: float
    bound: float

    def __str__(self) -> str:
        return f"margin {self.size:.2g}, bound {self.bound:.2g}"


def margin(
    pair: OpenPair,
    ids: Sequence[int],
    tokens: tuple[int, int],
    params: SamplingParams,
    chunk: int = 2048,  # tokens that one forward reads, as in an engine
) -> Margin:
    """Return the margin between two tokens that were chosen after `ids`, prompt and completion.

    size is the larger shortfall of the two; bound is NEAR_ULPS units in the last place of the
    larger logit, divided by the temperature, and 0 for a float32 pair. Of what a request may change
    in its logits, only the repetition penalty is known here, because a checkpoint may ask for it.
    Call it on the MLX thread.
    """
    target = pair.target
    most, capacity = min(chunk, len(ids)), capacity_for(len(ids))
    cache = KVCache.empty(target.config, 1, capacity=capacity, most=most, dtype=target.dtype)
    for start in range(0, len(ids), most):
        piece = ids[start : start + most]
        hidden = prefill(target, cache, mx.array([piece]), start, [len(piece)])
        mx.eval(hidden, cache.buffers)
    logits = target.logits(hidden)[0, 0]
    params, suppressed = params.resolved(pair.defaults), pair.default_tokens("suppress_tokens")
    seen, softcap = logits, target.config.final_logit_softcapping
    if (params.repetition_penalty or 1.0) != 1.0:
        seen, softcap = _penalized(logits, params, softcap, ids), None
    found = scores(seen, len(ids), params, softcap, suppressed)
    size = min(max(shortfall(*found, token) for token in tokens), FARTHEST)
    if is_exact(target):
        return Margin(size, 0.0)
    larger = float(mx.abs(logits[mx.array(tokens)]).max())
    ulp = mx.finfo(target.dtype).eps * 2.0 ** (math.frexp(larger)[1] - 1)
    return Margin(size, NEAR_ULPS * ulp / (params.temperature or 1.0))


def _penalized(
    logits: mx.array, params: SamplingParams, softcap: float | None, ids: Sequence[int]
) -> mx.array:
    """Return logits [V] after softcap and repetition penalty, as float32."""
    alone = replace(params, presence_penalty=0.0, frequency_penalty=0.0, logit_bias={})
    control, counts = control_of([alone], len(logits)), counts_of_prompts([ids], len(logits))
    assert control is not None
    raw = capped(logits.astype(mx.float32), softcap)[None, None]
    return changed(raw, control, counts[:, None], None)[0, 0]


def is_exact(target: Target) -> bool:
    """True if all weights are float32: then completions must not differ at all."""
    arrays = dict(tree_flatten(target.parameters()))
    return {array.dtype for array in arrays.values()} == {mx.float32}


def scores(
    logits: mx.array,
    position: int,
    params: SamplingParams,
    softcap: float | None,
    suppressed: Sequence[int],
) -> tuple[np.ndarray, np.ndarray]:
    """Return value and slack of all tokens for this position, both [V], from raw logits [V].

    value: what `sampling.choose` maximizes, without filters. slack: how far logit / temperature is
    inside top_k, top_p and min_p; negative outside, infinite without filters, -inf if suppressed.
    """
    barred = np.isin(np.arange(len(logits)), suppressed)
    scaled = logits.astype(mx.float32)
    if not params.temperature:
        return np.array(scaled), np.where(barred, -np.inf, np.inf)
    scaled = capped(scaled, softcap) / params.temperature
    seed, at = mx.array([[params.seed]], mx.uint32), mx.array([[position]])
    noise = gumbel(seed, at, len(logits))[0, 0]
    inside = np.where(barred, -np.inf, np.array(scaled))
    slack = _slack(inside, params)
    if params.min_p:
        slack = np.minimum(slack, inside - inside.max() - math.log(params.min_p))
    return np.array(scaled + noise), slack


def shortfall(value: np.ndarray, slack: np.ndarray, token: int) -> float:
    """Return how much must change until this token is chosen; 0 for the one that is.

    The token must come inside the filters. Each token with a larger value must lose its lead or
    fall out of the filters, whichever is nearer: two runs may draw their edge differently.
    """
    leads = np.minimum(value - value[token], slack)
    return max(float(leads.max()), float(-slack[token]), 0.0)


def _slack(scaled: np.ndarray, params: SamplingParams) -> np.ndarray:
    """Return how far inside top_k and top_p each token is, from logits / temperature [V].

    That is the least x so that the token may cross the edge when logits move by x against each
    other: it then passes the tokens within x, and the odds of those before it change by a factor of
    e^x at most. Found by bisection, for all tokens at once.
    """
    ranked = -np.sort(-scaled.astype(np.float64))
    num_fitting = min(params.top_k or len(ranked), np.isfinite(ranked).sum())
    mass = np.exp(ranked[:num_fitting] - ranked[0]).cumsum()
    # gate[j]: negative if a token may come after j others. For top_p, the log-odds of their mass.
    gate = np.full(len(ranked) + 1, np.inf)
    gate[:num_fitting] = -np.inf
    if params.top_p is not None and params.top_p < 1:
        before = mass[:-1] / mass[-1]
        with np.errstate(divide="ignore"):
            odds = np.log(before) - np.log1p(-before)
        gate[1:num_fitting] = odds - math.log(params.top_p / (1 - params.top_p))
    inside = gate[np.searchsorted(-ranked, -scaled)] < 0
    side = np.where(inside, 1.0, -1.0)
    low, high = np.zeros(len(scaled)), np.full(len(scaled), FARTHEST)
    for _ in range(40):
        x = (low + high) / 2
        # A token inside is above its own floor by now: it is not counted as one before itself.
        num_before = np.searchsorted(-ranked, side * x - scaled) - inside
        crossed = side * gate[num_before] + x >= 0
        low, high = np.where(crossed, low, x), np.where(crossed, x, high)
    return side * np.where(high < FARTHEST, high, np.inf)
