"""One round of speculative decoding for B rows: draft, verify, accept.

The output is the target's own (Leviathan et al. 2023, in its sample-matching form): every emitted
token is the one that `sampling.choose` takes from the target's logits. Drafts only decide how many
tokens a round yields. Nothing here reads the device from the host.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import mlx.core as mx

from mlx_gemma_mtp.decode.control import counted, counts_at
from mlx_gemma_mtp.decode.logprobs import Logprobs, logprobs
from mlx_gemma_mtp.decode.sampling import RowSettings, choose
from mlx_gemma_mtp.model.cache import KVCache
from mlx_gemma_mtp.model.drafter import Drafter
from mlx_gemma_mtp.model.packing import Packing
from mlx_gemma_mtp.model.target import Target


class Newest(NamedTuple):
    """The newest token of every row, not yet in the cache: the next round starts from it."""

    token: mx.array  # int32 [B]
    hidden: mx.array  # [B, 1, H], the target's state that chose it
    counts: mx.array | None = None  # of each row's tokens, see `control`; None without penalties


class Copies(NamedTuple):
    """Drafts that repeat an earlier stretch of a row's own text.

    A round is compiled for each L.
    """

    tokens: mx.array  # int32 [B, L], expected at positions start, start + 1, ...; -1 after the end
    start: mx.array  # int32 [B]; negative for a row without any


class Layout(NamedTuple):
    """What a pass verifies, on the device. A round is compiled for each of its shapes."""

    max_accepted: mx.array  # int32 [B]: K_b, the drafts of each row; -1 leaves a row where it is
    packing: Packing | None  # None: the row's token and T - 1 drafts of every row
    copies: Copies | None = None


class Pass(NamedTuple):
    """What the target makes of the newest token and the drafts, as the layout packs them."""

    drafts: mx.array  # int32 [B, T - 1], with the copies
    hidden: mx.array
    logits: mx.array


class Round(NamedTuple):
    """The result of one round: row b's new tokens are tokens[b, : accepted[b] + 1]."""

    tokens: mx.array  # int32 [B, T]
    accepted: mx.array  # int32 [B]; -1 for a row that stayed where it was
    newest: Newest
    logprobs: Logprobs | None = None  # of `tokens`; None if no row asks for them
    passed: Pass | None = None  # what they are chosen from, if that can start before: see `player`


Agree = Callable[[mx.array, mx.array], mx.array]


def draft(
    target: Target,
    drafter: Drafter | None,
    cache: KVCache,
    newest: Newest,
    settings: RowSettings,
    num_steps: int,
) -> mx.array:
    """Guess the next tokens of every row: int32 [B, num_steps]; without a drafter [B, 0].

    `settings.masks` is for the first of them: those of the others depend on it.
    """
    token, hidden, counts = newest
    if drafter is None or num_steps == 0:
        return mx.zeros((len(token), 0), mx.int32)
    shared = cache.shared(drafter.config)
    query_position = mx.maximum(cache.offset + drafter.config.query_position, 0)
    drafts: list[mx.array] = []
    for step in range(1, num_steps + 1):
        state, hidden = drafter(target.embed(token[:, None]), hidden, shared, query_position)
        logits, ids = drafter.candidates(state)
        position = cache.offset[:, None] + step
        size = drafter.config.vocab_size
        seen = None if counts is None else counts[:, None]
        chosen = choose(logits, position, settings, ids=ids, vocab_size=size, counts=seen)
        token, settings = chosen.tokens[:, 0], settings._replace(masks=None)
        drafts.append(token)
        if counts is not None and step < num_steps:
            counts = counted(counts, token[:, None])
    return mx.stack(drafts, axis=1)


def agreeing_prefix(drafts: mx.array, chosen: mx.array) -> mx.array:
    """How many drafts [B, T - 1] equal the tokens chosen [B, T] up to the first difference: [B]."""
    if drafts.shape[1] == 0:  # CUDA's scan divides by the length of the axis
        return mx.zeros(drafts.shape[:1], mx.int32)
    equal = (drafts == chosen[:, :-1]).astype(mx.int32)
    return mx.cumprod(equal, axis=1).sum(axis=1)


def with_copies(drafts: mx.array, copies: Copies, token: mx.array, offset: mx.array) -> mx.array:
    """Replace drafts [B, T - 1] by copied tokens in rows whose newest token is the expected one.

    token [B] stands at position offset [B]. Drafts after the copies' end stay.
    """
    length = copies.tokens.shape[1]
    at = (offset - copies.start)[:, None] + mx.arange(drafts.shape[1] + 1)
    copied = mx.take_along_axis(copies.tokens, mx.clip(at, 0, length - 1), axis=1)
    has_one = (copies.start[:, None] >= 0) & (at >= 0) & (at < length) & (copied >= 0)
    expected = has_one[:, :1] & (copied[:, :1] == token[:, None])
    return mx.where(expected & has_one[:, 1:], copied[:, 1:], drafts)


def verify(
    target: Target,
    cache: KVCache,
    newest: Newest,
    settings: RowSettings,
    layout: Layout,
    drafts: mx.array,
    *,
    agree: Agree = agreeing_prefix,
) -> Round:
    """Run the target over the newest token and the drafts [B, T - 1]; commit the agreeing prefix.

    Row b verifies its first layout.max_accepted[b] drafts; -1 leaves a free row where it is. The
    other drafts are stale, but the cache must have room for all T positions of every row. T = 1 is
    plain decoding: the same pass over the newest token alone. Advances cache.offset. A choice that
    is not sure ends the prefix before it. A row whose first one is not sure accepts -1 and stays
    where it is; it needs a pass with `settings.full`.
    """
    passed = run(target, cache, newest, layout, drafts)
    played = judge(target, cache.offset, newest, settings, layout, passed, agree=agree)
    cache.offset = cache.offset + played.accepted + 1
    return played


