"""An engine whose weights leave the memory while it is idle gives the same output as one that
keeps them, whatever is submitted, cancelled, closed or saved meanwhile.
"""

import logging
import random
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.fake_target import PARAMS, FakeDrafter, FakeTarget, fake_engine, fake_pair, fake_player
from helpers.traffic import SECONDS, in_time, memory_at_rest
from mlx_gemma_mtp import Engine, Generation, SamplingParams, load
from mlx_gemma_mtp.engine.loading import Models, Watch
from mlx_gemma_mtp.engine.pair import open_pair
from mlx_gemma_mtp.engine.residence import Residence
from mlx_gemma_mtp.engine.worker import mlx_worker
from mlx_gemma_mtp.errors import CheckpointError, ClosedError, MgmError
from mlx_gemma_mtp.files.names import DEMO, DEMO_DRAFTER

GREEDY = SamplingParams(max_tokens=12, temperature=0)
SMALL = 1000  # bytes, of constants


class Clock:
    """Stands in for `residence.after`: time passes when somebody says so."""

    def __init__(self) -> None:
        self._jobs: list[Callable[[], Any]] = []

    def after(self, _: float, job: Callable[[], object]) -> Callable[[], None]:
        self._jobs.append(job)
        return lambda: self._jobs.remove(job) if job in self._jobs else None

    def pass_by(self) -> None:
        """Run what is due, and wait for it."""
        mlx_worker().run(lambda: None)  # a request that has ended may still be on its way out
        for job in list(self._jobs):
            self._jobs.remove(job)
            job()
        mlx_worker().run(lambda: None)


class Files:
    """Stands in for `PairFiles`; `during` is called for each of its slices."""

    def __init__(self) -> None:
        self.loads = 0
        self.during: Callable[[], object] = lambda: None

    def load(self, watch: Watch) -> Models:
        for number in range(3):
            self.during()
            watch(number / 3)
        self.loads += 1
        return Models(FakeTarget(), FakeDrafter())  # type: ignore[arg-type]


def idle_engine(clock: Clock, files: Files, **options: Any) -> Engine:
    pair = fake_pair()._replace(files=files)  # type: ignore[arg-type]
    return Engine(pair, player=fake_player, idle_unload=60, after=clock.after, **options)


def tokens(engine: Engine, prompt: list[int]) -> list[int]:
    return engine.generate([prompt], PARAMS)[0].tokens


def test_idle_weights_leave_the_memory_and_come_back_with_the_next_request(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "mlx_gemma_mtp")
    before, clock = memory_at_rest(), Clock()
    engine = Engine(open_pair("demo"), idle_unload=60, after=clock.after, prefix_cache=10**8)
    with engine:
        loaded = memory_at_rest() - before
        expected = engine.generate("What is 17 + 25?", GREEDY)[0]
        engine.generate([7] * 100, GREEDY)
        assert engine.status.prefix_bytes > 0
        clock.pass_by()
        assert not engine.loaded
        assert memory_at_rest() - before < loaded / 100
        assert engine.status.memory_bytes - before < loaded / 100
        done = engine.generate("What is 17 + 25?", GREEDY)[0]
        assert engine.loaded
        assert (done.tokens, done.text) == (expected.tokens, expected.text)
        assert done.stats.queue_seconds > expected.stats.queue_seconds
    assert memory_at_rest() - before < SMALL
    words = [word for word in caplog.messages if word.startswith("the weights")]
    assert words == [
        "the weights left the memory after 60 s without a request",
        "the weights are loaded again",
    ]


def test_an_engine_that_has_had_no_request_gets_idle_too() -> None:
    clock, files = Clock(), Files()
    with idle_engine(clock, files) as engine:
        clock.pass_by()
        assert not engine.loaded
        with fake_engine() as other:
            assert tokens(engine, [5]) == tokens(other, [5])
        assert files.loads == 1


def test_a_session_holds_its_tokens_while_the_weights_are_gone() -> None:
    clock = Clock()
    with idle_engine(clock, Files()) as engine, fake_engine() as other:
        first, second = engine.session(), other.session()
        turns = [[1, 2, 3], [1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6, 7, 8]]
        for turn in turns:
            mine = engine.submit(turn, PARAMS, session=first).result()
            clock.pass_by()
            theirs = other.submit(turn, PARAMS, session=second).result()
            assert mine.tokens == theirs.tokens
            assert mine.stats.reused_tokens == theirs.stats.reused_tokens


