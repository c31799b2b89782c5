"""A load works between the rounds of other engines, and stops at any slice without a trace."""

import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from itertools import groupby, pairwise

import mlx.core as mx
import mlx.nn as nn
import pytest

from helpers.fake_target import PARAMS, SECONDS, Rounds, fake_engine
from helpers.traffic import memory_at_rest
from mlx_gemma_mtp import Engine, SamplingParams, load
from mlx_gemma_mtp.engine.loading import AHEAD, PairFiles, Turns
from mlx_gemma_mtp.engine.worker import mlx_worker
from mlx_gemma_mtp.errors import LoadCancelledError
from mlx_gemma_mtp.files.names import DEMO, DEMO_DRAFTER
from mlx_gemma_mtp.files.slices import Piece, Slice
from mlx_gemma_mtp.files.sources import Joined

MOST = 1 << 20  # bytes of a slice: the demo has about 40 of them


@pytest.mark.parametrize(("slice_seconds", "most"), [(0.02, 3), (1.0, 1)])
def test_others_play_a_round_after_each_turn_of_a_load_that_reads_ahead(
    slice_seconds: float, most: int
) -> None:
    rounds, started = Rounds(), threading.Event()
    events: list[str] = []
    rounds.then = lambda: events.append("round")

    seen, ahead, busy = list[float](), threading.Event(), list[Future[bool]]()

    def watch(share: float) -> None:
        if not seen:  # at the first slice
            busy.append(mlx_worker().submit(partial(ahead.wait, SECONDS)))
        seen.append(share)
        if len(seen) == AHEAD + 1:
            ahead.set()

    def clock() -> float:  # read when a turn starts, and after each slice
        events.append("clock")
        return slice_seconds * len(events)

    with fake_engine(player=rounds.player) as engine:
        params = SamplingParams(max_tokens=400, ignore_eos=True, num_draft_tokens=1)
        talking = engine.submit([5], params, lambda _: started.set())
        started.wait()
        PairFiles(DEMO, None, None).load(watch, MOST, clock)
        assert not talking.done()
        talking.cancel()
    assert busy[0].result()
    turns = [len([*run]) - 1 for what, run in groupby(events) if what == "clock"]
    assert sum(turns) > 20  # slices
    assert max(turns) == most


def test_what_the_worker_raises_ends_the_load() -> None:
    def fail() -> mx.array:
        raise ZeroDivisionError

    piece = Piece(nn.Linear(1, 1), ("weight",), Joined((), axis=0), False, first=0, end=1)
    turns = Turns(time.perf_counter)
    turns.add(Slice([piece], [fail]))
    with pytest.raises(ZeroDivisionError):
        turns.finish()
    with pytest.raises(ZeroDivisionError):
        turns.add(Slice([piece], [fail]))


def test_progress_rises_from_0_to_1() -> None:
    seen: list[float] = []
    load("demo", on_progress=seen.append).close()
    assert seen[0] == 0
    assert seen[-1] == 1
    assert all(one < other for one, other in pairwise(seen))


ENDS: dict[str, tuple[Callable[[threading.Event], object], type[BaseException]]] = {
    "cancel": (threading.Event.set, LoadCancelledError),
    "ctrl-c": (lambda _: signal.raise_signal(signal.SIGINT), KeyboardInterrupt),
    "an error of the caller's": (lambda _: 1 / 0, ZeroDivisionError),
}


@pytest.mark.parametrize(("end", "error"), ENDS.values(), ids=ENDS)
@pytest.mark.parametrize("at", [0, 10])
def test_a_load_that_ends_early_leaves_nothing_and_others_work_on(
    running: Engine,
    end: Callable[[threading.Event], object],
    error: type[BaseException],
    at: int,
) -> None:
    before, expected = memory_at_rest(), running.generate([5], PARAMS)[0].tokens
    cancel, seen = threading.Event(), list[float]()

    def watch(share: float) -> None:
        if cancel.is_set():
            raise LoadCancelledError("as `load` does")
        seen.append(share)
        if len(seen) > at:
            end(cancel)

    with pytest.raises(error) as kept:
        PairFiles(DEMO, DEMO_DRAFTER, None).load(watch, MOST)
    assert len(seen) == at + 1
    assert memory_at_rest() == before
    assert kept.value.__traceback__ is not None  # and with it all frames
    assert running.generate([5], PARAMS)[0].tokens == expected


def test_load_raises_if_its_event_is_set_and_an_error_that_is_kept_holds_no_weights() -> None:
    before, cancel = memory_at_rest(), threading.Event()
    with pytest.raises(LoadCancelledError, match="demo") as kept:
        load("demo", on_progress=lambda _: cancel.set(), cancel=cancel)
    assert memory_at_rest() == before
    cancel.clear()
    load("demo", cancel=cancel).close()
    assert "\n" not in str(kept.value)


def test_weights_of_a_load_that_fails_after_them_are_freed() -> None:
    before = memory_at_rest()

    def stop(_: float) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        load("demo", probe=stop, exact=True)  # which measures on a CPU as well
    assert memory_at_rest() == before
