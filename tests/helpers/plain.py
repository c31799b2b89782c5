"""Plain outputs of a pair, decoded without a drafter, and engines that must generate them again."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from helpers.checkpoints import KINDS, VOCAB
from helpers.forced import Forced, Row, is_decisive
from helpers.held import held
from mlx_gemma_mtp import Completion, Engine, SamplingParams
from mlx_gemma_mtp.decode.player import Draft, round_player
from mlx_gemma_mtp.decode.round import draft
from mlx_gemma_mtp.engine.pair import OpenPair
from mlx_gemma_mtp.engine.worker import mlx_worker
from mlx_gemma_mtp.memory import Limits
from mlx_gemma_mtp.model.cache import KVCache

DRAFTS = (1, 2, 3, 5, 7)
BATCHES = (1, 2, 4, 5, 8)
NUM_ROWS = 8
some_kind = pytest.mark.parametrize("kind", ["E2B"], indirect=True)  # if all kinds do the same
# If only the layers matter: with per-layer embeddings and shared K/V, with experts, and dense.
each_structure = pytest.mark.parametrize("kind", ["E4B", "26B-A4B", "31B"], indirect=True)
# Rows whose output of `short` tokens passes the end of the ring twice, one for each kind.
LONG_ROWS = (0, 2, 4, 6, 7)
FULL = 256  # the first capacity of full-attention layers by default

# Without a limit to the pause, all short prompts are prefilled before the next round.
LIMITS = Limits(pause_seconds=np.inf)
# Sliding layers get the smallest ring that the largest K allows, so that short outputs wrap it.
TIGHT = replace(LIMITS, slot_step=1, max_draft_tokens=max(DRAFTS))

GREEDY = SamplingParams(temperature=0, ignore_eos=True)
SAMPLED = SamplingParams(temperature=1, top_k=64, top_p=0.95, ignore_eos=True)
OTHERWISE = SamplingParams(temperature=0.7, top_k=5, top_p=0.8, ignore_eos=True)


@dataclass(frozen=True)
class Plain:
    """The plain outputs of one kind."""

    kind: str
    pair: OpenPair
    rows: list[Row]

    @property
    def window(self) -> int:
        return self.pair.target.config.sliding_window

    def ring_under(self, limits: Limits) -> int:
        """Slots of a sliding layer in an engine with these limits."""
        most, step = limits.most_beyond, limits.slot_step
        sizes = {"capacity": FULL, "most": most, "slot_step": step}
        rows = KVCache.empty(self.pair.target.config, 1, dtype=mx.float32, **sizes)
        return rows.capacity("sliding_attention")

    @property
    def ring(self) -> int:
        return self.ring_under(TIGHT)

    @property
    def short(self) -> int:
        """Tokens with which an output that starts just before the ring's end passes it twice."""
        return self.ring + 4

    @property
    def long(self) -> int:
        """Tokens with which any output passes the ring's end twice."""
        return 2 * self.ring + 2

    def pick(self, size: int) -> list[Row]:
        """`size` neighbouring rows; each kind starts with another one of LONG_ROWS."""
        start = LONG_ROWS[KINDS.index(self.kind)]
        return [self.rows[(start + i) % NUM_ROWS] for i in range(size)]

    def engine(self, draft: Draft = draft, *, limits: Limits = TIGHT, **changes: Any) -> Engine:
        """An engine on the pair, without copies. changes: other fields of the pair."""
        pair = self.pair._replace(**changes)
        player = partial(round_player, draft=draft)
        return Engine(pair, player=player, limits=limits, copies=False)

    def assert_generated(
        self,
        rows: Sequence[Row],
        num_tokens: int,
        num_draft_tokens: int | Sequence[int],
        draft: Draft = draft,
        **options: Any,
    ) -> list[Completion]:
        """Decode the prompts side by side: the outputs, and the counts of forced drafts, are right.

        num_draft_tokens: for all rows, or of each.
        """
        if isinstance(num_draft_tokens, int):
            num_draft_tokens = [num_draft_tokens] * len(rows)
        with self.engine(draft, **options) as engine:
            done = again(engine, rows, num_tokens, num_draft_tokens)
        for number, (one, row) in enumerate(zip(done, rows, strict=True)):
            assert one.tokens == row.tokens[:num_tokens], f"row {number}, {row.params}"
            assert one.finish_reason == "length"
        if isinstance(draft, Forced):
            draft.assert_counted(done, num_draft_tokens)
        return done


def decode_plainly(kind: str, pair: OpenPair, seed: int) -> Plain:
    """Eight random prompts of many lengths and settings, and their outputs without a drafter.

    An output with a near tie is replaced by that of another prompt.
    """
    rng = np.random.default_rng([seed, *kind.encode()])
    plain = Plain(kind, pair, [])
    window, ring = plain.window, plain.ring
    choices = [
        (ring - 2, GREEDY),
        (3, SAMPLED),
        (2 * ring - 1, SAMPLED),
        (window, GREEDY),
        (FULL // ring * ring - 2, GREEDY),  # outgrows the buffers of full-attention layers
        (window + 1, SAMPLED),
        (ring - 1, GREEDY),
        (3 * ring - 2, OTHERWISE),
    ]
    suppressed = pair.default_tokens("suppress_tokens")
    rows: dict[int, Row] = {}
    with plain.engine(drafter=None) as engine:
        for _ in range(10):
            drawn = {}
            for i, (length, params) in enumerate(choices):
                if i not in rows:
                    prompt = rng.integers(0, VOCAB, length).tolist()
                    drawn[i] = Row(prompt, replace(params, seed=int(rng.integers(2**32))), [])
            done = again(engine, [*drawn.values()], plain.long + max(DRAFTS) + 1, [0] * len(drawn))
            for (i, row), one in zip(drawn.items(), done, strict=True):
                found = row._replace(tokens=one.tokens)
                if mlx_worker().run(partial(is_decisive, pair.target, found, suppressed)):
                    rows[i] = found
            if len(rows) == NUM_ROWS:
                plain.rows.extend(rows[i] for i in range(NUM_ROWS))
                return plain
    raise AssertionError("plain outputs differ from one pass over them, or all have near ties")


def again(
    engine: Engine, rows: Sequence[Row], num_tokens: int, num_draft_tokens: Sequence[int]
) -> list[Completion]:
    """The rows' prompts decoded side by side."""
    with held():
        running = [
            engine.submit(
                row.prompt, replace(row.params, max_tokens=num_tokens, num_draft_tokens=k)
            )
            for row, k in zip(rows, num_draft_tokens, strict=True)
        ]
    return [one.result() for one in running]


def wraps(row: Row, num_tokens: int, ring: int) -> int:
    """How often an output of num_tokens passes the ring's end; its last token is not written."""
    return (len(row.prompt) + num_tokens - 2) // ring - len(row.prompt) // ring
