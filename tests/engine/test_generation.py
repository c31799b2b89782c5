"""A request as its caller sees it: read, stopped and waited for, from any thread."""

import concurrent.futures
import random
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from helpers.fake_target import ENDLESS, PARAMS, SECONDS, Rounds, fake_engine, output
from helpers.spelled import NumbersText, spelled
from helpers.traffic import tokens_of
from mlx_gemma_mtp import Chunk, Completion, Engine, Generation, MgmError, SamplingParams
from mlx_gemma_mtp.engine.results import Stats
from mlx_gemma_mtp.errors import ClosedError, RequestTimeoutError, UsageError

Ids = list[int]
DONE = Completion("a", [1], "stop", Stats(), 0)


# Reading


def test_every_loop_starts_with_the_first_chunk_and_next_reads_on(
    running: Engine, prompts: list[Ids]
) -> None:
    for make in (running.submit, running.stream):
        generation = make(prompts[0], PARAMS)
        assert [tokens_of(list(generation)) for _ in range(2)] == [output(prompts[0], 16)] * 2
        first = next(generation)
        assert tokens_of([first, *generation]) == output(prompts[0], 16)
        with pytest.raises(StopIteration):
            next(generation)
        assert generation.result() is generation.completion


def test_the_text_and_the_completion_are_there_as_soon_as_they_are(prompts: list[Ids]) -> None:
    rounds = Rounds()
    reached, resume = rounds.hold(after=5)
    with fake_engine(text=NumbersText(), player=rounds.player) as running:
        generation = running.submit(prompts[0], replace(PARAMS, num_draft_tokens=0))
        assert reached.wait(SECONDS)
        so_far, whole = generation.text, spelled(output(prompts[0], 16))
        assert so_far
        assert whole.startswith(so_far)
        assert so_far != whole
        assert generation.completion is None
        assert "running" in repr(generation)
        resume.set()
        assert generation.result(SECONDS).text == generation.text == whole
    assert repr(generation) == "<Generation length, 16 tokens>"


def test_a_stream_works_before_it_is_read(prompts: list[Ids]) -> None:
    ended = threading.Event()
    with fake_engine() as running:
        running.stream(prompts[0], PARAMS).add_done_callback(lambda _: ended.set())
        assert ended.wait(SECONDS)


def test_a_chunk_that_comes_just_as_somebody_starts_to_wait_is_read_at_once() -> None:
    generation, read = Generation(), list[Chunk]()

    class Late(list[Any]):
        """Those who wait; the chunk comes before the first is noted."""

        def append(self, one: Any) -> None:
            adding = threading.Thread(target=generation._add, args=[Chunk("a", [1])], daemon=True)
            adding.start()
            adding.join(0.1)  # it may have to wait for this
            super().append(one)

    generation._waiting = Late()
    reading = threading.Thread(target=lambda: read.append(next(generation)), daemon=True)
    reading.start()
    reading.join(SECONDS)
    assert [chunk.text for chunk in read] == ["a"]


def test_what_failed_is_raised_after_the_chunks_before_it() -> None:
    generation = Generation()
    generation._add(Chunk("a", [1]))
    generation._fail(MgmError("broken"))
    chunks = iter(generation)
    assert next(chunks).text == "a"
    with pytest.raises(MgmError, match="broken"):
        next(chunks)
    assert generation.completion is None


def test_only_the_engine_ends_a_request_and_nothing_at_its_end_reaches_another(
    running: Engine, prompts: list[Ids]
) -> None:
    def leave(_: object) -> None:
        raise SystemExit

    ended, left, other = (running.submit(prompt, PARAMS) for prompt in prompts[:3])
    for end in (ended.set_result, ended.set_exception):
        with pytest.raises(UsageError, match="cancel"):
            end(DONE)  # type: ignore[arg-type]
    with suppress(concurrent.futures.InvalidStateError):  # it may have ended
        Future.set_result(ended, DONE)
    left.add_done_callback(leave)
    assert other.result(SECONDS).tokens == output(prompts[2], 16)
    assert left.result(SECONDS).tokens == output(prompts[1], 16)
    assert running.submit(prompts[0], PARAMS).result(SECONDS).tokens == output(prompts[0], 16)


# Stopping


STOPS: dict[str, Callable[[Generation], object]] = {
    "cancel": lambda generation: generation.cancel(),
    "close": lambda generation: generation.close(),
    "close of an iterator": lambda generation: iter(generation).close(),
}


