"""Requests that get and leave rows of the batch while others decode: none changes its output."""

import gc
from itertools import groupby

import mlx.core as mx
import numpy as np
import pytest

from helpers.fake_target import VOCAB, output
from helpers.stepped import LONG, Stepped
from mlx_gemma_mtp.engine.request import Request
from mlx_gemma_mtp.memory import Limits


def sizes(stepped: Stepped) -> list[int]:
    """Rows of the rounds, successive equal numbers once."""
    return [size for size, _ in groupby(event.size for event in stepped.rounds)]


@pytest.mark.parametrize(
    ("max_batch", "expected"),
    [(8, [1, 2, 4, 8, 4, 2, 1]), (5, [1, 2, 4, 5, 4, 2, 1]), (3, [1, 2, 3, 2, 1]), (1, [1])],
)
def test_a_batch_grows_and_shrinks_with_its_requests(
    prompts: list[list[int]], max_batch: int, expected: list[int]
) -> None:
    stepped = Stepped(max_batch=max_batch, limits=Limits(shrink_after=2))
    # The first stays longest. Each of the others comes two rounds after the one before it, and
    # ends six rounds after it.
    requests = [stepped.submit(prompts[0], 90)]
    for number in range(1, max_batch):
        stepped.step(2)
        requests.append(stepped.submit(prompts[number], 20 + 4 * number))
    stepped.finish(*requests)
    assert sizes(stepped) == expected


def test_a_batch_does_not_shrink_between_two_requests_in_quick_succession(
    prompts: list[list[int]],
) -> None:
    stepped = Stepped()
    requests = [stepped.submit(prompts[0], LONG)]
    for _ in range(9):
        stepped.step(6)
        requests.append(stepped.submit(prompts[1], 3))
    stepped.finish(*requests)
    assert sizes(stepped) == [1, 2]


def test_memory_of_a_long_request_is_returned_when_the_batch_shrinks(
    prompts: list[list[int]], rng: np.random.Generator
) -> None:
    stepped = Stepped(limits=Limits(shrink_after=2))
    first = stepped.submit(prompts[0], LONG)
    stepped.step(3)
    long = stepped.submit(rng.integers(0, VOCAB, 700).tolist())
    stepped.finish(first, long)
    capacities = [size for size, _ in groupby(event.capacity for event in stepped.rounds)]
    assert capacities == [256, 768, 256]


def test_an_idle_engine_holds_no_cache(prompts: list[list[int]]) -> None:
    def held() -> int:
        del stepped.cache
        gc.collect()
        return mx.get_active_memory()

    stepped = Stepped()
    stepped.submit(prompts[0])
    stepped.finish()
    before = held()
    requests = [stepped.submit(prompt, LONG) for prompt in prompts]
    stepped.step(9)
    assert stepped.cache.nbytes > 20_000
    stepped.finish(*requests)
    assert held() <= before + 10_000
    stepped.step()  # drops what the test itself held
    assert mx.get_cache_memory() == 0


@pytest.mark.parametrize("drafts", [0, 3])
def test_a_row_leaves_nothing_to_the_next_one(prompts: list[list[int]], drafts: int) -> None:
    """Not even values that are not finite, which a mask does not hide: 0 × NaN is NaN."""
    stepped = Stepped()
    first, second = stepped.submit(prompts[0], LONG, drafts), stepped.submit(prompts[1], 6, drafts)
    while not (stepped.rounds and stepped.max_accepted.tolist() == [drafts, -1]):
        stepped.step()
    for buffer in (*stepped.cache.keys, *stepped.cache.values):
        buffer[1] = mx.nan
    third = stepped.submit(prompts[2], 30, drafts)
    stepped.finish(first, second, third)
    assert max(sizes(stepped)) == 2  # the third got the second's row


@pytest.mark.parametrize("slot_step", [1, 32])
def test_requests_at_random_moments_write_their_own_outputs(
    rng: np.random.Generator, slot_step: int
) -> None:
    limits = Limits(chunks=(1, 24), pause_seconds=np.inf, slot_step=slot_step, shrink_after=2)
    stepped = Stepped(max_batch=4, limits=limits)
    requests, cancelled = list[Request](), list[Request]()
    for _ in range(40):
        prompt = rng.integers(0, VOCAB, rng.integers(1, 90)).tolist()
        drafts = (0, 1, 3, 7, None)[rng.integers(5)]
        requests.append(stepped.submit(prompt, int(rng.integers(1, 40)), drafts))
        stepped.step(int(rng.integers(0, 12)))
        if rng.random() < 0.3 and requests[-1].generation.cancel():
            cancelled.append(requests.pop())
    stepped.finish(*requests)
    for one in cancelled:
        assert one.tokens == output(one.ids, len(one.tokens))
