"""Engines shared by threads: the queue, waiting for results, callbacks, closing."""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import pytest

from helpers.fake_target import ENDLESS, SECONDS, Rounds, fake_engine, output
from helpers.held import held
from mlx_gemma_mtp import Engine, Generation, MgmError, load
from mlx_gemma_mtp.engine.status import Status
from mlx_gemma_mtp.errors import QueueFullError, UsageError

PARAMS = replace(ENDLESS, max_tokens=16)


def tokens(generation: Generation) -> list[int]:
    return generation.result(SECONDS).tokens


# The queue


def test_a_full_queue_refuses_requests_until_one_leaves(prompts: list[list[int]]) -> None:
    with fake_engine(max_batch=1, max_queue=2) as running:
        with held():
            going = [running.submit(prompt, PARAMS) for prompt in prompts[:3]]
            for ask in (running.submit, lambda *asked: next(running.stream(*asked))):
                with pytest.raises(QueueFullError, match=r"full \(2 requests are waiting\): try"):
                    ask(prompts[3], PARAMS)
            assert going[1].cancel()
        expected = [output(prompts[0], 16), [], output(prompts[2], 16)]
        assert [tokens(one) for one in going] == expected
        with held():
            going = [running.submit(prompt, PARAMS) for prompt in prompts[2:5]]
        assert [tokens(one) for one in going] == [output(prompt, 16) for prompt in prompts[2:5]]


def test_requests_for_which_there_are_rows_take_no_place_in_the_queue(
    prompts: list[list[int]],
) -> None:
    with fake_engine(max_batch=7, max_queue=1) as running:
        for _ in range(2):
            with held():
                going = [running.submit(prompt, PARAMS) for prompt in prompts]
                with pytest.raises(QueueFullError):
                    running.submit(prompts[0], PARAMS)
            assert [tokens(one) for one in going] == [output(prompt, 16) for prompt in prompts]


def test_a_place_is_free_before_anyone_sees_that_its_request_ended(
    prompts: list[list[int]],
) -> None:
    """Clients that wait for their own results never meet a full queue."""

    def client(running: Engine) -> list[list[int]]:
        return [tokens(running.submit(prompts[0], PARAMS)) for _ in range(30)]

    with fake_engine(max_batch=2, max_queue=1) as running, ThreadPoolExecutor(3) as threads:
        for written in threads.map(client, [running] * 3):
            assert written == [output(prompts[0], 16)] * 30


def test_a_list_of_prompts_may_be_longer_than_the_queue_and_leaves_room_in_it(
    prompts: list[list[int]],
) -> None:
    expected = [output(prompt, 16) for prompt in prompts]
    with fake_engine(max_batch=2, max_queue=1) as running:
        assert [one.tokens for one in running.generate(prompts, PARAMS)] == expected
    between, rounds = list[Generation](), Rounds()
    with fake_engine(max_batch=1, max_queue=2, player=rounds.player) as running:

        def submit() -> None:
            if len(rounds.sizes) == 20:
                between.append(running.submit(prompts[5], PARAMS))

        rounds.then = submit
        assert [one.tokens for one in running.generate(prompts, PARAMS)] == expected
        assert tokens(between[0]) == expected[5]
    assert max(rounds.sizes) == 1


def test_the_status_is_read_without_waiting_for_the_worker(prompts: list[list[int]]) -> None:
    rounds, seen = Rounds(), list[tuple[int, ...]]()
    with fake_engine(max_batch=2, player=rounds.player) as running:
        rounds.then = lambda: seen.append(running.status[:3])
        assert running.status.memory_bytes > 0
        with held():
            assert running.status[:3] == (0, 0, 0)
            going = [running.submit(prompt, PARAMS) for prompt in prompts[:5]]
            assert running.status[:3] == (5, 0, 0)
            assert going[4].cancel()
        assert [len(tokens(one)) for one in going] == [16, 16, 16, 16, 0]
        assert running.status[:3] == (0, 0, 0)
    assert (2, 0, 2) in seen
    assert set(seen) <= {(2, 0, 2), (0, 0, 2), (0, 0, 1), (1, 0, 2), (1, 0, 1)}
    assert running.status == Status()


