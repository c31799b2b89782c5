"""What requests change in their logits: penalties for tokens that occurred, a bias, allowed tokens.

Arrays and the host's numbers for them; the order of the steps is `sampling.choose`'s. Knows nothing
of models, caches or where masks come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from mlx_gemma_mtp.decode.params import MAX_BIAS, PENALTIES, SamplingParams

# Counts are int32 [B, V]: ONCE for each time that a token occurs in the output, and 1 more if it
# occurs in the prompt.
ONCE = 2

WORD = 32  # tokens of a word of a mask


class Control(NamedTuple):
    """Penalties and biases of every row; None for what no row has."""

    penalties: mx.array | None  # float32 [B, 3]: repetition, presence, frequency
    bias: mx.array | None  # float32 [B, V]
    changes: mx.array  # bool [B, 1]: the row has any of it

    def of(self, rows: mx.array) -> Control:
        """The control of these rows, int32 [N], any of them more than once."""
        penalties, bias, changes = self
        return Control(of_rows(penalties, rows), of_rows(bias, rows), changes[rows])


def of_rows(x: mx.array | None, rows: mx.array) -> mx.array | None:
    """Return an array [B, ...] at rows [N], if there is one."""
    return None if x is None else x[rows]


def control_of(rows: Sequence[SamplingParams], vocab_size: int) -> Control | None:
    """Lay out resolved settings for the device; None if no row has penalties or a bias."""
    penalize = [has_penalties(row) for row in rows]
    changes = [one or bool(row.logit_bias) for one, row in zip(penalize, rows, strict=True)]
    if not any(changes):
        return None
    penalties = bias = None
    if any(penalize):
        penalties = mx.array([_penalties(row) for row in rows], mx.float32)
    if any(row.logit_bias for row in rows):
        added = np.zeros((len(rows), vocab_size), np.float32)
        for own, row in zip(added, rows, strict=True):
            for token, value in row.logit_bias.items():
                own[token] = -np.inf if value == -MAX_BIAS else value
        bias = mx.array(added)
    return Control(penalties, bias, mx.array(changes)[:, None])


def has_penalties(row: SamplingParams) -> bool:
    """True if the row's logits depend on which tokens occurred."""
    return _penalties(row) != [1.0, 0.0, 0.0]


def _penalties(row: SamplingParams) -> list[float]:
    repetition, *others = (getattr(row, name) for name in PENALTIES)
    return [repetition or 1.0, *others]


def changed(
    logits: mx.array, control: Control, counts: mx.array | None, ids: mx.array | None
) -> mx.array:
    """Return float32 logits [B, T, C] after penalties and biases.

    ids [B, T, C]: the tokens of the logits; None for the whole vocabulary. counts: int32 [B, T, V]
    as of each position, needed with penalties.
    """
    if control.penalties is not None:
        assert counts is not None
        counts = _at(counts, ids)
        repetition, presence, frequency = mx.split(control.penalties[:, None], 3, axis=-1)
        repeated = mx.where(logits > 0, logits / repetition, logits * repetition)
        logits = mx.where(counts > 0, repeated, logits)
        times = counts // ONCE
        logits = logits - mx.where(times > 0, presence, 0.0) - frequency * times
    if control.bias is not None:
        logits = logits + _at(control.bias[:, None], ids)
    return logits


def _at(x: mx.array, ids: mx.array | None) -> mx.array:
    """x [B, 1 or T, V] at the tokens ids [B, T, C]."""
    return x if ids is None else mx.take_along_axis(x, ids, axis=-1)


def is_allowed(masks: mx.array, size: int, ids: mx.array | None) -> mx.array:
    """Return which tokens masks uint32 [B, T, W] allow: bool [B, T, size], or of ids [B, T, C]."""
    if ids is not None:
        words = mx.take_along_axis(masks, ids // WORD, axis=-1)
        return (words >> (ids % WORD).astype(mx.uint32) & 1).astype(mx.bool_)
    bits = masks[..., None] >> mx.arange(WORD, dtype=mx.uint32) & 1
    return bits.reshape(*masks.shape[:-1], -1)[..., :size].astype(mx.bool_)


def counts_of_prompts(prompts: Sequence[Sequence[int]], vocab_size: int) -> mx.array:
    """Return the counts [B, V] of rows that have no output yet."""
    found = np.zeros((len(prompts), vocab_size), np.int32)
    for own, prompt in zip(found, prompts, strict=True):
        own[list(prompt)] = 1
    return mx.array(found)


def counted(counts: mx.array, tokens: mx.array, is_output: mx.array | None = None) -> mx.array:
    """Return the counts [B, V] with the tokens [B, T] of outputs; is_output [B, T]: not others."""
    times = mx.array(ONCE) if is_output is None else mx.where(is_output, ONCE, 0)
    return counts.at[mx.arange(len(tokens))[:, None], tokens].add(times.astype(mx.int32))


def counts_at(counts: mx.array, drafts: mx.array, rows: mx.array, positions: mx.array) -> mx.array:
    """Return the counts [N, V] as of N positions of a pass, rows [N] and positions [N].

    counts [B, V] hold the output up to the newest token, which stands at position 0; position t
    adds the first t of its row's drafts [B, T - 1].
    """
    if drafts.shape[1] == 0:
        return counts[rows]
    earlier = mx.arange(drafts.shape[1]) < positions[:, None]
    return counted(counts[rows], drafts[rows], earlier)