def test_requests_that_wait_for_a_failed_load_get_its_error_and_the_next_load_may_work(
    tmp_path: Path,
) -> None:
    copy, drafter = (shutil.copytree(one, tmp_path / one.name) for one in (DEMO, DEMO_DRAFTER))
    clock = Clock()
    with Engine(open_pair(copy, drafter), idle_unload=60, after=clock.after) as engine:
        expected = engine.generate("Hello", GREEDY)[0].tokens
        clock.pass_by()
        copy.rename(tmp_path / "away")
        with pytest.raises(CheckpointError):
            engine.generate("Hello", GREEDY)
        (tmp_path / "away").rename(copy)
        assert engine.generate("Hello", GREEDY)[0].tokens == expected


def test_a_request_can_be_cancelled_while_its_model_is_loaded() -> None:
    clock, files = Clock(), Files()
    with idle_engine(clock, files) as engine:
        clock.pass_by()
        resume = threading.Event()
        files.during = lambda: resume.wait(SECONDS)
        stopped, other = engine.submit([5], PARAMS), engine.submit([5], PARAMS)
        stopped.cancel()
        resume.set()
        assert stopped.result().finish_reason == "cancelled"
        assert other.result().tokens == tokens(engine, [5])


def test_an_engine_that_is_closed_while_it_loads_leaves_nothing() -> None:
    before, clock = memory_at_rest(), Clock()
    pair = open_pair("demo")
    started, resume = threading.Event(), threading.Event()
    files = pair.files
    assert files is not None

    class Slow(Files):
        def load(self, watch: Watch) -> Models:
            def watched(share: float) -> None:
                started.set()
                resume.wait(SECONDS)
                watch(share)

            return files.load(watched, 1 << 20)

    engine = Engine(
        pair._replace(files=Slow()),  # type: ignore[arg-type]
        idle_unload=60,
        after=clock.after,
    )
    del pair
    clock.pass_by()
    waiting = engine.submit([5], GREEDY)
    started.wait(SECONDS)
    engine.close()
    with pytest.raises(ClosedError):
        waiting.result()
    resume.set()
    reloading = [one for one in threading.enumerate() if "_reload" in one.name]
    for thread in reloading:
        thread.join(SECONDS)
    assert memory_at_rest() - before < SMALL


@pytest.mark.parametrize("part", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2, 3))])
def test_any_order_of_submit_cancel_idle_and_close_ends_with_the_same_outputs(
    part: int, seed: int
) -> None:
    with fake_engine() as other:
        expected = {prompt: tokens(other, [prompt, 3]) for prompt in range(4)}
    done = 0

    def one_order(number: int) -> None:
        nonlocal done
        draw = random.Random(f"{seed} {part} {number}")
        clock, files = Clock(), Files()
        engine, under_way = idle_engine(clock, files), list[tuple[int, Generation]]()
        files.during = lambda: draw.random() < 0.1 and clock.pass_by
        for _ in range(draw.randint(1, 12)):
            step = draw.choice(["submit", "submit", "submit", "cancel", "wait", "idle", "idle"])
            if step == "submit":
                prompt = draw.randrange(4)
                under_way.append((prompt, engine.submit([prompt, 3], PARAMS)))
            elif step == "cancel" and under_way:
                draw.choice(under_way)[1].cancel()
            elif step == "wait" and under_way:
                draw.choice(under_way)[1].result(SECONDS)
            elif step == "idle":
                clock.pass_by()
        if draw.random() < 0.5:
            engine.close()
        for prompt, generation in under_way:
            try:
                found = generation.result(SECONDS)
            except ClosedError:
                assert engine.closed
                continue
            whole = found.finish_reason != "cancelled"
            assert found.tokens == expected[prompt][: None if whole else len(found.tokens)]
        engine.close()
        done += 1

    in_time([lambda: [one_order(n) for n in range(50)] and None], lambda: done)
    assert done == 50


class Steps:
    """Stands in for a scheduler and its batch: always loaded, and done after one step."""

    loaded = True

    def step(self) -> bool:
        return False


def test_a_mac_is_kept_awake_exactly_while_there_is_work() -> None:
    held: list[str] = []

    def hold() -> Callable[[], None]:
        held.append("begin")
        return lambda: held.append("end")

    steps: Any = Steps()
    residence = Residence(steps, lambda _: steps, on_unload=lambda: None, hold=hold)
    residence.rest()
    assert held == []
    for _ in range(2):
        mlx_worker().run(lambda: residence.work(steps))
    assert held == ["begin"]
    for _ in range(2):
        mlx_worker().run(residence.rest)
    assert held == ["begin", "end"]
    mlx_worker().run(lambda: residence.work(steps))
    mlx_worker().run(residence.close)
    assert held == ["begin", "end"] * 2


def test_seconds_of_idle_unload_are_checked() -> None:
    for wrong in (0, -1, float("nan"), float("inf"), "60", True):
        with pytest.raises(MgmError, match="idle_unload"):
            load("demo", idle_unload=wrong)  # type: ignore[arg-type]
