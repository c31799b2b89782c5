"""An isolated engine gives what an ordinary one gives, and no death of a process leaves a trace."""

import asyncio
import gc
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mlx_gemma_mtp
from mlx_gemma_mtp import (
    Chunk,
    ClosedError,
    Completion,
    Engine,
    LoadCancelledError,
    MgmError,
    ModelNotFoundError,
    QueueFullError,
    RequestTimeoutError,
    SamplingParams,
    UsageError,
    WorkerDiedError,
    load,
)
from mlx_gemma_mtp.engine.remote_engine import RemoteEngine
from mlx_gemma_mtp.engine.status import Status

SECONDS = 120  # after which a request or a process counts as stuck
SHORT = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True, seed=0)
LONG = SamplingParams(max_tokens=3000, temperature=0, ignore_eos=True, num_draft_tokens=0)
QUESTION = "What is 17 + 25?"


def load_isolated(model: str | Path = "demo", **options: Any) -> RemoteEngine:
    engine = load(model, isolated=True, **options)
    assert isinstance(engine, RemoteEngine)
    return engine


@pytest.fixture(scope="module")
def isolated() -> Iterator[RemoteEngine]:
    with load_isolated(max_queue=4, prefix_cache=10**7) as engine:
        yield engine


def kill(engine: RemoteEngine, number: int = signal.SIGKILL) -> int:
    """Kill the worker, and return its id."""
    assert engine.worker_pid is not None
    killed = engine.worker_pid
    os.kill(killed, number)
    return killed


def await_loss(engine: RemoteEngine) -> None:
    """Wait until the death of the worker is known here."""
    end = time.monotonic() + SECONDS
    while engine.worker_pid is not None and time.monotonic() < end:
        threading.Event().wait(0.01)
    assert engine.worker_pid is None


