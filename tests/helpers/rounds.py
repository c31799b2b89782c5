"""Single rounds of a pair in float32, and what their cache's buffers hold."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from helpers.checkpoints import VOCAB, PairPaths
from helpers.forced import Row
from mlx_gemma_mtp import Engine, SamplingParams
from mlx_gemma_mtp.decode.player import Draft, RoundPlayer, round_player
from mlx_gemma_mtp.decode.round import (
    Agree,
    Copies,
    Layout,
    Newest,
    Round,
    agreeing_prefix,
    draft,
    first_token,
    prefill,
    verify,
)
from mlx_gemma_mtp.decode.sampling import RowSettings
from mlx_gemma_mtp.engine.pair import open_pair
from mlx_gemma_mtp.files.weights import load_drafter, load_target
from mlx_gemma_mtp.model.cache import Buffers, KVCache
from mlx_gemma_mtp.model.drafter import Drafter
from mlx_gemma_mtp.model.packing import Packing
from mlx_gemma_mtp.model.target import Target

MOST = 16  # the most positions that one forward writes
CAPACITY = 256

GREEDY = SamplingParams(temperature=0, top_k=0, top_p=1, seed=1)
SAMPLED = SamplingParams(temperature=1, top_k=0, top_p=1, seed=2)
FILTERED = SamplingParams(temperature=1, top_k=64, top_p=0.95, seed=3)


class Models(NamedTuple):
    target: Target
    drafter: Drafter


def load_models(pair: PairPaths) -> Models:
    target = load_target(pair.target, dtype=mx.float32)
    return Models(target, load_drafter(pair.drafter, target.config, dtype=mx.float32))


@dataclass
class Start:
    """What a round starts from."""

    cache: KVCache
    newest: Newest

    def copy(self) -> "Start":
        """The same in buffers of its own."""
        old = self.cache
        keys, values = ([mx.array(np.array(b)) for b in part] for part in (old.keys, old.values))
        return Start(KVCache(old.config, Buffers(old.offset, keys, values)), self.newest)


def start(
    target: Target, rng: np.random.Generator, offsets: list[int], capacity: int = CAPACITY
) -> Start:
    """Rows with this many committed positions of random text.

    Beyond the offset they hold stale keys and values, as after rejected drafts. Offset 0 is a row
    that was never used.
    """
    size, longest = len(offsets), max(offsets)
    cache = KVCache.empty(target.config, size, capacity=capacity, most=MOST, dtype=mx.float32)
    offset = mx.array(offsets, mx.int32)
    hidden = mx.zeros((size, 1, target.config.hidden_size))
    for first in range(0, longest, MOST):
        tokens = mx.array(rng.integers(0, VOCAB, (size, min(MOST, longest - first))))
        # A row never has more stale positions than one forward writes.
        cache.offset = mx.minimum(mx.array(first), offset)
        hidden = target(tokens, cache)[:, -1:]
    used = offset[:, None, None, None] > 0
    cache.keys = [mx.where(used, buffer, 0) for buffer in cache.keys]
    cache.values = [mx.where(used, buffer, 0) for buffer in cache.values]
    cache.offset = offset
    token = mx.where(offset > 0, mx.array(rng.integers(0, VOCAB, size)), 0).astype(mx.int32)
    newest = Newest(token, mx.where(used[..., 0], hidden, 0))
    mx.eval(cache.buffers, newest)
    return Start(cache, newest)


def prefilled(target: Target, prompts: mx.array, settings: RowSettings) -> Start:
    """Rows whose prompts [B, T] were just read."""
    cache = KVCache.empty(target.config, len(prompts), capacity=32, most=MOST, dtype=mx.float32)
    size, length = prompts.shape
    hidden = prefill(target, cache, prompts, 0, [length] * size)
    return Start(cache, first_token(target, cache, hidden, settings).newest)


def after_prompts(models: Models, rows: Sequence[Row], *, room: int, most: int) -> Start:
    """Rows side by side, whose prompts were read one by one; the first token of each is chosen.

    room: for positions after each prompt. most: see `KVCache.empty`.
    """
    config, lengths = models.target.config, [len(row.prompt) for row in rows]
    sizes = {"most": most, "dtype": mx.float32, "slot_step": 1}
    cache = KVCache.empty(config, len(rows), capacity=max(lengths) + room, **sizes)
    hidden = []
    for number, row in enumerate(rows):
        own = KVCache.empty(config, 1, capacity=lengths[number], **sizes)
        hidden.append(prefill(models.target, own, mx.array([row.prompt]), 0, [lengths[number]]))
        cache.take_over(own, [(number, 0, lengths[number])])
    cache.offset = mx.array(lengths, mx.int32)
    token = mx.array([row.tokens[0] for row in rows], mx.int32)
    return Start(cache, Newest(token, mx.concatenate(hidden)))


def speculate(
    target: Target,
    drafter: Drafter,
    cache: KVCache,
    newest: Newest,
    settings: RowSettings,
    layout: Layout,
    num_steps: int,
    *,
    draft: Draft = draft,
    agree: Agree = agreeing_prefix,
) -> Round:
    """Both halves of a round; the layout has as many positions as it has steps, or a packing."""
    drafts = draft(target, drafter, cache, newest, settings, num_steps)
    if layout.packing is not None:
        missing = layout.packing.places.shape[1] - 1 - drafts.shape[1]
        drafts = mx.pad(drafts, [(0, 0), (0, missing)])
    return verify(target, cache, newest, settings, layout, drafts, agree=agree)


def play(
    models: Models,
    at: Start,
    settings: RowSettings,
    max_accepted: list[int],
    num_steps: int,
    packing: Packing | None = None,
    copies: Copies | None = None,
    **functions: Any,
) -> Round:
    """Play one round and advance `at`. functions: `draft` and `agree` of speculate."""
    layout = Layout(mx.array(max_accepted, mx.int32), packing, copies)
    played = speculate(*models, at.cache, at.newest, settings, layout, num_steps, **functions)
    mx.eval(played, at.cache.buffers)
    at.newest = played.newest
    return played


def watched_engine(pair: PairPaths, watch: Callable[..., Round]) -> Engine:
    """An engine that verifies by watch(verify, arguments of verify)."""

    def player(*models: Any) -> RoundPlayer:
        halves = round_player(*models)
        return halves._replace(verify=partial(watch, halves.verify))

    return Engine(open_pair(*pair), player=player)


def buffers(cache: KVCache) -> list[mx.array]:
    return [*cache.keys, *cache.values]


def copies(cache: KVCache) -> list[np.ndarray]:
    return [np.array(buffer) for buffer in buffers(cache)]


def addresses(cache: KVCache) -> list[int]:
    """Where the buffers lie in memory. Keeps no view of them."""
    return [np.array(buffer, copy=False).ctypes.data for buffer in buffers(cache)]
