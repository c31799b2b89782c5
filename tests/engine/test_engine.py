"""The engine as programs use it: any thread, streams, interrupts, errors, closing."""

import gc
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import pytest

from helpers.fake_target import FakeTarget, LettersText, Rounds, fake_engine, output, spelled
from mlx_gemma_mtp import Chunk, Engine, MgmError, SamplingParams
from mlx_gemma_mtp.engine.worker import mlx_worker
from mlx_gemma_mtp.errors import GenerationError

PARAMS = SamplingParams(max_tokens=16, seed=11, ignore_eos=True)
ENDLESS = SamplingParams(max_tokens=900, seed=11, ignore_eos=True, num_draft_tokens=0)
SECONDS = 60  # after which a thread that should long have ended hangs


@pytest.fixture(scope="module")
def running() -> Iterator[Engine]:
    """An engine made by a thread that has ended since."""
    with ThreadPoolExecutor(1) as maker:
        engine = maker.submit(fake_engine).result()
    with engine:
        yield engine


@pytest.fixture
def rounds() -> Rounds:
    return Rounds()


def tokens_of(chunks: list[Chunk]) -> list[int]:
    return [token for chunk in chunks for token in chunk.tokens]


def assert_works(running: Engine, prompt: list[int]) -> None:
    assert running.generate(prompt, PARAMS)[0].tokens == output(prompt, 16)


# Threads and streams


def test_many_threads_at_once_get_their_own_outputs(
    running: Engine, prompts: list[list[int]]
) -> None:
    together = threading.Barrier(len(prompts))

    def ask(prompt: list[int]) -> list[list[int]]:
        together.wait(SECONDS)
        generated = running.generate(prompt, PARAMS)[0].tokens
        return [generated, tokens_of(list(running.stream(prompt, PARAMS)))]

    with ThreadPoolExecutor(len(prompts)) as threads:
        found = list(threads.map(ask, prompts, timeout=SECONDS))
    assert found == [[output(prompt, 16)] * 2 for prompt in prompts]


def test_a_stream_may_be_read_by_another_thread(running: Engine, prompts: list[list[int]]) -> None:
    stream = running.stream(prompts[0], PARAMS)
    first = next(stream)
    with ThreadPoolExecutor(1) as other:
        rest = other.submit(list, stream).result(SECONDS)
    assert tokens_of([first, *rest]) == output(prompts[0], 16)