@pytest.mark.parametrize("stop", STOPS.values(), ids=STOPS)
def test_another_thread_stops_a_stream_that_is_being_read(
    running: Engine, prompts: list[Ids], stop: Callable[[Generation], object]
) -> None:
    generation = running.stream(prompts[0], ENDLESS)
    started, chunks = threading.Event(), list[Chunk]()

    def read() -> None:
        for chunk in generation:
            chunks.append(chunk)
            started.set()

    with ThreadPoolExecutor(1) as reader:
        reading = reader.submit(read)
        assert started.wait(SECONDS)
        stop(generation)
        reading.result(SECONDS)
    assert chunks[-1].finish_reason == "cancelled"
    assert tokens_of(chunks) == generation.result(0).tokens


def test_leaving_a_loop_early_stops_the_request(running: Engine, prompts: list[Ids]) -> None:
    generation = running.stream(prompts[0], ENDLESS)
    for _ in generation:
        break
    assert generation.result(SECONDS).finish_reason == "cancelled"
    generation = running.stream(prompts[0], ENDLESS)
    with suppress(KeyError):
        for _ in generation:
            raise KeyError
    assert generation.result(SECONDS).finish_reason == "cancelled"


def test_a_block_waits_for_the_end_and_stops_the_request_if_it_raises(
    running: Engine, prompts: list[Ids]
) -> None:
    with running.submit(prompts[0], PARAMS) as generation:
        pass
    assert generation.done()
    with suppress(KeyError), running.submit(prompts[0], ENDLESS) as generation:
        raise KeyError
    assert generation.result(0).finish_reason == "cancelled"


def test_the_next_turn_may_come_right_after_a_stop(running: Engine, prompts: list[Ids]) -> None:
    session, prompt = running.session(), prompts[0]
    for leave in (next, lambda it: [None for _ in zip(it, range(3), strict=False)]):
        for _ in range(8):
            stream = running.stream(prompt, ENDLESS, session=session)
            leave(stream)
            stream.close()
            again = running.submit(prompt, PARAMS, session=session)
            assert again.result(SECONDS).tokens == output(prompt, 16)
            assert stream.done()


def test_a_session_is_saved_right_after_a_stop(
    running: Engine, prompts: list[Ids], tmp_path: Any
) -> None:
    session = running.session()
    generation = running.stream(prompts[0], ENDLESS, session=session)
    next(generation)
    generation.cancel()
    session.save(str(tmp_path / "talk"))
    held = [*prompts[0], *generation.result(0).tokens]
    again = running.submit([*held, 5], PARAMS, session=running.session(str(tmp_path / "talk")))
    assert again.result(SECONDS).stats.reused_tokens == len(held) - 1


# Callbacks


WAITS: dict[str, Callable[[Engine, Generation], object]] = {
    "result": lambda _, other: other.result(),
    "exception": lambda _, other: other.exception(),
    "wait": lambda _, other: concurrent.futures.wait([other]),
    "as_completed": lambda _, other: list(concurrent.futures.as_completed([other])),
    "loop": lambda _, other: list(other),
    "next": lambda _, other: next(other),
    "with": lambda _, other: other.__exit__(None),
    "save": lambda engine, _: engine.session().save("talk"),
}


@pytest.mark.parametrize("wait", WAITS.values(), ids=WAITS)
def test_a_callback_cannot_wait_for_an_engine_in_any_way(
    running: Engine, prompts: list[Ids], wait: Callable[[Engine, Generation], object]
) -> None:
    other = running.submit(prompts[1], ENDLESS)

    def on_chunk(_: Chunk) -> None:
        generation = Generation() if wait is WAITS["next"] else other
        wait(running, generation)

    with pytest.raises(UsageError, match="callback"):
        running.submit(prompts[0], PARAMS, on_chunk).result(SECONDS)
    other.cancel()
    assert other.result(SECONDS)
    concurrent.futures.wait([other], SECONDS)


def test_a_callback_that_returns_a_coroutine_is_refused(
    running: Engine, prompts: list[Ids]
) -> None:
    async def show(_: Chunk) -> None:
        """Never runs."""

    with (
        pytest.warns(RuntimeWarning, match="never awaited"),
        pytest.raises(UsageError, match="coroutine"),
    ):
        running.submit(prompts[0], PARAMS, lambda chunk: show(chunk)).result(SECONDS)


# Many at once


