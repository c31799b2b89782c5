"""Outputs known beforehand, and drafts that are right or wrong by a pattern over them."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from helpers.checkpoints import VOCAB
from mlx_gemma_mtp import Completion, SamplingParams
from mlx_gemma_mtp.decode.sampling import choose, row_settings
from mlx_gemma_mtp.model.cache import KVCache, capacity_for
from mlx_gemma_mtp.model.target import Target

# On MLX's CPU backend, up to 8 rows give the same bits as one. With other backends, or a prompt in
# other chunks, these logits differ by about 1e-5. If the best token leads by less than this,
# another one would be right as well.
LEAST_LEAD = 1e-4

Pattern = np.ndarray  # bool [positions]: whether the draft for this position is right


class Row(NamedTuple):
    """A prompt with its settings, and the tokens that the target alone generates."""

    prompt: list[int]
    params: SamplingParams
    tokens: list[int]


def is_decisive(target: Target, row: Row, suppressed: Sequence[int]) -> bool:
    """True if one pass over prompt and tokens chooses every token, by LEAST_LEAD or more."""
    ids = row.prompt + row.tokens[:-1]
    whole = KVCache.empty(
        target.config, 1, capacity=capacity_for(len(ids)), most=len(ids), dtype=mx.float32
    )
    logits = target.logits(target(mx.array([ids]), whole)[:, len(row.prompt) - 1 :])
    tokens = mx.array([row.tokens])
    handicap = LEAST_LEAD * (mx.arange(VOCAB) == tokens[..., None])
    suppress = mx.array(list(suppressed), mx.int32) if suppressed else None
    chosen = choose(
        logits - handicap,
        mx.arange(len(row.prompt), len(ids) + 1)[None],
        row_settings([row.params.resolved({})], suppress),
        softcap=target.config.final_logit_softcapping,
    ).tokens
    return bool((chosen == tokens).all().item())


class Forced:
    """Stands in for `round.draft`, with drafts that are right if a pattern says so.

    It identifies rows by their seeds, because a row may be anywhere in the batch.
    """

    def __init__(
        self, rng: np.random.Generator, rows: Sequence[Row], patterns: Sequence[Pattern]
    ) -> None:
        self.rows = rows
        self.patterns = patterns
        width = max(len(row.prompt) + len(row.tokens) for row in rows)
        table = np.zeros((len(rows), width), np.int32)
        for number, (row, pattern) in enumerate(zip(rows, patterns, strict=True)):
            right = np.array(row.prompt + row.tokens)
            wrong = (right + rng.integers(1, VOCAB, len(right))) % VOCAB
            table[number, : len(right)] = np.where(pattern[: len(right)], right, wrong)
        self._table = mx.array(table)
        self._seeds = mx.array([row.params.seed for row in rows], mx.uint32)
        mx.eval(self._table, self._seeds)  # they are read in the engine's thread

    def __call__(self, _target: object, _drafter: object, cache: KVCache, *rest: Any) -> mx.array:
        _newest, settings, num_draft_tokens = rest
        table = self._table[mx.argmax(settings.seed == self._seeds, axis=1)]
        wanted = cache.offset[:, None] + mx.arange(1, num_draft_tokens + 1)
        return mx.take_along_axis(table, mx.minimum(wanted, table.shape[1] - 1), axis=1)

    def assert_counted(self, done: Sequence[Completion], num_drafts: Sequence[int]) -> None:
        """Each round of each row accepted its drafts up to the first wrong one, and no others."""
        each = zip(done, self.rows, self.patterns, num_drafts, strict=True)
        for one, row, pattern, most in each:
            num_tokens, position, num_done = len(one.tokens), len(row.prompt), 1
            rounds = []
            while num_done < num_tokens:
                hits = np.cumprod(pattern[position + 1 : position + 1 + most]).sum()
                rounds.append(min(int(hits), num_tokens - num_done))
                position += rounds[-1] + 1
                num_done += rounds[-1] + 1
            accepted = np.array(rounds)
            assert one.stats.rounds == len(accepted)
            assert one.stats.drafted_at == [len(accepted)] * most
            assert one.stats.accepted_at == [int((accepted > i).sum()) for i in range(most)]
            assert one.stats.accepted == accepted.sum()


def at_random(rng: np.random.Generator, rows: Sequence[Row], rate: float) -> list[Pattern]:
    """Patterns that are right at this rate, even after a wrong draft, when it must not count."""
    return [rng.random(len(row.prompt) + len(row.tokens)) < rate for row in rows]


def always(rows: Sequence[Row], right: bool) -> list[Pattern]:
    return [np.full(len(row.prompt) + len(row.tokens), right) for row in rows]
