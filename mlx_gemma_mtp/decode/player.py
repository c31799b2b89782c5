"""The two halves of a round as an engine plays them: compiled, for one pair.

Knows nothing of what a round is made of.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import mlx.core as mx

from mlx_gemma_mtp.decode.round import (
    Agree,
    Layout,
    Newest,
    Pass,
    Round,
    agreeing_prefix,
    draft,
    judge,
    run,
    verify,
)
from mlx_gemma_mtp.decode.sampling import RowSettings
from mlx_gemma_mtp.device import compiled
from mlx_gemma_mtp.model.cache import Buffers, KVCache
from mlx_gemma_mtp.model.drafter import Drafter
from mlx_gemma_mtp.model.target import Target

MOST_CAPACITIES = 8  # whose compiled rounds are kept

Draft = Callable[[Target, Drafter | None, KVCache, Newest, RowSettings, int], mx.array]


class RoundPlayer(NamedTuple):
    """The two halves of a round for one pair, so that the host can do something in between.

    draft(cache, newest, settings, num_steps) returns drafts [B, num_steps] and changes nothing.
    verify(cache, newest, settings, layout, drafts [B, T - 1]) returns the Round and advances the
    cache. Both only lay out their half; the caller dispatches it. If the settings have masks, the
    Round has the pass of the target, which needs neither the masks nor `layout.max_accepted`: it
    can be dispatched before they are known.
    """

    draft: Callable[[KVCache, Newest, RowSettings, int], mx.array]
    verify: Callable[[KVCache, Newest, RowSettings, Layout, mx.array], Round]


def round_player(
    target: Target, drafter: Drafter | None, *, draft: Draft = draft, agree: Agree = agreeing_prefix
) -> RoundPlayer:
    """Both halves for this pair, compiled if the device is a GPU.

    They are traced again for each number of rows, steps, positions, tokens and width, and each
    capacity, but not for each division of the tokens. `Target.ways` must stay as they are. The
    traces of the capacities that were used last are kept.
    """

    def guess(buffers: Buffers, *rest: Any) -> mx.array:
        return draft(target, drafter, KVCache(target.config, buffers), *rest)

    def check(buffers: Buffers, *rest: Any) -> tuple[Round, Buffers]:
        cache = KVCache(target.config, buffers)
        return verify(target, cache, *rest, agree=agree), cache.buffers

    def start(buffers: Buffers, *rest: Any) -> tuple[Pass, Buffers]:
        cache = KVCache(target.config, buffers)
        return run(target, cache, *rest), cache.buffers

    def end(*rest: Any) -> Round:
        return judge(target, *rest, agree=agree)

    @lru_cache(MOST_CAPACITIES)
    def parts(_capacity: int) -> tuple[Any, ...]:
        return compiled(guess), compiled(check), compiled(start), compiled(end)

    def play_draft(cache: KVCache, *rest: Any) -> mx.array:
        drafts: mx.array = parts(cache.capacity("full_attention"))[0](cache.buffers, *rest)
        return drafts

    def play_verify(
        cache: KVCache, newest: Newest, settings: RowSettings, layout: Layout, drafts: mx.array
    ) -> Round:
        _, check, start, end = parts(cache.capacity("full_attention"))
        played: Round
        if settings.masks is None:
            played, cache.buffers = check(cache.buffers, newest, settings, layout, drafts)
            return played
        passed, cache.buffers = start(cache.buffers, newest, layout, drafts)
        played = end(cache.offset, newest, settings, layout, passed)
        cache.offset = cache.offset + played.accepted + 1
        return played._replace(passed=passed)

    return RoundPlayer(play_draft, play_verify)