def test_n_completions_have_seeds_in_a_row(prompts: list[Ids]) -> None:
    free = SamplingParams(max_tokens=8, temperature=1, top_k=0, top_p=1, ignore_eos=True)
    with fake_engine() as running:
        done = running.generate(prompts[:2], [replace(free, seed=5), free], n=3)
        assert [one.seed for one in done[:3]] == [5, 6, 7]
        assert len({one.seed for one in done[3:]}) == 3
        expected = [output(prompt, 8) for prompt in prompts[:2] for _ in range(3)]
        assert [one.tokens for one in done] == expected
        for wrong in (0, True, 1.5):
            with pytest.raises(UsageError, match="n must be"):
                running.generate(prompts[0], n=wrong)  # type: ignore[arg-type]


def test_generate_takes_sessions(running: Engine, prompts: list[Ids]) -> None:
    sessions = [running.session(), None]
    first = running.generate(prompts[:2], PARAMS, sessions=sessions)
    asked = [[*p, *one.tokens, 5] for p, one in zip(prompts[:2], first, strict=True)]
    again = running.generate(asked, PARAMS, sessions=sessions)
    assert [one.stats.reused_tokens for one in again] == [len(asked[0]) - 2, 0]
    assert sessions[0] is not None
    assert running.generate(asked[0], PARAMS, sessions=sessions[0])[0].stats.reused_tokens
    with pytest.raises(UsageError, match="n must be 1"):
        running.generate(prompts[0], PARAMS, sessions=sessions[0], n=2)
    with pytest.raises(UsageError, match="2 prompts but 1 sessions"):
        running.generate(prompts[:2], PARAMS, sessions=sessions[:1])


def test_a_timeout_ends_a_request_and_leaves_nothing_running(prompts: list[Ids]) -> None:
    rounds = Rounds()
    with fake_engine(max_batch=1, player=rounds.player) as running:
        session = running.session()
        first = running.submit(prompts[0], ENDLESS)
        for make in (running.submit, running.stream):
            with pytest.raises(RequestTimeoutError, match=r"timeout of 0\.01 seconds"):
                make(prompts[1], PARAMS, session=session, timeout=0.01).result(SECONDS)
        with pytest.raises(RequestTimeoutError):
            running.generate(prompts[:3], PARAMS, timeout=0.01)
        first.cancel()
        done = running.submit(prompts[0], PARAMS, session=session, timeout=SECONDS)
        assert done.result(SECONDS).tokens == output(prompts[0], 16)
        (found,) = running.generate(prompts[1], PARAMS, timeout=SECONDS, priority=1)
        assert found.tokens == output(prompts[1], 16)


@pytest.mark.parametrize("timeout", [0, -1, True, "1", float("nan")])
def test_a_wrong_timeout_or_priority_is_refused(running: Engine, timeout: Any) -> None:
    with pytest.raises(UsageError, match="timeout"):
        running.submit([5], PARAMS, timeout=timeout)
    with pytest.raises(UsageError, match="priority"):
        running.submit([5], PARAMS, priority=1.5)  # type: ignore[arg-type]


def test_threads_that_load_submit_read_stop_and_close_in_any_order_never_hang(
    prompts: list[Ids], rng: np.random.Generator
) -> None:
    """Each of five threads does its own part, 200 times, whenever it happens to."""
    with ThreadPoolExecutor(5) as threads:
        for _ in range(200):
            draw = random.Random(int(rng.integers(2**31)))
            together, order = threading.Barrier(3), draw.sample(range(3), 3)
            engine = threads.submit(fake_engine).result(SECONDS)
            params = replace(PARAMS, max_tokens=draw.choice((1, 30, 900)))
            going = threads.submit(engine.submit, prompts[0], params).result(SECONDS)
            turns = [threading.Event() for _ in range(4)]
            turns[0].set()

            def read(going: Generation = going) -> Ids:
                return tokens_of(list(going))

            def part(
                number: int,
                job: Callable[[], Any],
                together: threading.Barrier = together,
                turns: list[threading.Event] = turns,
            ) -> Any:
                together.wait(SECONDS)
                assert turns[number].wait(SECONDS)
                turns[number + 1].set()
                return job()

            jobs: list[Callable[[], Any]] = [read, going.cancel, engine.close]
            found: list[Future[Any]] = [
                threads.submit(part, number, job) for number, job in zip(order, jobs, strict=True)
            ]
            error = found[0].exception(SECONDS)
            assert error is None or isinstance(error, ClosedError)
            assert isinstance(found[1].result(SECONDS), bool)
            assert found[2].result(SECONDS) is None
            assert going.done()
            whole = output(prompts[0], 900)
            if error is None:
                assert found[0].result() == whole[: len(found[0].result())]
