"""Engines in event loops: awaiting, reading, callbacks, cancelling; and no loop ever waits."""

import asyncio
import concurrent.futures
import random
import threading
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.fake_target import ENDLESS, MAX_POSITIONS, PARAMS, SECONDS, fake_engine, output
from helpers.held import held
from helpers.traffic import tokens_of
from mlx_gemma_mtp import Chunk, Engine, Generation, MgmError
from mlx_gemma_mtp.errors import ClosedError, UsageError
from mlx_gemma_mtp.text.tokenizer import LONG

Ids = list[int]


def run(main: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(main, SECONDS))


# Awaiting and reading


def test_a_request_is_awaited_and_read_in_a_loop(running: Engine, prompts: list[Ids]) -> None:
    async def main() -> None:
        going = [running.submit(prompt, PARAMS) for prompt in prompts]
        done = await asyncio.gather(*going)
        assert [one.tokens for one in done] == [output(prompt, 16) for prompt in prompts]
        stream = running.stream(prompts[0], PARAMS)
        for _ in range(2):
            assert tokens_of([chunk async for chunk in stream]) == output(prompts[0], 16)
        async with running.submit(prompts[0], PARAMS) as generation:
            first = await anext(generation)
            rest = [chunk async for chunk in generation]
        assert tokens_of([first, *rest]) == output(prompts[0], 16)
        assert (await asyncio.wrap_future(generation)) is generation.completion

    run(main())


def test_ten_loops_share_an_engine(running: Engine, prompts: list[Ids]) -> None:
    found: list[Ids] = []

    async def main(prompt: Ids) -> None:
        chunks = [chunk async for chunk in running.stream(prompt, PARAMS)]
        found.append([*prompt, *tokens_of(chunks)])

    threads = [threading.Thread(target=run, args=[main(prompts[n % 8])]) for n in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    expected = [[*prompts[n % 8], *output(prompts[n % 8], 16)] for n in range(10)]
    assert sorted(found) == sorted(expected)


async def read_all(generation: Generation) -> None:
    async for _ in generation:
        pass


async def leave_a_block(generation: Generation) -> None:
    async with generation:
        await asyncio.Event().wait()


async def wait_for_it(generation: Generation) -> None:
    await generation


@pytest.mark.parametrize("use", [read_all, leave_a_block, wait_for_it])
def test_a_task_that_is_cancelled_or_too_late_cancels_its_request(
    running: Engine, prompts: list[Ids], use: Callable[[Generation], Awaitable[None]]
) -> None:
    async def main() -> None:
        generation = running.submit(prompts[0], ENDLESS)
        task = asyncio.ensure_future(use(generation))
        await anext(aiter(running.stream(prompts[1], PARAMS)))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await generation).finish_reason == "cancelled"
        generation = running.submit(prompts[0], ENDLESS)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await use(generation)
        assert (await generation).finish_reason == "cancelled"

    run(main())


def test_leaving_an_async_loop_stops_the_request_and_frees_its_session(
    running: Engine, prompts: list[Ids]
) -> None:
    async def main() -> None:
        session = running.session()
        for _ in range(8):
            generation = running.stream(prompts[0], ENDLESS, session=session)
            async for _ in generation:
                break
            done = await running.submit(prompts[0], PARAMS, session=session)
            assert done.tokens == output(prompts[0], 16)
            assert generation.result(0).finish_reason == "cancelled"

    run(main())


# Callbacks


class Notes:
    """An object whose call is a coroutine."""

    def __init__(self, fail_at: int = 1000) -> None:
        self.chunks: list[Chunk] = []
        self.fail_at = fail_at
        self.inside = 0

    async def __call__(self, chunk: Chunk) -> None:
        self.inside += 1
        assert self.inside == 1, "the one before has not ended"
        await asyncio.sleep(0)
        self.inside -= 1
        self.chunks.append(chunk)
        if len(self.chunks) == self.fail_at:
            raise ValueError("broken")


def test_a_coroutine_function_is_called_in_the_loop_and_the_result_comes_after_the_last(
    running: Engine, prompts: list[Ids]
) -> None:
    async def main() -> None:
        notes, threads = Notes(), set[threading.Thread]()

        async def on_chunk(chunk: Chunk) -> None:
            threads.add(threading.current_thread())
            await notes(chunk)

        for callback in (notes, on_chunk):
            notes.chunks.clear()
            done = await running.submit(prompts[0], PARAMS, callback)
            assert tokens_of(notes.chunks) == done.tokens == output(prompts[0], 16)
            assert notes.chunks[-1].finish_reason == "length"
        assert threads == {threading.current_thread()}

    run(main())


def test_an_error_in_a_coroutine_callback_ends_the_request(
    running: Engine, prompts: list[Ids]
) -> None:
    async def main() -> None:
        notes = Notes(fail_at=2)
        with pytest.raises(MgmError, match="ValueError: broken"):
            await running.submit(prompts[0], ENDLESS, notes)
        assert len(notes.chunks) == 2
        assert (await running.submit(prompts[0], PARAMS)).tokens == output(prompts[0], 16)

    run(main())


def test_a_coroutine_callback_needs_a_loop_and_ends_with_it(
    running: Engine, prompts: list[Ids]
) -> None:
    with pytest.raises(UsageError, match="running event loop"):
        running.submit(prompts[0], PARAMS, Notes())
    going: list[Generation] = []

    async def main() -> None:
        going.append(running.submit(prompts[0], ENDLESS, Notes()))
        await anext(aiter(running.stream(prompts[1], PARAMS)))

    run(main())
    assert going[0].result(SECONDS).finish_reason == "cancelled"


