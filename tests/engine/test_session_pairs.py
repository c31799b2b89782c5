"""Conversations with real pairs: each turn writes what it writes from scratch.

Rings are as tight as possible, so that they wrap, and all drafts are right, so that rounds run past
the end of a turn.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from helpers.checkpoints import VOCAB, PairPaths
from helpers.forced import Forced, Row, always, is_decisive
from mlx_gemma_mtp import Engine, SamplingParams
from mlx_gemma_mtp.decode.round import draft, round_player
from mlx_gemma_mtp.engine.pair import open_pair
from mlx_gemma_mtp.engine.worker import mlx_worker
from mlx_gemma_mtp.memory import Limits

LIMITS = Limits(chunks=(8, 24), max_draft_tokens=7, slot_step=1)
BEYOND = 16  # tokens past its end up to which forced drafts know an output
PARAMS = SamplingParams(temperature=1, top_k=0, top_p=1, ignore_eos=True, num_draft_tokens=7)


# Dense with K = V; experts; layers that share keys and values.
@pytest.mark.parametrize("name", ["12B", "26B-A4B", "E2B"])
def test_every_turn_writes_what_it_writes_from_scratch_and_prefills_only_what_is_new(
    name: str, pairs: dict[str, PairPaths], rng: np.random.Generator, tmp_path: Path
) -> None:
    pair, drafts = open_pair(*pairs[name]), draft
    suppressed = pair.default_tokens("suppress_tokens")

    def current(*arguments: Any) -> mx.array:
        return drafts(*arguments)

    def words(most: int) -> list[int]:
        return rng.integers(0, VOCAB, rng.integers(1, most)).tolist()

    def turn(history: list[int], most: int) -> Row:
        for _ in range(20):
            params = replace(PARAMS, seed=int(rng.integers(2**31)))
            prompt = [*history, *words(20)]
            plain = replace(params, max_tokens=most + BEYOND, num_draft_tokens=0)
            row = Row(prompt, params, engine.generate(prompt, plain)[0].tokens)
            if mlx_worker().run(partial(is_decisive, pair.target, row, suppressed)):
                return row
        raise AssertionError("no output without a near tie")

    with Engine(pair, player=partial(round_player, draft=current), limits=LIMITS) as engine:
        session, held = engine.session(), 0
        history: list[int] = []
        for way in ("continue", "rewrite", "continue", "save", "rewrite", "continue"):
            row = turn(history, most := int(rng.integers(1, 40)))
            drafts = Forced(rng, [row], always([row], True))
            params = replace(row.params, max_tokens=most)
            done = engine.submit(row.prompt, params, session=session).result()
            assert done.tokens == row.tokens[:most], way
            assert done.stats.reused_tokens >= min(held, len(row.prompt) - 1)
            answer = words(5) if way == "rewrite" else done.tokens
            history = [*row.prompt, *answer]
            held = len(row.prompt) + (0 if way == "rewrite" else len(answer) - 1)
            if way == "save":
                session.save(tmp_path / "talk")
                session = engine.session(tmp_path / "talk")
