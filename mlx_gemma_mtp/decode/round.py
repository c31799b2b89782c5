"""One round of speculative decoding for B rows: draft, verify, accept.

The text is the target's own (Leviathan et al. 2023, in its sample-matching form): every emitted
token is the one that `sampling.choose` takes from the target's logits. Drafts only decide how many
tokens a round yields. Nothing here reads the device from the host.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import mlx.core as mx

from mlx_gemma_mtp import device
from mlx_gemma_mtp.decode.sampling import RowSettings, choose
from mlx_gemma_mtp.model.cache import Buffers, KVCache
from mlx_gemma_mtp.model.drafter import Drafter
from mlx_gemma_mtp.model.target import Target


class Newest(NamedTuple):
    """The newest token of every row, not yet in the cache: the next round starts from it."""

    token: mx.array  # int32 [B]
    hidden: mx.array  # [B, 1, H], the target's state that chose it


class Round(NamedTuple):
    """The result of one round: row b's new tokens are tokens[b, : accepted[b] + 1]."""

    tokens: mx.array  # int32 [B, K + 1]
    accepted: mx.array  # int32 [B]
    newest: Newest


Draft = Callable[[Target, Drafter | None, KVCache, Newest, RowSettings, int], mx.array]
Agree = Callable[[mx.array, mx.array], mx.array]
PlayRound = Callable[[KVCache, Newest, RowSettings, mx.array, int], Round]


def draft(
    target: Target,
    drafter: Drafter | None,
    cache: KVCache,
    newest: Newest,
    settings: RowSettings,
    num_draft_tokens: int,
) -> mx.array:
    """Guess the next K tokens of every row: int32 [B, K]; without a drafter [B, 0]."""
    token, hidden = newest
    if drafter is None or num_draft_tokens == 0:
        return mx.zeros((len(token), 0), mx.int32)
    shared = {kind: cache.shared(kind) for kind in drafter.config.kinds}
    query_position = mx.maximum(cache.offset + drafter.config.query_position, 0)
    drafts: list[mx.array] = []
    for step in range(1, num_draft_tokens + 1):
        state, hidden = drafter(target.embed(token[:, None]), hidden, shared, query_position)
        logits, ids = drafter.candidates(state)
        position = cache.offset[:, None] + step
        size = drafter.config.vocab_size
        token = choose(logits, position, settings, ids=ids, vocab_size=size)[:, 0]
        drafts.append(token)
    return mx.stack(drafts, axis=1)


def agreeing_prefix(drafts: mx.array, chosen: mx.array) -> mx.array:
    """How many drafts [B, K] equal the tokens chosen [B, K + 1] up to the first difference: [B]."""
    if drafts.shape[1] == 0:  # CUDA's scan divides by the length of the axis
        return mx.zeros(drafts.shape[:1], mx.int32)
    equal = (drafts == chosen[:, :-1]).astype(mx.int32)
    return mx.cumprod(equal, axis=1).sum(axis=1)


def verify(
    target: Target,
    cache: KVCache,
    newest: Newest,
    settings: RowSettings,
    max_accepted: mx.array,
    drafts: mx.array,
    *,
    agree: Agree = agreeing_prefix,
) -> Round:
    """Run the target over the newest token and the drafts [B, K]; commit the agreeing prefix."""
    tokens = mx.concatenate([newest.token[:, None], drafts], axis=1)  # [B, K + 1]
    hidden = target(tokens, cache)
    position = cache.offset[:, None] + 1 + mx.arange(tokens.shape[1])
    softcap = target.config.final_logit_softcapping
    chosen = choose(target.logits(hidden), position, settings, softcap=softcap)
    accepted = mx.minimum(agree(drafts, chosen), max_accepted)
    last = mx.maximum(accepted, 0)[:, None]
    token = mx.take_along_axis(chosen, last, axis=1)[:, 0]
    hidden = mx.take_along_axis(hidden, last[..., None], axis=1)
    cache.offset = cache.offset + accepted + 1
    return Round(chosen, accepted, Newest(token, hidden))


def speculate(
    target: Target,
    drafter: Drafter | None,
    cache: KVCache,
    newest: Newest,
    settings: RowSettings,
    max_accepted: mx.array,
    num_draft_tokens: int,
    *,
    draft: Draft = draft,
    agree: Agree = agreeing_prefix,
) -> Round:
    """Draft K tokens, verify them in one pass of the target, accept the agreeing prefix.

    max_accepted [B]: how many drafts a row may accept; -1 leaves a free row where it is.
    K = 0 is plain decoding: the same pass over the newest token alone. Advances cache.offset.
    """
    drafts = draft(target, drafter, cache, newest, settings, num_draft_tokens)
    return verify(target, cache, newest, settings, max_accepted, drafts, agree=agree)


def round_player(
    target: Target, drafter: Drafter | None, *, draft: Draft = draft, agree: Agree = agreeing_prefix
) -> PlayRound:
    """`speculate` for this pair, compiled if the device is a GPU.

    It is traced again for each number of rows and of drafts and each capacity. On a CPU,
    `mx.compile` would need a C++ compiler at run time, so the function runs as it is.
    """

    def play(buffers: Buffers, *rest: Any) -> tuple[Round, Buffers]:
        cache = KVCache(target.config, buffers)
        played = speculate(target, drafter, cache, *rest, draft=draft, agree=agree)
        return played, cache.buffers

    if device.backend() != "cpu":
        play = mx.compile(play)

    def play_round(cache: KVCache, *rest: Any) -> Round:
        played, cache.buffers = play(cache.buffers, *rest)
        return played

    return play_round


def prefill(
    target: Target, cache: KVCache, tokens: mx.array, start: int, lengths: Sequence[int]
) -> mx.array:
    """Run the next tokens [B, T] of the prompts through the target and commit them.

    start: how many positions every row has committed. lengths: how many of the T tokens each row
    has; the rest is padding. Rows that end at different positions cannot be continued here. Returns
    the hidden state [B, 1, H] of each row's last token.
    """
    num_tokens = mx.array(lengths, mx.int32)
    hidden = target.read(tokens, cache, start, num_tokens)
    cache.offset = cache.offset + num_tokens
    return hidden


def first_token(target: Target, cache: KVCache, hidden: mx.array, settings: RowSettings) -> Newest:
    """Choose the token after each prompt, from the hidden state [B, 1, H] of its last token."""
    position = cache.offset[:, None]
    softcap = target.config.final_logit_softcapping
    chosen = choose(target.logits(hidden), position, settings, softcap=softcap)
    return Newest(chosen[:, 0], hidden)
