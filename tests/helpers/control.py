"""Rules for outputs, and a plain loop over logits that settings and rules must agree with."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from mlx_gemma_mtp import Engine, SamplingParams
from mlx_gemma_mtp.decode.constraint import Mask
from mlx_gemma_mtp.decode.sampling import gumbel
from mlx_gemma_mtp.engine.pair import OpenPair
from mlx_gemma_mtp.engine.request import Request
from mlx_gemma_mtp.engine.worker import mlx_worker
from mlx_gemma_mtp.model.cache import KVCache, capacity_for

NEAR = 1e-4  # logits of other passes may be off by this


class HashRule:
    """Allows tokens by a hash of the output so far: many, few, one, or all (None)."""

    def __init__(self, seed: int, vocab_size: int, suppressed: Sequence[int] = ()) -> None:
        self.tokens: list[int] = []
        self._seed, self._size, self._suppressed = seed, vocab_size, list(suppressed)

    def allowed(self, prefix: Sequence[int]) -> np.ndarray | None:
        """Of each token; None if all are allowed."""
        rng = np.random.default_rng([self._seed, *prefix])
        share = (0.0, 0.02, 0.3, 0.9, None)[rng.integers(5)]
        if share is None:
            return None
        may = rng.random(self._size) < share
        may[rng.choice(np.setdiff1d(np.arange(self._size), self._suppressed))] = True
        return may

    def masks(self, tokens: Sequence[int]) -> list[Mask | None]:
        prefix, found = list(self.tokens), list[Mask | None]()
        for token in [*tokens, -1]:
            may = self.allowed(prefix)
            found.append(None if may is None else packed(may))
            if token < 0 or (may is not None and not may[token]):
                break
            prefix.append(token)
        return found

    def is_free(self, count: int) -> bool:
        return False

    def forced(self, count: int) -> list[int]:
        found = list[int]()
        while len(found) < count:
            may = self.allowed([*self.tokens, *found])
            if may is None or may.sum() != 1:
                break
            found.append(int(may.argmax()))
        return found

    def accept(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            may = self.allowed(self.tokens)
            assert may is None or may[token]
            self.tokens.append(token)


def packed(may: np.ndarray) -> Mask:
    bits = np.zeros(-(-len(may) // 32) * 32, np.bool_)
    bits[: len(may)] = may
    return np.packbits(bits, bitorder="little").view(np.uint32)


class Ruled(Engine):
    """An engine whose requests with one of these seeds have a rule."""

    rules: dict[int, Any]  # from a seed to what makes a new constraint

    def _request(self, *args: Any, **options: Any) -> Request:
        request = super()._request(*args, **options)
        make = getattr(self, "rules", {}).get(request.params.seed)
        request.constraint = make() if make else None
        return request


class Logits(NamedTuple):
    """Of one pass over a prompt and its output, at each token of the output: [n, V]."""

    raw: np.ndarray
    capped: np.ndarray
    noise: np.ndarray


def logits_of(pair: OpenPair, prompt: Sequence[int], tokens: Sequence[int], seed: int) -> Logits:
    target, ids = pair.target, [*prompt, *tokens[:-1]]

    def run() -> Logits:
        sizes = {"capacity": capacity_for(len(ids)), "most": len(ids), "dtype": target.dtype}
        cache = KVCache.empty(target.config, 1, **sizes)
        raw = target.logits(target(mx.array([ids]), cache))[0, len(prompt) - 1 :]
        raw = raw.astype(mx.float32)
        cap = target.config.final_logit_softcapping
        capped = raw if cap is None else mx.tanh(raw / cap) * cap
        position = mx.arange(len(prompt), len(ids) + 1)[None]
        noise = gumbel(mx.array([[seed]], mx.uint32), position, raw.shape[-1])[0]
        return Logits(np.array(raw), np.array(capped), np.array(noise))

    return mlx_worker().run(run)


def assert_as_in_a_loop(
    pair: OpenPair,
    prompt: Sequence[int],
    params: SamplingParams,
    tokens: Sequence[int],
    rule: HashRule | None = None,
) -> bool:
    """Every token is the one of a plain loop in numpy. params: resolved.

    Returns whether no other token would be right as well, anywhere.
    """
    assert params.seed is not None
    found = logits_of(pair, prompt, tokens, params.seed)
    count = np.zeros(found.raw.shape[1], np.int32)
    seen = count.astype(bool)
    seen[list(prompt)] = True
    decided = 0
    for at, token in enumerate(tokens):
        right, sure = _best(
            found, at, params, count, seen, rule and rule.allowed(tokens[:at]), pair
        )
        assert token in right, f"token {at}, {params}"
        decided += sure
        count[token] += 1
        seen[token] = True
    assert decided > 0.8 * len(tokens)
    return decided == len(tokens)


def _best(
    found: Logits,
    at: int,
    params: SamplingParams,
    count: np.ndarray,
    seen: np.ndarray,
    may: np.ndarray | None,
    pair: OpenPair,
) -> tuple[set[int], bool]:
    """The tokens that may be right, and whether it is one."""
    repetition = params.repetition_penalty or 1.0
    penalized = repetition != 1 or params.presence_penalty or params.frequency_penalty
    greedy = not params.temperature
    plain = greedy and not penalized and not params.logit_bias
    x = (found.raw if plain else found.capped)[at].astype(np.float64)
    x = np.where(seen, np.where(x > 0, x / repetition, x * repetition), x)
    x = x - params.presence_penalty * (count > 0) - params.frequency_penalty * count
    for token, value in params.logit_bias.items():
        x[token] += -np.inf if value == -100 else value
    if may is not None:
        x[~may] = -np.inf
    x[pair.default_tokens("suppress_tokens")] = -np.inf
    near = NEAR * max(1.0, repetition) * max(1.0, np.abs(found.raw[at]).max() / 30)
    if not greedy:
        x = x / params.temperature
        near /= params.temperature
        least = -np.inf
        if params.top_k:
            least = np.sort(x)[-min(params.top_k, len(x))]
        probabilities = np.where(x >= least, np.exp(x - x.max()), 0)
        if params.top_p is not None and params.top_p < 1:
            order = np.argsort(-x)
            mass = np.cumsum(probabilities[order]) / probabilities.sum()
            least = max(least, x[order[int((mass < params.top_p).sum())]])
        if params.min_p:
            least = max(least, x.max() + np.log(params.min_p))
        x = np.where(x >= least - near, x + found.noise[at], -np.inf)
    right = np.flatnonzero(x >= x.max() - 2 * near)
    return set(right.tolist()), len(right) == 1
