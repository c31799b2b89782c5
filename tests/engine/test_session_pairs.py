"""Conversations with real pairs: each turn writes what it writes from scratch.

Every turn is also decoded from scratch by the same engine. Rings are as tight as possible, so that
they wrap, and all drafts are right, so that rounds run past the end.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from helpers.checkpoints import VOCAB, PairPaths
from helpers.forced import Forced, Row, always, is_decisive
from helpers.turns import History
from mlx_gemma_mtp import Completion, Engine, SamplingParams, Session
from mlx_gemma_mtp.decode.round import PlayRound, draft, round_player
from mlx_gemma_mtp.engine.pair import open_pair
from mlx_gemma_mtp.engine.worker import mlx_worker
from mlx_gemma_mtp.memory import Limits

# Dense with K = V; experts; layers that share keys and values.
SOME_KINDS = ("12B", "26B-A4B", "E2B")
LIMITS = Limits(chunks=(8, 24), max_draft_tokens=7, slot_step=1)
BEYOND = 16  # tokens past its end up to which forced drafts know an output
PARAMS = SamplingParams(temperature=1, top_k=0, top_p=1, ignore_eos=True, num_draft_tokens=7)

Ids = list[int]


class Talk:
    """Turns with random words, whose output is known from decoding it from scratch."""

    def __init__(self, paths: PairPaths, rng: np.random.Generator) -> None:
        self._pair = open_pair(*paths)
        self._rng = rng
        self._draft = draft
        self.engine = Engine(self._pair, player=self._player, limits=LIMITS)

    def words(self, low: int, high: int) -> Ids:
        return self._rng.integers(0, VOCAB, self._rng.integers(low, high)).tolist()

    def turn(self, history: Ids, most: int) -> Row:
        """History and some new words, and up to BEYOND tokens more than `most` of the output."""
        suppressed = self._pair.default_tokens("suppress_tokens")
        for _ in range(20):
            params = replace(PARAMS, seed=int(self._rng.integers(2**31)))
            prompt = [*history, *self.words(1, 20)]
            plain = replace(params, max_tokens=most + BEYOND, num_draft_tokens=0)
            row = Row(prompt, params, self.engine.generate(prompt, plain)[0].tokens)
            if mlx_worker().run(partial(is_decisive, self._pair.target, row, suppressed)):
                return row
        raise AssertionError("no output without a near tie")

    def ask(self, row: Row, most: int, session: Session) -> Completion:
        """The row's turn in a session, with drafts that are all right."""
        self._draft = Forced(self._rng, [row], always([row], True))
        params = replace(row.params, max_tokens=most)
        return self.engine.submit(row.prompt, params, session=session).result()

    def _player(self, *models: Any) -> PlayRound:
        def current(*arguments: Any) -> mx.array:
            return self._draft(*arguments)

        return round_player(*models, draft=current)


@pytest.fixture(params=SOME_KINDS)
def paths(request: pytest.FixtureRequest, pairs: dict[str, PairPaths]) -> PairPaths:
    return pairs[request.param]


@pytest.fixture
def talk(paths: PairPaths, rng: np.random.Generator) -> Iterator[Talk]:
    made = Talk(paths, rng)
    with made.engine:
        yield made


def test_every_turn_writes_what_it_writes_from_scratch_and_prefills_only_what_is_new(
    talk: Talk, rng: np.random.Generator
) -> None:
    session, history = talk.engine.session(), History(rng)
    for number, way in enumerate(history.walk(2)):
        most = int(rng.integers(1, 40)) if number else 1
        row = talk.turn(history.ids, most)
        done = talk.ask(row, most, session)
        assert done.tokens == row.tokens[:most], (number, way)
        assert done.stats.reused_tokens >= min(history.held, len(row.prompt) - 1)
        history.continue_(way, row.prompt, done.tokens, talk.words(1, 5))


def test_a_saved_session_continues_in_another_engine(
    talk: Talk, paths: PairPaths, rng: np.random.Generator, tmp_path: Path
) -> None:
    session = talk.engine.session()
    first = talk.turn([], 40)
    talk.ask(first, 40, session)
    session.save(tmp_path / "talk")
    assert [path.name for path in tmp_path.iterdir()] == ["talk"]
    continued = talk.turn([*first.prompt, *first.tokens[:40]], 12)
    rewritten = talk.turn([*first.prompt, *first.tokens[30:40]], 12)
    elsewhere = Talk(paths, rng)
    with elsewhere.engine as other:
        for row, held in ((continued, len(first.prompt) + 39), (rewritten, len(first.prompt))):
            done = elsewhere.ask(row, 12, other.session(tmp_path / "talk"))
            assert done.tokens == row.tokens[:12]
            assert done.stats.reused_tokens >= held