@pytest.mark.parametrize("num_draft_tokens", [0, 3])
def test_a_stream_gives_what_generate_gives(
    prompts: list[list[int]], num_draft_tokens: int
) -> None:
    with fake_engine(text=LettersText()) as running:
        plain = replace(PARAMS, num_draft_tokens=num_draft_tokens)
        whole = running.generate(prompts[0], plain)[0].text
        met, unmet = [whole[6:8]], [whole[-1] + "#"]  # the second is held back until the end
        for params in (plain, replace(plain, stop=met), replace(plain, stop=unmet)):
            (done,) = running.generate(prompts[0], params)
            chunks = list(running.stream(prompts[0], params))
            assert tokens_of(chunks) == done.tokens
            assert "".join(chunk.text for chunk in chunks) == done.text
            assert [chunk.finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
            assert [chunk.stats for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
            assert chunks[-1].finish_reason == done.finish_reason
            assert chunks[-1].stats is not None
            assert chunks[-1].stats.rounds == done.stats.rounds
            assert chunks[-1].stats.generated_tokens == len(done.tokens)
            stopped = params.stop == met
            assert done.text == (whole[: whole.index(met[0])] if stopped else whole)
        assert whole == spelled(done.tokens)


def leave_closed(stream: Iterator[Chunk]) -> None:
    next(stream)
    next(stream)
    stream.close()  # type: ignore[attr-defined]


def leave_by_break(stream: Iterator[Chunk]) -> None:
    for chunk in stream:
        if chunk.tokens:
            break


def leave_unread(stream: Iterator[Chunk]) -> None:
    stream.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("leave", [leave_closed, leave_by_break, leave_unread])
def test_leaving_a_stream_stops_it_and_the_engine_continues(
    prompts: list[list[int]], rounds: Rounds, leave: Callable[[Iterator[Chunk]], None]
) -> None:
    with fake_engine(player=rounds.player) as running:
        leave(running.stream(prompts[0], ENDLESS))
        gc.collect()
        played = len(rounds.sizes)
        running.generate(prompts[0], replace(PARAMS, max_tokens=1))  # plays no round of its own
        assert len(rounds.sizes) <= played + 2  # the one in flight, the one after it
        assert_works(running, prompts[1])


# Interrupts and errors


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt, also if the shell makes this process ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def stream_to_end(running: Engine, prompt: list[int], params: SamplingParams) -> None:
    for _ in running.stream(prompt, params):
        pass


def generate(running: Engine, prompt: list[int], params: SamplingParams) -> None:
    running.generate([prompt] * 3, params)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("use", [generate, stream_to_end])
def test_an_interrupt_stops_the_work_and_the_engine_continues(
    prompts: list[list[int]], rounds: Rounds, use: Callable[..., None]
) -> None:
    main = threading.main_thread().ident
    assert main is not None

    def interrupt() -> None:
        if len(rounds.sizes) == 3:
            signal.pthread_kill(main, signal.SIGINT)  # as Ctrl-C does, in the middle of an output

    with fake_engine(player=rounds.player) as running:
        rounds.then = interrupt
        with pytest.raises(KeyboardInterrupt):
            use(running, prompts[0], ENDLESS)
        played = len(rounds.sizes)
        running.generate(prompts[0], replace(PARAMS, max_tokens=1))
        assert len(rounds.sizes) <= played + 2
        assert_works(running, prompts[1])


@pytest.mark.parametrize("use", [generate, stream_to_end])
def test_an_error_in_a_round_reaches_the_caller_and_the_engine_continues(
    prompts: list[list[int]], rounds: Rounds, use: Callable[..., None]
) -> None:
    def fail() -> None:
        raise RuntimeError("out of something")

    with fake_engine(player=rounds.player) as running:
        rounds.then = fail
        with pytest.raises(GenerationError, match="out of something") as raised:
            use(running, prompts[0], PARAMS)
        assert isinstance(raised.value.__cause__, RuntimeError)
        rounds.then = lambda: None
        assert_works(running, prompts[1])


# Closing


def test_a_closed_engine_says_so(prompts: list[list[int]]) -> None:
    with fake_engine() as running:
        assert_works(running, prompts[0])
    running.close()
    running.close()
    with pytest.raises(MgmError, match="closed"):
        running.generate(prompts[0], PARAMS)
    with pytest.raises(MgmError, match="closed"):
        running.stream(prompts[0], PARAMS)
    with fake_engine() as again:
        assert_works(again, prompts[0])


def test_closing_frees_the_memory(prompts: list[list[int]]) -> None:
    class Heavy(FakeTarget):
        def __init__(self) -> None:
            super().__init__()
            self.weights = mx.zeros((1_000_000,))
            mx.eval(self.weights)

    gc.collect()
    before = mx.get_active_memory()
    running = fake_engine(mlx_worker().run(Heavy))
    running.generate(prompts, PARAMS)
    assert mx.get_active_memory() > before + 4_000_000
    running.close()
    gc.collect()
    assert mx.get_active_memory() < before + 100_000
    assert mx.get_cache_memory() == 0


END = {
    "closed": "with fake_engine() as engine: engine.generate([5, 6, 7], params)",
    "left open": "engine = fake_engine(); engine.generate([5, 6, 7], params)",
    "streaming": "stream = fake_engine().stream([5, 6, 7], params); next(stream)",
    "failed": "import contextlib\nwith contextlib.suppress(Exception): load(DEMO_DRAFTER)",
}


@pytest.mark.parametrize("end", END)
def test_a_process_that_used_an_engine_ends_cleanly(tmp_path: Path, end: str) -> None:
    script = (
        "from helpers.fake_target import fake_engine\n"
        "from mlx_gemma_mtp import SamplingParams, load\n"
        "from mlx_gemma_mtp.files.hub import DEMO_DRAFTER\n"
        "params = SamplingParams(max_tokens=60, ignore_eos=True)\n"
    ) + END[end]
    where = {"PYTHONPATH": str(Path(__file__).parents[1])}
    ended = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=os.environ | where,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
