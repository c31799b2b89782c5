"""Requests that come together prefill what they share once, whatever happens to the first."""

from dataclasses import replace

import numpy as np
import pytest

from helpers.prefixes import LEAST, LIMITS, OPENING, TURN, ask, caching, num_read, words
from helpers.stepped import LONG, Event
from mlx_gemma_mtp import MgmError


def test_eight_at_once_prefill_what_they_share_once(rng: np.random.Generator) -> None:
    stepped = caching()
    system = [TURN, *words(rng, 400)]
    prompts = [[*system, TURN, *words(rng, 20), *OPENING] for _ in range(8)]
    requests = [stepped.submit(prompt, 20, 3) for prompt in prompts]
    stepped.finish(*requests)
    assert sum(map(sum, stepped.passes)) == len(system) + 8 * 24
    assert sorted(num_read(one) for one in requests) == [24] * 7 + [len(system) + 24]
    assert max(event.size for event in stepped.rounds) == 8


def test_short_prompts_that_continue_from_the_same_prefix_are_read_in_one_pass(
    rng: np.random.Generator,
) -> None:
    stepped = caching(limits=replace(LIMITS, chunks=(LEAST, 1024)))
    system = [TURN, *words(rng, 40)]
    ask(stepped, [*system, TURN, *words(rng, 9), *OPENING])
    stepped.passes.clear()
    lengths = rng.integers(1, 30, 8).tolist()
    requests = [stepped.submit([*system, TURN, *words(rng, n), *OPENING], 9, 3) for n in lengths]
    stepped.finish(*requests)
    assert stepped.passes == [[length + 1 + len(OPENING) for length in lengths]]


def test_requests_that_come_later_wait_for_the_rest_of_a_shared_prefix(
    rng: np.random.Generator,
) -> None:
    """Also one that differs within the first message."""
    stepped = caching()
    system = [TURN, *words(rng, 300)]
    prompts = [[*system, TURN, *words(rng, 9), *OPENING] for _ in range(2)]
    prompts.append([*system[:200], *words(rng, 50)])
    requests = [stepped.submit(prompts[0])]
    stepped.step()
    requests += map(stepped.submit, prompts[1:])
    stepped.step()
    assert stepped.scheduler.status[:3] == (2, 1, 0)
    stepped.finish(*requests)
    assert [one.stats.reused_tokens for one in requests] == [0, len(system), 200]


@pytest.mark.parametrize("how", ["cancel", "fail"])
def test_those_that_wait_continue_without_the_one_that_reads(
    rng: np.random.Generator, how: str
) -> None:
    def fail(_: Event) -> None:
        raise ValueError("broken")

    stepped = caching()
    system = [TURN, *words(rng, 400)]
    first, *others = (
        stepped.submit([*system, TURN, *words(rng, 9), *OPENING], LONG) for _ in range(4)
    )
    stepped.step(3)
    if how == "cancel":
        first.generation.cancel()
    else:
        stepped.then = fail
        stepped.step()
        stepped.then = lambda _: None
        assert isinstance(first.generation.exception(0), MgmError)
    before = sum(map(sum, stepped.passes))
    stepped.finish(*others)
    read = sum(map(sum, stepped.passes)) - before
    tails = 3 * (9 + 1 + len(OPENING))
    # What a cancelled one has read is kept.
    assert read == len(system) + tails - (before if how == "cancel" else 0)


def test_one_in_front_does_not_wait_for_one_in_the_background(rng: np.random.Generator) -> None:
    stepped = caching()
    system = [TURN, *words(rng, 400)]
    prompts = [[*system, TURN, *words(rng, 9), *OPENING] for _ in range(2)]
    background = stepped.submit(prompts[0], 5, priority=-1)
    stepped.step()
    front = stepped.submit(prompts[1], 5, priority=0)
    while not front.ended:
        stepped.step()
    assert not background.tokens
    stepped.finish(background, front)


def test_equal_prompts_share_a_row_with_the_cache_too(rng: np.random.Generator) -> None:
    stepped = caching()
    prompt = words(rng, 300)
    requests = [stepped.submit([*prompt], 9) for _ in range(5)]
    stepped.step()
    requests.append(stepped.submit([*prompt], 9))
    stepped.finish(*requests)
    assert sum(map(sum, stepped.passes)) == len(prompt)