def is_gone(pid: int) -> bool:
    """True if a process has ended and is no zombie of this one."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def outcome(done: Completion) -> tuple[object, ...]:
    """What must be equal: everything but the times and the random ids of calls."""
    stats = done.stats
    return (
        *(done.text, done.tokens, done.finish_reason, done.seed, done.thought, done.tool_calls),
        *(done.unclosed, done.exact, done.logprobs, stats.prompt_tokens, stats.generated_tokens),
    )


def weather(city: str) -> str:
    """Return the weather.

    Args:
        city: its name
    """
    return f"sunny in {city}"


def ask_all(engine: Engine) -> list[tuple[object, ...]]:
    """Use everything that changes an output."""
    asked = [
        SamplingParams(max_tokens=10, seed=1),
        SamplingParams(max_tokens=10, seed=2, temperature=1.5, min_p=0.05, logprobs=2),
        SamplingParams(max_tokens=8, seed=3, logit_bias={np.int64(5): -100}, stop=["4", "\ud800"]),
        SamplingParams(max_tokens=10, choices=("forty-two", "ümläut"), seed=4),
        SamplingParams(
            max_tokens=12, json_schema={"type": "object"}, seed=5, stop_token_ids=(np.int32(7),)
        ),
        SamplingParams(
            max_tokens=10, frequency_penalty=1, presence_penalty=1, thinking=True, seed=6
        ),
    ]
    done = engine.generate([QUESTION] * len(asked), asked)
    done += engine.generate(QUESTION, SamplingParams(max_tokens=4, seed=7), n=3)
    calls = SamplingParams(max_tokens=30, tool_choice="weather", seed=0)
    done += engine.generate("How is it in Rome?", calls, tools=[weather])
    session = engine.session()
    for _ in range(2):
        done += engine.generate([{"role": "user", "content": QUESTION}], SHORT, sessions=session)
    assert done[-1].stats.reused_tokens == done[-1].stats.prompt_tokens - 1
    done.append(engine.chat("Be brief.", params=SHORT).send(QUESTION))
    streamed = engine.stream(QUESTION, SHORT)
    assert "".join(chunk.text for chunk in streamed) == streamed.result().text == streamed.text
    return [outcome(one) for one in done]


def test_its_outputs_and_facts_are_those_of_an_engine_in_this_process(
    isolated: RemoteEngine,
) -> None:
    with load("demo") as plain:
        assert ask_all(isolated) == ask_all(plain)
        for name in ("name", "drafter_name", "notes", "config", "has_drafter", "closed", "loaded"):
            assert getattr(isolated, name) == getattr(plain, name), name
        assert repr(isolated) == repr(plain)
        assert isolated.count_tokens(QUESTION) == plain.count_tokens(QUESTION)
        assert isolated.decode(isolated.encode("to be")) == plain.decode(plain.encode("to be"))
        assert isolated.longest_context() == plain.longest_context()
    assert isolated.status[:3] == (0, 0, 0)
    assert isolated.status.memory_bytes > 0


def test_prefixes_are_kept_there(isolated: RemoteEngine) -> None:
    before = isolated.status.prefix_hits
    for _ in range(2):
        [done] = isolated.generate([7] * 100, SHORT)
    assert done.stats.reused_tokens == 99
    end = time.monotonic() + SECONDS
    while isolated.status.prefix_hits == before and time.monotonic() < end:
        threading.Event().wait(0.01)
    assert isolated.status.prefix_hits == before + 1
    assert isolated.status.prefix_bytes > 0


def test_sessions_are_saved_forked_and_restored_there(
    isolated: RemoteEngine, tmp_path: Path
) -> None:
    session = isolated.session()
    with pytest.raises(UsageError, match="nothing to save"):
        session.save(tmp_path / "empty")
    (first,) = isolated.generate(QUESTION, SHORT, sessions=session)
    session.save(tmp_path / "saved")
    with pytest.raises(OSError, match="not a folder"):
        session.save(tmp_path / "none" / "saved")
    restored, forked = isolated.session(tmp_path / "saved"), session.fork()
    session.close()
    for one, reused in ((session, 0), (restored, 23), (forked, 23)):
        (again,) = isolated.generate(QUESTION, SHORT, sessions=one)
        assert again.tokens == first.tokens
        assert again.stats.reused_tokens == reused


def test_what_is_wrong_is_raised_in_the_caller_at_once(isolated: RemoteEngine) -> None:
    with pytest.raises(UsageError, match="empty"):
        isolated.submit("")
    with pytest.raises(UsageError, match="session"):
        isolated.submit(QUESTION, session="mine")  # type: ignore[arg-type]
    busy = [isolated.submit(QUESTION, LONG) for _ in range(8 + 4)]
    with pytest.raises(QueueFullError, match="4 requests are waiting"):
        isolated.submit(QUESTION)
    for one in busy:
        one.cancel()
    assert {one.result(SECONDS).finish_reason for one in busy} == {"cancelled"}


def test_callbacks_run_here_and_may_not_wait(isolated: RemoteEngine) -> None:
    chunks: list[Chunk] = []
    done = isolated.submit(QUESTION, SHORT, chunks.append).result(SECONDS)
    assert [token for chunk in chunks for token in chunk.tokens] == done.tokens
    assert chunks[-1].stats == done.stats

    waits = isolated.submit(QUESTION, LONG, lambda _: isolated.generate(QUESTION))
    with pytest.raises(UsageError, match="must not wait"):
        waits.result(SECONDS)
    fails = isolated.submit(QUESTION, LONG, lambda _: 1 / 0)
    with pytest.raises(MgmError) as caught:
        fails.result(SECONDS)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    with pytest.raises(RequestTimeoutError):
        isolated.submit(QUESTION, LONG, timeout=0.05).result(SECONDS)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGABRT])
def test_a_worker_that_dies_ends_what_is_under_way_and_the_next_request_works(
    isolated: RemoteEngine, number: signal.Signals
) -> None:
    session = isolated.session()
    isolated.generate(QUESTION, SHORT, sessions=session)
    going = [isolated.submit(QUESTION, LONG) for _ in range(10)]  # 2 wait
    turn = isolated.submit(QUESTION, LONG, session=session)
    next(going[0])
    killed = kill(isolated, number)
    for one in [*going, turn]:
        with pytest.raises(WorkerDiedError, match=number.name):
            one.result(SECONDS)
    assert is_gone(killed)
    await_loss(isolated)
    assert isolated.status == Status()
    (again,) = isolated.generate(QUESTION, SHORT, sessions=session)
    assert (len(again.tokens), again.stats.reused_tokens) == (8, 0)
    (again,) = isolated.generate(QUESTION, SHORT, sessions=session)
    assert again.stats.reused_tokens == 23


def test_what_waits_for_a_new_worker_can_be_stopped(isolated: RemoteEngine) -> None:
    kill(isolated)
    await_loss(isolated)
    stopped, served = (isolated.submit(QUESTION, SHORT) for _ in range(2))
    late = isolated.submit(QUESTION, SHORT, timeout=0.001)
    stopped.cancel()
    assert stopped.result(SECONDS).finish_reason == "cancelled"
    with pytest.raises(RequestTimeoutError):
        late.result(SECONDS)
    assert not served.done()
    assert len(served.result(SECONDS).tokens) == 8


def test_event_loops_read_await_and_close() -> None:
    async def use() -> None:
        async with await mlx_gemma_mtp.aload("demo", isolated=True) as engine:
            text = ""
            async for chunk in engine.stream(QUESTION, SHORT):
                text += chunk.text
            assert text == (await engine.submit(QUESTION, SHORT)).text
            left = engine.submit(QUESTION, LONG)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(left, 0.05)
            assert left.result(SECONDS).finish_reason == "cancelled"
        assert engine.closed

    asyncio.run(use())


def test_a_model_that_is_gone_is_reported_and_never_tried_again_and_again(tmp_path: Path) -> None:
    demo = Path(mlx_gemma_mtp.__file__).parent / "demo"
    for name in ("gemma-4-demo-it", "gemma-4-demo-it-assistant"):
        shutil.copytree(demo / name, tmp_path / name)
    model = tmp_path / "gemma-4-demo-it"
    drafter = tmp_path / "gemma-4-demo-it-assistant"
    with load_isolated(model, drafter=drafter) as engine:
        model.rename(tmp_path / "away")
        kill(engine)
        await_loss(engine)
        for _ in range(2):
            with pytest.raises(ModelNotFoundError, match=model.name):
                engine.generate(QUESTION, SHORT)
        (tmp_path / "away").rename(model)
        assert len(engine.generate(QUESTION, SHORT)[0].tokens) == 8


def children() -> set[str]:
    """The child processes of this one."""
    listed = subprocess.run(
        ["ps", "-A", "-o", "ppid=,pid=,comm="], check=True, capture_output=True, text=True
    ).stdout
    lines = (line.split(maxsplit=2) for line in listed.splitlines())
    return {pid for parent, pid, name in lines if int(parent) == os.getpid() and name != "ps"}


def stop(_: float) -> None:
    raise KeyboardInterrupt


def cancelled() -> threading.Event:
    event = threading.Event()
    event.set()
    return event


@pytest.mark.parametrize(
    ("model", "options", "error"),
    [
        ("nobody/nothing-here", {}, ModelNotFoundError),
        ("demo", {"cancel": cancelled()}, LoadCancelledError),
        ("demo", {"on_progress": stop}, KeyboardInterrupt),
        ("demo", {"isolated": "yes"}, UsageError),
    ],
)
def test_a_load_that_fails_raises_here_and_leaves_no_process(
    model: str, options: dict[str, Any], error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    before = children()
    with pytest.raises(error):
        load(model, **{"isolated": True} | options)
    assert children() == before


def test_closing_ends_the_worker_and_what_is_under_way() -> None:
    engine = load_isolated()
    pid, going = engine.worker_pid, engine.submit(QUESTION, LONG)
    next(going)
    engine.close()
    engine.close()
    assert pid is not None
    assert is_gone(pid)
    with pytest.raises(ClosedError):
        going.result(SECONDS)
    with pytest.raises(ClosedError):
        engine.submit(QUESTION)


def test_an_engine_that_is_dropped_ends_its_worker_after_its_requests() -> None:
    engine = load_isolated()
    pid, supervisor = engine.worker_pid, engine._remote._supervisor
    going = engine.submit(QUESTION, SHORT)
    del engine
    gc.collect()
    assert len(going.result(SECONDS).tokens) == 8
    supervisor.join()
    assert pid is not None
    assert is_gone(pid)


# No guard for its own file. A child that it forks holds no pipe of the worker.
PARENT = """
import os, signal
from mlx_gemma_mtp import SamplingParams, load
engine = load("demo", isolated=True)
going = engine.submit("Hi", SamplingParams(max_tokens=3000, ignore_eos=True))
next(going)
child = os.fork()
if child == 0:
    os.close(1), os.close(2)
    signal.pause()