def test_waits_that_would_never_end_are_refused(running: Engine, prompts: list[Ids]) -> None:
    waits: list[Callable[[Generation], Any]] = [
        Generation.result,
        Generation.exception,
        list,
        lambda generation: concurrent.futures.wait([generation]),
    ]

    async def main() -> None:
        going: list[Generation] = []

        async def on_chunk(_: Chunk) -> None:
            await going[0]

        for wait in waits:
            generation = running.submit(prompts[0], ENDLESS, Notes())
            with pytest.raises(UsageError, match="await it"):
                wait(generation)
            generation.cancel()
            assert (await generation).finish_reason == "cancelled"
        going.append(running.submit(prompts[0], PARAMS, on_chunk))
        with pytest.raises(UsageError, match="its own request"):
            await going[0]
        generation = running.submit(prompts[0], PARAMS)
        with pytest.raises(UsageError, match="takes tasks"):
            await asyncio.wait([generation])  # type: ignore[type-var]
        done, _ = await asyncio.wait([asyncio.ensure_future(wait_for_it(generation))])
        assert len(done) == 1

    run(main())


def test_closing_fails_a_request_whose_callback_is_still_running(prompts: list[Ids]) -> None:
    async def main() -> None:
        engine, started = fake_engine(), asyncio.Event()

        async def on_chunk(_: Chunk) -> None:
            started.set()
            await asyncio.Event().wait()

        generation = engine.submit(prompts[0], ENDLESS, on_chunk)
        await started.wait()
        await engine.aclose()
        with pytest.raises(ClosedError):
            await generation

    run(main())


# The loop never waits for the worker


def test_nothing_that_has_an_async_form_or_is_published_waits_for_the_worker(
    prompts: list[Ids], tmp_path: Path
) -> None:
    async def main() -> None:
        async with fake_engine() as engine:
            session = engine.session()
            await engine.submit(prompts[0], PARAMS, session=session)
            path = tmp_path / "talk"
            with held():  # a call that waits would not return
                assert engine.longest_context() > 0
                engine.plain_tokens_per_second()
                assert engine.session() is not session
                assert repr(engine)
                assert engine.count_tokens(prompts[0]) == len(prompts[0])
                generation = engine.submit(prompts[0], ENDLESS)
                assert (generation.text, generation.completion) == ("", None)
                assert generation.cancel()
                jobs = [
                    asyncio.ensure_future(session.asave(path)),
                    asyncio.ensure_future(wait_for_it(generation)),
                ]
                await asyncio.sleep(0)
                assert not any(job.done() for job in jobs)
            await asyncio.gather(*jobs)
            restored = await engine.asession(path)
            done = await engine.submit([*prompts[0], 5], PARAMS, session=restored)
            assert done.stats.reused_tokens == len(prompts[0])
        assert engine.closed

    run(main())


def test_a_long_prompt_is_checked_on_another_thread(running: Engine, prompts: list[Ids]) -> None:
    loop_thread = threading.current_thread()
    checked, refused = list[threading.Thread](), threading.Event()
    check = running._intake.request

    def request(*arguments: Any, **options: Any) -> Any:
        checked.append(threading.current_thread())
        assert threading.current_thread() is loop_thread or refused.wait(SECONDS)
        return check(*arguments, **options)

    running._intake.request = request  # type: ignore[method-assign]

    async def main() -> None:
        session = running.session()
        generation = running.submit([5] * (LONG + 1), PARAMS, session=session)
        with pytest.raises(UsageError, match="busy"):
            running.stream([5] * (LONG + 1), PARAMS, session=session)
        refused.set()
        with pytest.raises(UsageError, match=f"> {MAX_POSITIONS - 1} maximum"):
            await generation
        await running.submit(prompts[0], PARAMS, session=session)  # free again

    run(main())
    assert checked[0] is not loop_thread
    assert checked[-1] is loop_thread


def test_tasks_that_are_cancelled_at_any_moment_never_hang(
    prompts: list[Ids], rng: np.random.Generator
) -> None:
    draw = random.Random(int(rng.integers(2**31)))

    async def ask(engine: Engine, session: Any) -> None:
        params = replace(PARAMS, max_tokens=draw.choice((1, 20, 900)))
        prompt, on_chunk = draw.choice(prompts), draw.choice((None, Notes(), Notes(fail_at=2)))
        with suppress(MgmError):
            generation = engine.submit(prompt, params, on_chunk, session=session)
            if draw.random() < 0.5:
                chunks = [chunk async for chunk in generation]
                assert tokens_of(chunks) == output(prompt, len(tokens_of(chunks)))
            async with generation:
                done = await generation
            assert done.tokens == output(prompt, len(done.tokens))

    async def main() -> None:
        for _ in range(12):
            engine = fake_engine(max_batch=4)
            session = engine.session()
            tasks = [
                asyncio.ensure_future(ask(engine, draw.choice((None, session)))) for _ in range(8)
            ]
            for task in draw.sample(tasks, 5):
                for _ in range(draw.randrange(30)):
                    await asyncio.sleep(0)
                task.cancel()
            if draw.random() < 0.5:
                await engine.aclose()
            for error in await asyncio.gather(*tasks, return_exceptions=True):
                assert error is None or isinstance(error, asyncio.CancelledError), error
            await engine.aclose()

    run(main())