def run(target: Target, cache: KVCache, newest: Newest, layout: Layout, drafts: mx.array) -> Pass:
    """Run the target over the newest token and the drafts: the first part of `verify`."""
    if layout.copies is not None:
        drafts = with_copies(drafts, layout.copies, newest.token, cache.offset)
    tokens = mx.concatenate([newest.token[:, None], drafts], axis=1)
    hidden = target(tokens, cache, layout.packing)
    return Pass(drafts, hidden, target.logits(hidden))


def judge(
    target: Target,
    offset: mx.array,
    newest: Newest,
    settings: RowSettings,
    layout: Layout,
    passed: Pass,
    *,
    agree: Agree = agreeing_prefix,
) -> Round:
    """Choose tokens and compare the drafts with them: the second part of `verify`.

    offset: of the cache, int32 [B], which stays for the caller to advance.
    """
    packing, (drafts, hidden, logits) = layout.packing, passed
    following = offset[:, None] + mx.arange(drafts.shape[1] + 1) + 1
    counts = None if newest.counts is None else _counts(newest.counts, drafts, packing)
    if packing is not None:  # nothing is chosen for padding; every token has settings of its own
        kept = slice(packing.num_tokens)
        logits = logits.squeeze(0)[kept, None]
        following = packing.pack(following).squeeze(0)[kept, None]
        settings = settings.of(packing.rows[kept], packing.positions[kept])
    softcap = target.config.final_logit_softcapping
    chosen, sure = choose(logits, following, settings, softcap=softcap, counts=counts)
    found = logprobs(logits, chosen, settings.logprobs, softcap)
    if packing is not None:
        hidden, chosen = packing.unpack(hidden), packing.unpack(chosen.T)
        sure = None if sure is None else packing.unpack(sure.T)
        if found is not None:
            found = Logprobs(*(packing.unpack(part.swapaxes(0, 1)) for part in found))
    accepted = mx.minimum(agree(drafts, chosen), layout.max_accepted)
    if sure is not None:
        accepted = mx.minimum(accepted, mx.cumprod(sure.astype(mx.int32), axis=1).sum(axis=1) - 1)
    stays, last = accepted < 0, mx.maximum(accepted, 0)[:, None]
    token = mx.where(stays, newest.token, mx.take_along_axis(chosen, last, axis=1)[:, 0])
    hidden = mx.take_along_axis(hidden, last[..., None], axis=1)
    hidden = mx.where(stays[:, None, None], newest.hidden, hidden)
    counts = newest.counts
    if counts is not None:
        counts = counted(counts, chosen, mx.arange(chosen.shape[1]) <= accepted[:, None])
    return Round(chosen, accepted, Newest(token, hidden, counts), found)


def _counts(counts: mx.array, drafts: mx.array, packing: Packing | None) -> mx.array:
    """Return the counts as of every position of a pass: [B, T, V], or [num_tokens, 1, V]."""
    batch, length = len(drafts), drafts.shape[1] + 1
    if packing is not None:
        kept = slice(packing.num_tokens)
        return counts_at(counts, drafts, packing.rows[kept], packing.positions[kept])[:, None]
    rows, positions = mx.repeat(mx.arange(batch), length), mx.tile(mx.arange(length), batch)
    return counts_at(counts, drafts, rows, positions).reshape(batch, length, -1)


def prefill(
    target: Target,
    cache: KVCache,
    tokens: mx.array,
    start: int,
    lengths: Sequence[int],
    least: int = 1,
) -> mx.array:
    """Run the next tokens [B, T] of the prompts through the target and commit them.

    start: how many positions every row has committed. lengths: how many of the T tokens each row
    has; the rest is padding. Rows that end at different positions cannot be continued here. least:
    as of `Target.read`. Returns the hidden state [B, 1, H] of each row's last token.
    """
    hidden = target.read(tokens, cache, start, lengths, least)
    cache.offset = cache.offset + mx.array(list(lengths), mx.int32)
    return hidden


def first_token(
    target: Target,
    cache: KVCache,
    hidden: mx.array,
    settings: RowSettings,
    least: int = 1,
    counts: mx.array | None = None,
) -> Round:
    """Choose the token after each prompt, from the hidden state [B, 1, H] of its last token.

    It is returned as a round without drafts. least: rows of the product that gives the logits, with
    padding. counts: of the prompts; needed with penalties.
    """
    position = cache.offset[:, None]
    softcap = target.config.final_logit_softcapping
    settings = settings._replace(full=True)  # the caller needs a token at once
    batch = len(hidden)
    padded = hidden if batch >= least else mx.pad(hidden, [(0, least - batch), (0, 0), (0, 0)])
    logits = target.logits(padded)[:batch]
    seen = None if counts is None else counts[:, None]
    token = choose(logits, position, settings, softcap=softcap, counts=seen).tokens
    found = logprobs(logits, token, settings.logprobs, softcap)
    counts = None if counts is None else counted(counts, token)
    return Round(token, mx.zeros((batch,), mx.int32), Newest(token[:, 0], hidden, counts), found)
