"""Whose prompt is read next: overtaking, priorities, the background and deadlines, step by step."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from helpers.fake_target import CONFIG, VOCAB, output
from helpers.stepped import LONG, Stepped
from helpers.traffic import tokens_of
from mlx_gemma_mtp import Chunk
from mlx_gemma_mtp.engine.request import Request
from mlx_gemma_mtp.engine.session import Session
from mlx_gemma_mtp.errors import RequestTimeoutError
from mlx_gemma_mtp.memory import Limits

CHUNK = 16
LIMITS = Limits(chunks=(CHUNK,), pause_seconds=1e6, start_seconds=1e9)


def prompt_of(rng: np.random.Generator, length: int) -> list[int]:
    drawn: list[int] = rng.integers(0, VOCAB, length).tolist()
    return drawn


def num_passes(length: int) -> int:
    return -(-length // CHUNK)


# Overtaking


def test_a_short_prompt_overtakes_a_long_one_and_does_not_wait_for_it_afterwards(
    rng: np.random.Generator,
) -> None:
    stepped = Stepped(limits=LIMITS)
    long = stepped.submit(prompt_of(rng, 40 * CHUNK), LONG)
    stepped.step(3)
    question = stepped.submit(prompt_of(rng, 3), 10)
    stepped.step()
    assert stepped.passes == [[CHUNK]] * 3 + [[3]]
    assert question.tokens
    while not question.ended:
        stepped.step()
    # A pass over the long prompt comes between two of its rounds, and no more.
    assert stepped.passes[4:] == [[CHUNK]] * len(stepped.rounds)
    assert len(stepped.rounds) <= 10
    assert not long.tokens
    stepped.finish(question, long)


def test_a_prompt_overtakes_only_one_with_twice_as_many_tokens_left(
    rng: np.random.Generator,
) -> None:
    stepped = Stepped(limits=LIMITS)
    order = list[int]()
    requests = [
        stepped.submit(
            prompt_of(rng, size * CHUNK),
            2,
            on_chunk=lambda chunk, n=n: None if chunk.finish_reason else order.append(n),
        )
        for n, size in enumerate((9, 6, 2))
    ]
    stepped.finish(*requests)
    assert order == [2, 0, 1]


def test_a_turn_counts_for_the_tokens_that_its_session_does_not_hold(
    rng: np.random.Generator,
) -> None:
    stepped, session = Stepped(limits=LIMITS), Session(CONFIG, "fake", LIMITS)
    before = stepped.submit(prompt_of(rng, 30 * CHUNK), session=session)
    stepped.finish(before)
    long = stepped.submit(prompt_of(rng, 20 * CHUNK))
    turn = stepped.submit([*before.ids, *before.tokens, *prompt_of(rng, 5)], session=session)
    stepped.step()
    assert turn.tokens
    assert not long.tokens
    stepped.finish(long, turn)


def test_reading_takes_at_most_twice_as_many_passes_as_in_order(rng: np.random.Generator) -> None:
    """However many short prompts keep coming."""
    stepped = Stepped(limits=replace(LIMITS, pause_seconds=np.inf))
    bounds, unread = dict[Request, int](), list[Request]()

    def step() -> bool:
        more = stepped.scheduler.step()
        for request in [request for request in unread if request.tokens]:
            assert len(stepped.passes) <= bounds[request]
            unread.remove(request)
        return more

    for _ in range(90):
        size = int(rng.choice([CHUNK - 1, CHUNK, 50, 200], p=[0.4, 0.4, 0.1, 0.1]))
        unread.append(stepped.submit(prompt_of(rng, size), int(rng.integers(1, 4))))
        passes = sum(num_passes(request.unread) for request in unread)
        bounds[unread[-1]] = len(stepped.passes) + 2 * passes
        for _ in range(rng.integers(3)):
            step()
    while step():
        pass
    assert not unread
    stepped.finish(*bounds)


@pytest.mark.parametrize("chunks", [(CHUNK,), (CHUNK, 64)])
def test_in_a_random_schedule_every_request_ends_with_its_own_output(
    rng: np.random.Generator, chunks: tuple[int, ...]
) -> None:
    limits = Limits(chunks=chunks, pause_seconds=np.inf, slot_step=1, shrink_after=2)
    stepped = Stepped(max_batch=int(rng.integers(1, 6)), limits=limits)
    some = [prompt_of(rng, size) for size in (3, 40, 90)]  # that several requests share
    requests, cancelled, failed = list[Request](), list[Request](), list[Request]()
    for _ in range(60):
        prompt = some[rng.integers(3)] if rng.random() < 0.4 else prompt_of(rng, rng.integers(150))
        deadline = -1.0 if rng.random() < 0.05 else None
        priority, drafts = int(rng.integers(-2, 3)), (0, 1, 3, None)[rng.integers(4)]
        request = stepped.submit(
            prompt or [1], int(rng.integers(1, 30)), drafts, priority=priority, deadline=deadline
        )
        (failed if deadline else requests).append(request)
        stepped.step(int(rng.integers(0, 6)))
        one = requests[rng.integers(len(requests))] if requests else request
        if rng.random() < 0.2 and one.generation.cancel() and one in requests:
            requests.remove(one)
            cancelled.append(one)
    stepped.finish(*requests)
    for one in cancelled:
        assert one.tokens == output(one.ids, len(one.tokens))
    for one in failed:
        assert isinstance(one.generation.exception(0), RequestTimeoutError) or one in cancelled
    assert stepped.scheduler.status[:3] == (0, 0, 0)


# Priorities


def test_requests_of_a_higher_priority_start_first_and_others_in_their_order(
    prompts: list[list[int]],
) -> None:
    started, stepped = list[int](), Stepped(max_batch=1)
    priorities = [0, 2, -1, 2, 0, 1, -1]
    requests = [
        stepped.submit(
            prompt,
            2,
            priority=priority,
            on_chunk=lambda chunk, n=n: None if chunk.finish_reason else started.append(n),
        )
        for n, (prompt, priority) in enumerate(zip(prompts, priorities, strict=False))
    ]
    stepped.finish(*requests)
    assert started == [1, 3, 5, 0, 4, 2, 6]


def test_a_prompt_of_a_lower_priority_has_no_pass_while_one_of_a_higher_is_read(
    rng: np.random.Generator,
) -> None:
    stepped = Stepped(limits=LIMITS)
    low = stepped.submit(prompt_of(rng, 9 * CHUNK))
    stepped.step(2)
    high = stepped.submit(prompt_of(rng, 20 * CHUNK), 3, priority=1)
    left = low.ids[2 * CHUNK :]
    stepped.step(20)
    assert high.tokens
    assert not stepped.passes[22:]
    stepped.finish(low, high)
    assert len(stepped.passes) == 22 + num_passes(len(left))


def test_a_row_does_not_wait_for_a_prompt_of_a_lower_priority(rng: np.random.Generator) -> None:
    stepped = Stepped(limits=LIMITS)
    high = stepped.submit(prompt_of(rng, 3), 5, priority=1)
    low = stepped.submit(prompt_of(rng, 30 * CHUNK))
    while not high.ended:
        stepped.step()
    assert not low.tokens
    stepped.finish(high, low)


def test_the_background_is_read_only_while_nothing_else_is_served(
    rng: np.random.Generator, prompts: list[list[int]]
) -> None:
    stepped = Stepped(limits=LIMITS)
    hidden = stepped.submit(prompt_of(rng, 20 * CHUNK), 3, priority=-1)
    stepped.step(4)
    shown = stepped.submit(prompts[0], 20)
    before = len(stepped.passes)
    while not shown.ended:
        stepped.step()
    assert stepped.passes[before:] == [[len(prompts[0])]]
    stepped.finish(hidden, shown)


def test_the_background_leaves_a_row_free(prompts: list[list[int]]) -> None:
    stepped = Stepped(max_batch=3)
    hidden = [stepped.submit(prompt, LONG, priority=-1) for prompt in prompts[:4]]
    stepped.step(6)
    assert stepped.scheduler.status[:3] == (2, 0, 2)
    shown = stepped.submit(prompts[4], 5)
    stepped.step()
    assert shown.tokens
    stepped.finish(*hidden, shown)
    alone = Stepped(max_batch=1)
    alone.finish(alone.submit(prompts[0], 5, priority=-1))


# Deadlines


@pytest.mark.parametrize("where", ["waiting", "reading", "decoding"])
def test_a_request_that_passes_its_deadline_fails_within_a_round_and_no_other_does(
    prompts: list[list[int]], wait: Callable[[float], None], where: str
) -> None:
    stepped = Stepped(max_batch=1 if where == "waiting" else 4, limits=LIMITS)
    session, told = Session(CONFIG, "fake", LIMITS), list[Chunk]()
    other = stepped.submit(prompts[0], LONG)
    stepped.step(2)
    long = [7] * 10 * CHUNK if where == "reading" else prompts[1]
    late = stepped.submit(long, LONG, session=session, deadline=1005.0, on_chunk=told.append)
    stepped.step(5)
    assert stepped.scheduler.status._asdict()[where] == 1 + (where == "decoding")
    wait(5.0)
    rounds = len(stepped.rounds)
    stepped.step()
    error = late.generation.exception(0)
    assert isinstance(error, RequestTimeoutError)
    assert isinstance(error, TimeoutError)
    assert "longer than its timeout:" in str(error)
    assert len(stepped.rounds) <= rounds + 1
    assert tokens_of(told) == output(long, LONG)[: len(tokens_of(told))]
    following = stepped.submit([*long, *late.tokens, 5], session=session)
    stepped.finish(other, following)


def test_a_request_that_ends_in_time_does_not_fail(prompts: list[list[int]]) -> None:
    stepped = Stepped()
    stepped.finish(stepped.submit(prompts[0], deadline=1e12))
