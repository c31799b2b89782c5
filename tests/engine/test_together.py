"""Prompts that wait are read together, and start together; step by step."""

from collections.abc import Callable

import numpy as np
import pytest

from helpers.fake_target import CONFIG, VOCAB, FakeTarget, output
from helpers.stepped import LONG, PARAMS, Stepped
from mlx_gemma_mtp import Chunk, MgmError
from mlx_gemma_mtp.engine.budget import Budget
from mlx_gemma_mtp.engine.exactness import Exactness
from mlx_gemma_mtp.engine.prefill import Prefill
from mlx_gemma_mtp.engine.prefixes import Prefixes
from mlx_gemma_mtp.engine.request import Request
from mlx_gemma_mtp.engine.session import Session
from mlx_gemma_mtp.memory import Limits, Pair

CHUNKS = Limits().chunks
QUICK = Limits(start_seconds=1e9, pause_seconds=1e6)  # as on the quickest machine


@pytest.mark.parametrize(
    ("lengths", "passes"),
    [
        ([256] * 8, [[256] * 8]),
        ([257] * 8, [[257] * 7, [257]]),
        ([5, 60, 64, 1], [[5, 60, 64, 1]]),
        ([64, 500, 500, 10], [[64, 500, 500, 10]]),  # padding takes no time
        ([64, 600, 600, 10, 20], [[64, 600, 600], [10, 20]]),  # but memory
        ([300, 1500, 200], [[300, 200], [1500]]),  # what fits, whatever is between
        ([800, 800, 800, 900], [[800, 800], [800, 900]]),
        ([3000, 1900], [[2048], [952], [1900]]),  # by itself, in as many as it takes
    ],
)
def test_prompts_that_wait_are_read_together_in_their_order(
    rng: np.random.Generator, lengths: list[int], passes: list[list[int]]
) -> None:
    stepped = Stepped(limits=QUICK)
    stepped.measure_pace()
    requests = [
        stepped.submit(rng.integers(0, VOCAB, length).tolist(), drafts=int(rng.integers(4)))
        for length in lengths
    ]
    stepped.finish(*requests)
    assert stepped.passes == passes
    # Those that came together start together.
    assert [event.what for event in stepped.events[: len(passes)]] == ["chunk"] * len(passes)
    assert stepped.rounds[0].size >= len(lengths)


def test_a_group_is_read_whole_even_if_a_pass_may_have_fewer_tokens_by_then(
    rng: np.random.Generator,
) -> None:
    prompts = [rng.integers(0, VOCAB, length).tolist() for length in (90, 40, 80)]
    requests = [Request(prompt, PARAMS, 1, 0, frozenset(), None) for prompt in prompts]
    target, rule = FakeTarget(), Exactness(Limits(), 8)
    budget = Budget(Pair.of(target, None))  # type: ignore[arg-type]
    prefixes = Prefixes(CONFIG, rule, budget)
    prefill = Prefill(target, requests, rule, prefixes)  # type: ignore[arg-type]
    prefill.advance(64)
    assert prefill.finished
    assert prefill.hidden[:, 0, 0].tolist() == [output(prompt, 1)[0] for prompt in prompts]


def test_rows_wait_for_prompts_that_came_with_theirs_only_so_long(
    rng: np.random.Generator, wait: Callable[[float], None]
) -> None:
    limits, seconds = Limits(start_seconds=0.45, pause_seconds=0.04), 0.1
    stepped = Stepped(limits=limits)
    stepped.then = lambda event: wait(event.size / 2048 * seconds * (event.what == "chunk"))
    stepped.measure_pace()
    requests = [stepped.submit(rng.integers(0, VOCAB, 2048).tolist(), LONG) for _ in range(8)]
    while not stepped.rounds:
        stepped.step()
    before = len(stepped.passes)
    # The first pass gives tokens, from which on time counts; four more fit, and a fifth in part.
    assert stepped.passes[:5] == [[2048]] * 5
    stepped.step(2)
    # Now as among rows that have long been decoding.
    assert stepped.passes[before:] == [[512]] * 2
    assert requests[0].stats.longest_pause_seconds <= limits.start_seconds + 2 * seconds
    for request in requests:
        request.generation.cancel()
    stepped.finish()


def test_rows_wait_for_prompts_that_came_during_their_pass(rng: np.random.Generator) -> None:
    """The scheduler gets those after the step, and so after a round."""
    limits = Limits(chunks=(16,), pause_seconds=1e6, start_seconds=1e9)
    stepped = Stepped(limits=limits)
    late = Request(rng.integers(0, VOCAB, 48).tolist(), PARAMS, 5, 0, frozenset(), None)
    stepped.then = lambda _: None if late.queued else late.queue()
    first = stepped.submit([7] * 3)
    stepped.step()
    stepped.scheduler.reserve()
    stepped.scheduler.add(late)
    stepped.finish(first, late)
    assert [event.what for event in stepped.events[:5]] == ["chunk", "round", *["chunk"] * 3]


def test_rows_do_not_wait_for_prompts_that_came_after_their_first_token(
    rng: np.random.Generator,
) -> None:
    stepped = Stepped(limits=Limits(start_seconds=1e9))
    first, long, late = (rng.integers(0, VOCAB, size).tolist() for size in (10, 2500, 2500))
    requests = [stepped.submit(first), stepped.submit(long)]
    stepped.step()
    assert requests[0].tokens
    requests.append(stepped.submit(late))
    stepped.finish(*requests)
    before = stepped.events[: stepped.events.index(stepped.rounds[0])]
    assert sum(event.size for event in before) == len(first) + len(long)


def test_a_request_of_a_group_that_is_cancelled_or_fails_is_the_only_one(
    prompts: list[list[int]],
) -> None:
    def broken(chunk: Chunk) -> None:
        raise ValueError("broken")

    stepped = Stepped()
    stepped.then = lambda _: requests[1].generation.cancel()  # during the pass
    requests = [
        stepped.submit(prompt, LONG, on_chunk=broken if number == 2 else None)
        for number, prompt in enumerate(prompts)
    ]
    stepped.step()
    assert stepped.passes == [[len(prompt) for prompt in prompts]]
    stepped.finish(*requests[:1], *requests[3:])
    assert requests[1].generation.result(0).finish_reason == "cancelled"
    assert isinstance(requests[2].generation.exception(0), MgmError)


def test_a_prompt_of_a_session_is_read_by_itself(prompts: list[list[int]]) -> None:
    stepped, session = Stepped(), Session(CONFIG, "fake", Limits())
    requests = list[Request]()
    for prompt, own in zip(prompts, [None, None, session, None, None], strict=False):
        requests.append(stepped.submit(prompt[:3], session=own))
    stepped.finish(*requests)
    assert stepped.passes == [[3, 3, 3, 3], [3]]


def test_first_tokens_that_end_their_requests_take_no_row(prompts: list[list[int]]) -> None:
    stepped = Stepped()
    requests = [stepped.submit(p, (1, 9)[n % 2]) for n, p in enumerate(prompts[:4])]
    stepped.finish(*requests)
    assert stepped.rounds[0].size == 2
