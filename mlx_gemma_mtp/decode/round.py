"""One round of speculative decoding for B rows: draft, verify, accept.

The text is the target's own (Leviathan et al. 2023, in its sample-matching form): every emitted
token is the one `sampling.choose` takes from the target's logits, so drafts decide only how many
of them a round yields. Nothing here reads the device from the host.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import mlx.core as mx

from mlx_gemma_mtp.decode.sampling import RowSettings, choose
from mlx_gemma_mtp.device import backend
from mlx_gemma_mtp.model.cache import KVCache
from mlx_gemma_mtp.model.drafter import Drafter
from mlx_gemma_mtp.model.target import Target


class Head(NamedTuple):
    """Where every row stands: what the next round starts from."""

    newest: mx.array  # int32 [B], emitted, not yet in the cache
    hidden: mx.array  # [B, 1, H], the target's state that produced it


class Round(NamedTuple):
    """What one round gave: row b's new tokens are tokens[b, : accepted[b] + 1]."""

    tokens: mx.array  # int32 [B, K + 1]
    accepted: mx.array  # int32 [B]
    head: Head
    distinct_experts: mx.array | None  # float32 [], of a layer, see `count_distinct`


def speculate(
    target: Target,
    drafter: Drafter | None,
    cache: KVCache,
    head: Head,
    settings: RowSettings,
    limit: mx.array,
    num_draft_tokens: int,
) -> Round:
    """Draft K tokens, verify them in one pass of the target, commit the agreeing prefix.

    limit [B] is the most drafts a row may accept; -1 leaves the row where it is (a free row).
    K = 0 is plain decoding: the same pass over the newest token alone. Advances cache.offset.
    """
    drafts = draft(target, drafter, cache, head, settings, num_draft_tokens)
    return verify(target, cache, head, drafts, settings, limit)


PlayRound = Callable[[KVCache, Head, RowSettings, mx.array, int], Round]


def round_player(target: Target, drafter: Drafter | None) -> PlayRound:
    """`speculate` for this pair, compiled where the device is a GPU.

    It is traced anew for each number of rows and drafts and each capacity. MLX's CPU backend
    would want a C++ compiler at run time, so there the function runs as it is.
    """

    def play(
        num_draft_tokens: int,
        settings: RowSettings,
        limit: mx.array,
        head: Head,
        offset: mx.array,
        keys: list[mx.array],
        values: list[mx.array],
    ) -> tuple[Round, mx.array, list[mx.array], list[mx.array]]:
        cache = KVCache(target.config, offset, keys, values)
        played = speculate(target, drafter, cache, head, settings, limit, num_draft_tokens)
        return played, cache.offset, cache.keys, cache.values

    maybe_compiled = play if backend() == "cpu" else mx.compile(play)

    def play_round(
        cache: KVCache, head: Head, settings: RowSettings, limit: mx.array, num_draft_tokens: int
    ) -> Round:
        played, cache.offset, cache.keys, cache.values = maybe_compiled(
            num_draft_tokens, settings, limit, head, cache.offset, cache.keys, cache.values
        )
        return played

    return play_round


def draft(
    target: Target,
    drafter: Drafter | None,
    cache: KVCache,
    head: Head,
    settings: RowSettings,
    num_draft_tokens: int,
) -> mx.array:
    """Guess the next K tokens of every row, whatever its length: int32 [B, K]."""
    guesses: list[mx.array] = []
    token, hidden = head
    if drafter is None or num_draft_tokens == 0:
        return mx.zeros((token.shape[0], 0), mx.int32)
    memory = {kind: cache.memory(kind) for kind in drafter.config.kinds}
    where = mx.maximum(cache.offset + drafter.config.query_position, 0)
    for step in range(1, num_draft_tokens + 1):
        state, hidden = drafter(target.embed(token[:, None]), hidden, memory, where)
        logits, ids = drafter.candidates(state)
        position = cache.offset[:, None] + step
        size = drafter.config.vocab_size
        token = choose(logits, position, settings, ids=ids, vocab_size=size)[:, 0]
        guesses.append(token)
    return mx.stack(guesses, axis=1)


def verify(
    target: Target,
    cache: KVCache,
    head: Head,
    drafts: mx.array,
    settings: RowSettings,
    limit: mx.array,
) -> Round:
    """Run the target over the newest token and the drafts [B, K] after it; commit what agrees."""
    tokens = mx.concatenate([head.newest[:, None], drafts], axis=1)  # [B, K + 1]
    routed: list[mx.array] = []
    hidden = target(tokens, cache, routed=routed)
    position = cache.offset[:, None] + 1 + mx.arange(tokens.shape[1])
    softcap = target.config.final_logit_softcapping
    chosen = choose(target.logits(hidden), position, settings, softcap=softcap)
    accepted = mx.minimum(agreeing_prefix(drafts, chosen), limit)
    last = mx.maximum(accepted, 0)[:, None]
    newest = mx.take_along_axis(chosen, last, axis=1)[:, 0]
    cache.offset = cache.offset + accepted + 1
    return Round(
        tokens=chosen,
        accepted=accepted,
        head=Head(newest, mx.take_along_axis(hidden, last[..., None], axis=1)),
        distinct_experts=count_distinct(routed, target.config.num_experts) if routed else None,
    )


def agreeing_prefix(drafts: mx.array, chosen: mx.array) -> mx.array:
    """How many drafts [B, K] come true before the first that differs from chosen [B, K + 1]."""
    if drafts.shape[1] == 0:  # CUDA's scan divides by the length of the axis
        return mx.zeros(drafts.shape[:1], mx.int32)
    agree = (drafts == chosen[:, :-1]).astype(mx.int32)
    return mx.cumprod(agree, axis=1).sum(axis=1)


def count_distinct(routed: list[mx.array], num_experts: int) -> mx.array:
    """How many experts are read, from some layers' choices [N, k]: the mean of them, float32 [].

    The full-attention layers stand for all: asking every layer would cost an operation in each.
    """
    chosen = mx.stack([experts.flatten() for experts in routed])  # [layers, N k]
    used = mx.zeros((len(routed), num_experts))
    return mx.put_along_axis(used, chosen, mx.array(1.0), axis=1).sum() / len(routed)


def prefill(target: Target, tokens: mx.array, cache: KVCache) -> mx.array:
    """Run the next tokens [B, T] of the prompts through the target and commit them.

    Returns the hidden state [B, 1, H] of the last one. A long prompt comes in several calls, each
    of at most the cache's `most` positions.
    """
    hidden = target(tokens, cache, last_only=True)
    cache.offset = cache.offset + tokens.shape[1]
    return hidden


def first_token(target: Target, hidden: mx.array, cache: KVCache, settings: RowSettings) -> Head:
    """Choose the token after the prompt, from the hidden state [B, 1, H] of its last one."""
    position = cache.offset[:, None]
    softcap = target.config.final_logit_softcapping
    chosen = choose(target.logits(hidden), position, settings, softcap=softcap)
    return Head(chosen[:, 0], hidden)
