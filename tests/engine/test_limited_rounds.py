"""The order of work in rounds with a constraint, and what is written into arrays late."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from helpers.checkpoints import VOCAB
from helpers.control import HashRule, Ruled
from helpers.fake_target import PARAMS, fake_pair, fake_player, output
from helpers.random_pair import random_pair
from helpers.rounds import addresses
from mlx_gemma_mtp import SamplingParams
from mlx_gemma_mtp.decode.constraint import Mask
from mlx_gemma_mtp.decode.depth import Depth
from mlx_gemma_mtp.decode.division import Shape
from mlx_gemma_mtp.decode.player import RoundPlayer, round_player
from mlx_gemma_mtp.decode.round import Round
from mlx_gemma_mtp.engine.masks import Blank
from mlx_gemma_mtp.model.cache import KVCache


class Open(HashRule):
    """Allows everything, but has to be asked."""

    def __init__(self, events: list[str]) -> None:
        super().__init__(0, 97)
        self._events = events

    def allowed(self, prefix: Sequence[int]) -> np.ndarray | None:
        return None

    def masks(self, tokens: Sequence[int]) -> list[Mask | None]:
        self._events.append(f"asked about {len(tokens)} drafts")
        return super().masks(tokens)

    def accept(self, tokens: Sequence[int]) -> None:
        self._events.append("read")
        super().accept(tokens)


@pytest.mark.parametrize("drafts", [0, 3])
def test_a_round_is_laid_out_before_the_last_is_read_and_masks_come_while_the_target_runs(
    drafts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    events, rounds, guesses = list[str](), list[Round](), list[mx.array]()

    def player(*models: Any) -> RoundPlayer:
        halves = fake_player(*models)

        def draft(*arguments: Any) -> mx.array:
            guesses.append(halves.draft(*arguments))
            return guesses[-1]

        def verify(*arguments: Any) -> Round:
            events.append("laid out")
            rounds.append(halves.verify(*arguments))
            return rounds[-1]

        return RoundPlayer(draft, verify)

    def dispatch(one: Any) -> None:
        if any(one is each and one.size for each in guesses):
            events.append("drafts started")
        elif any(one is each.passed for each in rounds):
            events.append("pass started")
        elif any(one is each for each in rounds):
            events.append("rest started")

    with Ruled(fake_pair(), player=player) as engine:
        engine.rules = {1: partial(Open, events)}
        params = replace(PARAMS, seed=1, num_draft_tokens=drafts)
        started = mx.async_eval
        monkeypatch.setattr(mx, "async_eval", lambda *given: (dispatch(given[0]), started(*given)))
        (done,) = engine.generate([5, 6], params)
        monkeypatch.undo()
    assert done.tokens == output([5, 6], params.max_tokens or 0)
    turn = events[events.index("rest started") + 1 :]
    turn = turn[: turn.index("rest started") + 1]
    if drafts:
        known = ["read", "asked about 0 drafts", "drafts started", "pass started"]
        assert turn == ["laid out", *known, "asked about 3 drafts", "rest started"]
    else:
        assert turn == ["laid out", "pass started", "read", "asked about 0 drafts", "rest started"]
    assert events.count("laid out") == len(rounds) <= done.stats.rounds + 1


def test_its_rounds_are_timed_so_that_auto_knows_what_they_cost() -> None:
    timed = list[Shape]()

    class Noting(Depth):
        def round_took(self, shape: Shape, seconds: float) -> None:
            timed.append(shape)
            super().round_took(shape, seconds)

    with Ruled(fake_pair(), player=fake_player, depth=Noting()) as engine:
        engine.rules = {1: partial(Open, [])}
        for drafts in (0, 3):
            params = replace(PARAMS, seed=1, max_tokens=40, num_draft_tokens=drafts)
            (done,) = engine.generate([5, 6], params)
            assert len(timed) >= done.stats.rounds - 3
            assert {shape.num_steps for shape in timed} == {drafts}
            timed.clear()


@pytest.mark.parametrize("drafts", [0, 3])
def test_its_buffers_never_move(drafts: int, rng: np.random.Generator) -> None:
    """To look waits for the device, so only every third round is looked at."""
    seen, calls = list[tuple[tuple[int, ...], list[int]]](), itertools.count()

    def player(*models: Any) -> RoundPlayer:
        halves = round_player(*models)

        def verify(cache: KVCache, *rest: Any) -> Round:
            if next(calls) % 3 == 0:
                seen.append((cache.keys[0].shape, addresses(cache)))
            return halves.verify(cache, *rest)

        return halves._replace(verify=verify)

    with Ruled(random_pair(rng), player=player) as engine:
        engine.rules = {seed: partial(Open, []) for seed in range(3)}
        prompts = [rng.integers(0, VOCAB, size).tolist() for size in (3, 40, 150)]
        every = [
            SamplingParams(max_tokens=40, seed=seed, num_draft_tokens=drafts, ignore_eos=True)
            for seed in range(3)
        ]
        engine.generate(prompts, every)
    same_rows = [(one, other) for one, other in itertools.pairwise(seen) if one[0] == other[0]]
    assert len(same_rows) >= 3
    assert all(one == other for one, other in same_rows)


@pytest.mark.parametrize("through", [lambda function: function, mx.compile])
def test_what_is_written_into_a_blank_is_what_the_device_reads(
    through: Callable[[Any], Any],
) -> None:
    blank = Blank.of((2, 3), np.uint32)
    laid_out = through(lambda x: (x + 1, x.sum()))(blank.array)
    blank.content[:] = [[1, 2, 3], [4, 5, 2**32 - 2]]
    after, total = laid_out
    assert after.tolist() == [[2, 3, 4], [5, 6, 2**32 - 1]]
    assert total.item() == (15 + 2**32 - 2) % 2**32
    assert Blank.of((4, 0), np.int32).content.shape == (4, 0)
