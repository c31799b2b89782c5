"""Warming up: what is played before the first request, and that it leaves no trace."""

import gc
import threading
from typing import Any

import mlx.core as mx
import pytest

from helpers.fake_target import (
    PARAMS,
    SECONDS,
    FakeTarget,
    fake_engine,
    fake_pair,
    fake_player,
    output,
)
from mlx_gemma_mtp import Engine, SamplingParams
from mlx_gemma_mtp.decode.depth import MOST, Depth
from mlx_gemma_mtp.decode.division import Shape
from mlx_gemma_mtp.decode.player import RoundPlayer
from mlx_gemma_mtp.decode.round import Round
from mlx_gemma_mtp.decode.table import PassTable
from mlx_gemma_mtp.engine.warm_up import PROMPT, first_drafts
from mlx_gemma_mtp.engine.worker import mlx_worker

PREFILL = ("chunk", len(PROMPT))


class Watched:
    """An engine whose prompts and rounds are noted in their order; `gate` holds them up."""

    def __init__(self, *, drafter: bool = True, **options: Any) -> None:
        self.played: list[tuple[str, int]] = []
        self.started, self.gate = threading.Event(), threading.Event()
        self.gate.set()
        pair = fake_pair(FakeTarget(lambda rows: self._note("chunk", len(rows[0]))))
        pair = pair if drafter else pair._replace(drafter=None)
        self.engine = Engine(pair, player=self._player, **options)

    def _note(self, what: str, size: int) -> None:
        self.played.append((what, size))
        self.started.set()
        assert self.gate.wait(SECONDS)

    def _player(self, *models: Any) -> RoundPlayer:
        player = fake_player(*models)

        def verify(*arguments: Any) -> Round:
            self._note("round", arguments[-1].shape[1])
            return player.verify(*arguments)

        return player._replace(verify=verify)


def wait_for(engine: Engine) -> None:
    """Wait until the warm-up is over."""
    while engine.warming:
        mlx_worker().run(lambda: None)


def test_a_prompt_and_a_round_are_played_for_each_number_of_drafts() -> None:
    watched = Watched()
    with watched.engine as engine:
        engine.warm_up(on_cpu=True)
        wait_for(engine)
        drafts = first_drafts(Depth())
        assert watched.played[::2] == [PREFILL] * len(drafts)
        assert watched.played[1::2] == [("round", count) for count in drafts]
        engine.warm_up(on_cpu=True)
        wait_for(engine)
        assert len(watched.played) == 2 * len(drafts)  # once


def test_the_drafts_that_are_known_to_be_best_are_played_as_well() -> None:
    free = PassTable(passes={1: 1.0, 64: 1.001}, steps={1: 1e-6})
    depth = Depth(table=free)
    watched = Watched(depth=depth)
    with watched.engine as engine:
        engine.warm_up(on_cpu=True)
        wait_for(engine)
    assert watched.played[-1] == ("round", MOST)


def test_without_a_drafter_only_plain_rounds_are_played() -> None:
    watched = Watched(drafter=False)
    with watched.engine as engine:
        engine.warm_up(on_cpu=True)
        wait_for(engine)
    assert watched.played == [PREFILL, ("round", 0)]


def test_on_a_cpu_nothing_is_played() -> None:
    watched = Watched()
    with watched.engine as engine:
        engine.warm_up()
        assert not engine.warming
    assert watched.played == []


def test_a_request_goes_first_and_the_rest_is_dropped(prompts: list[list[int]]) -> None:
    watched = Watched()
    with watched.engine as engine:
        watched.gate.clear()
        engine.warm_up(on_cpu=True)
        assert watched.started.wait(SECONDS)
        assert engine.warming
        generation = engine.submit(prompts[1], PARAMS)
        watched.gate.set()
        assert generation.result(SECONDS).tokens == output(prompts[1], 16)
        assert not engine.warming
    start = watched.played.index(("chunk", len(prompts[1])))
    assert watched.played[:start] in ([PREFILL], [PREFILL, ("round", 0)])
    assert PREFILL not in watched.played[start:]


def test_closing_ends_it_within_a_step() -> None:
    watched = Watched()
    watched.gate.clear()
    watched.engine.warm_up(on_cpu=True)
    assert watched.started.wait(SECONDS)
    closing = threading.Thread(target=watched.engine.close)
    closing.start()
    watched.gate.set()
    closing.join(SECONDS)
    assert not closing.is_alive()
    assert not watched.engine.warming
    assert len(watched.played) <= 2
    watched.engine.warm_up(on_cpu=True)  # does nothing
    assert not watched.engine.warming


def test_after_a_request_it_does_nothing(prompts: list[list[int]]) -> None:
    watched = Watched()
    with watched.engine as engine:
        engine.generate(prompts[0], PARAMS)
        played = len(watched.played)
        engine.warm_up(on_cpu=True)
        assert not engine.warming
        assert len(watched.played) == played


class Timed(Depth):
    """Notes the timings that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.timings: list[Shape] = []

    def round_took(self, shape: Shape, seconds: float) -> None:
        self.timings.append(shape)

    def round_compiled(self, shape: Shape, seconds: float) -> None:
        self.timings.append(shape)


def test_it_leaves_no_trace_in_timings_outputs_and_memory(prompts: list[list[int]]) -> None:
    free = SamplingParams(max_tokens=24, temperature=1, seed=3, ignore_eos=True)
    with fake_engine(FakeTarget(certainty=0.05)) as cold:
        expected = [one.tokens for one in cold.generate(prompts[:2], free)]
    depth = Timed()
    with fake_engine(FakeTarget(certainty=0.05), depth=depth) as engine:
        gc.collect()
        before = mlx_worker().run(mx.get_active_memory)
        engine.warm_up(on_cpu=True)
        wait_for(engine)
        gc.collect()
        assert mlx_worker().run(mx.get_active_memory) <= before
        assert depth.timings == []
        done = engine.generate(prompts[:2], free)
        assert [one.tokens for one in done] == expected
        assert depth.timings != []


@pytest.mark.parametrize("calls", [1, 2])
def test_an_error_in_it_is_nobodys(calls: int, prompts: list[list[int]]) -> None:
    left = [calls]

    def fail(tokens: list[int]) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise RuntimeError("[malloc] Unable to allocate 1024 bytes.")

    with fake_engine(FakeTarget(fail)) as engine:
        engine.warm_up(on_cpu=True)
        wait_for(engine)
        assert left[0] < 0  # it continued with the others
        assert engine.generate(prompts[0], PARAMS)[0].tokens == output(prompts[0], 16)