def test_two_engines_take_turns(prompts: list[list[int]]) -> None:
    turns, first, second = list[int](), Rounds(), Rounds()
    first.then, second.then = (partial(turns.append, number) for number in (1, 2))
    with fake_engine(player=first.player) as one, fake_engine(player=second.player) as other:
        with held():
            going = [engine.submit(prompts[0], PARAMS) for engine in (one, other)]
        assert [tokens(generation) for generation in going] == [output(prompts[0], 16)] * 2
    assert turns == [1, 2] * 15


# Waiting for a result


def test_a_result_may_be_waited_for_with_a_timeout(
    running: Engine, prompts: list[list[int]]
) -> None:
    with held():
        going = running.submit(prompts[0], ENDLESS)
        with pytest.raises(TimeoutError):
            going.result(0.05)
        assert not going.done()
    going.cancel()
    assert going.result(SECONDS).finish_reason == "cancelled"
    assert going.done()


def test_requests_can_be_awaited(running: Engine, prompts: list[list[int]]) -> None:
    forever = running.submit(prompts[0], ENDLESS)

    async def ask() -> list[list[int]]:
        dropped = asyncio.ensure_future(asyncio.wrap_future(forever))
        going = [asyncio.wrap_future(running.submit(prompt, PARAMS)) for prompt in prompts]
        done = await asyncio.gather(*going)
        dropped.cancel()
        with pytest.raises(asyncio.CancelledError):
            await dropped
        return [one.tokens for one in done]

    assert asyncio.run(ask()) == [output(prompt, 16) for prompt in prompts]
    assert forever.result(SECONDS).finish_reason == "cancelled"


def test_a_callback_that_waits_for_an_engine_gets_an_error(
    running: Engine, prompts: list[list[int]]
) -> None:
    forever = running.submit(prompts[1], ENDLESS)
    for wait in (
        lambda _: running.generate(prompts[1], PARAMS),
        lambda _: next(running.stream(prompts[1], PARAMS)),
        lambda _: load("demo"),
        lambda _: forever.result(),
        lambda _: running.close(),
    ):
        with pytest.raises(UsageError, match="callback"):
            running.submit(prompts[0], PARAMS, wait).result(SECONDS)
    forever.cancel()


# Closing


def test_closing_reaches_who_waits_for_a_place_before_anything_started(
    prompts: list[list[int]],
) -> None:
    running = fake_engine(max_batch=1, max_queue=1)
    with ThreadPoolExecutor(2) as threads:
        with held():
            going = [running.submit(prompt, ENDLESS) for prompt in prompts[:2]]
            many = threads.submit(running.generate, prompts, ENDLESS)
            closing = threads.submit(running.close)
            while not running.closed:
                time.sleep(0)
        closing.result(SECONDS)
        for one in (*going, many):
            assert isinstance(one.exception(SECONDS), MgmError)


def test_closing_reaches_everyone_whose_request_has_not_ended(prompts: list[list[int]]) -> None:
    rounds = Rounds()
    reached, resume = rounds.hold(after=5)
    running = fake_engine(max_batch=2, max_queue=3, player=rounds.player)
    with held():
        going = [running.submit(one, ENDLESS) for one in (prompts[0], [7] * 900, prompts[2])]
    with ThreadPoolExecutor(2) as threads:
        many = threads.submit(running.generate, prompts, ENDLESS)
        assert reached.wait(SECONDS)
        closing = threads.submit(running.close)
        time.sleep(0.1)
        resume.set()
        closing.result(SECONDS)
        errors = [one.exception(SECONDS) for one in (*going, many)]
    for error in errors:
        assert isinstance(error, MgmError)
        assert "closed" in str(error)
    assert len({id(error) for error in errors}) == 4  # raising writes into an error
    assert len(rounds.sizes) <= 6