print(child, flush=True)
going.result()
"""


def test_a_parent_that_is_killed_takes_its_worker_with_it() -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    forked = int(parent.stdout.readline())
    parent.kill()
    try:
        # Whoever lives holds one of these open.
        assert parent.communicate(timeout=SECONDS) == ("", "")
    finally:
        os.kill(forked, signal.SIGKILL)


def test_ctrl_c_is_for_the_parent_alone(isolated: RemoteEngine) -> None:
    assert isolated.generate(QUESTION, SHORT)
    going = isolated.submit(QUESTION, SHORT)
    kill(isolated, signal.SIGINT)
    assert len(going.result(SECONDS).tokens) == 8


def act(engine: RemoteEngine, rng: np.random.Generator, orders: list[str]) -> None:
    """Submit, and then cancel, read, wait for it, kill the worker or close the engine."""
    try:
        going = engine.submit(QUESTION, SamplingParams(max_tokens=int(rng.integers(1, 20))))
        for order in orders:
            if order == "cancel":
                going.cancel()
            elif order == "read":
                next(going, None)
            elif order == "kill" and (pid := engine.worker_pid) is not None:
                os.kill(pid, signal.SIGKILL)
            elif order == "close":
                engine.close()
        done = going.result(SECONDS)
        assert done.finish_reason in ("stop", "length", "cancelled")
    except (WorkerDiedError, ClosedError):
        pass
    except ProcessLookupError:  # it died before it was killed
        going.exception(SECONDS)


@pytest.mark.slow
def test_no_order_of_submit_cancel_kill_and_close_hangs(rng: np.random.Generator) -> None:
    engine, before = load_isolated(), children()
    for number in range(15):
        chances = {"cancel": 0.3, "read": 0.5, "kill": 0.06, "close": 0.02}
        threads: list[threading.Thread] = []
        for _ in range(3):
            own = np.random.default_rng(rng.integers(2**32))
            orders = [order for order, chance in chances.items() if own.random() < chance]
            own.shuffle(orders)
            threads.append(threading.Thread(target=act, args=[engine, own, orders], daemon=True))
        for one in threads:
            one.start()
        for one in threads:
            one.join(SECONDS)
            assert not one.is_alive(), number
        if engine.closed:
            engine = load_isolated()
        assert len(children()) <= len(before)
    engine.close()
    assert len(children()) < len(before)
