"""Requests with the same prompt read it once, and each writes its own output."""

from dataclasses import replace

import numpy as np
import pytest

from helpers.fake_target import CONFIG, VOCAB
from helpers.random_pair import random_pair
from helpers.stepped import LONG, Stepped
from mlx_gemma_mtp import Engine, MgmError, SamplingParams
from mlx_gemma_mtp.engine.session import Session
from mlx_gemma_mtp.memory import Limits

CHUNK = 64
LIMITS = Limits(chunks=(CHUNK,), pause_seconds=np.inf)


def test_a_prompt_of_several_requests_is_read_once(prompts: list[list[int]]) -> None:
    stepped = Stepped(limits=LIMITS)
    same = [stepped.submit([*prompts[1]], LONG, n) for n in range(3)]
    other = stepped.submit(prompts[2])
    more = stepped.submit([*prompts[1]], 1)
    stepped.finish(*same, other, more)
    assert stepped.passes == [[len(prompts[1]), len(prompts[2])]]
    reused = [one.stats.reused_tokens for one in (*same, other, more)]
    length = len(prompts[1])
    assert reused == [0, length, length, 0, length]
    assert max(event.size for event in stepped.rounds) == 4


def test_a_request_joins_an_equal_one_that_is_being_read(rng: np.random.Generator) -> None:
    stepped = Stepped(limits=LIMITS)
    prompt = rng.integers(0, VOCAB, 5 * CHUNK).tolist()
    first = stepped.submit(prompt)
    stepped.step(2)
    second = stepped.submit([*prompt])
    stepped.finish(first, second)
    assert stepped.passes == [[CHUNK]] * 5
    assert (first.stats.reused_tokens, second.stats.reused_tokens) == (0, len(prompt))


def test_no_more_requests_share_a_prompt_than_there_are_rows(prompts: list[list[int]]) -> None:
    stepped = Stepped(max_batch=3, limits=LIMITS)
    requests = [stepped.submit([*prompts[3]], 20) for _ in range(7)]
    stepped.finish(*requests)
    assert max(event.size for event in stepped.rounds) == 3
    assert len(stepped.passes) < 7


def test_a_session_shares_its_prompt_with_nobody(prompts: list[list[int]]) -> None:
    stepped, session = Stepped(limits=LIMITS), Session(CONFIG, "fake", LIMITS)
    requests = [stepped.submit([*prompts[1]], session=one) for one in (None, session, None)]
    stepped.finish(*requests)
    assert stepped.passes == [[len(prompts[1])]] * 2


@pytest.mark.parametrize("gone", [[0], [1], [0, 2], [0, 1, 2]])
def test_the_end_of_one_request_leaves_the_prompt_to_the_others(
    rng: np.random.Generator, gone: list[int]
) -> None:
    stepped = Stepped(limits=LIMITS)
    prompt = rng.integers(0, VOCAB, 4 * CHUNK).tolist()
    requests = [stepped.submit([*prompt], LONG) for _ in range(3)]
    stepped.step(2)
    for n in gone:
        requests[n].generation.cancel()
    stepped.finish(*[one for n, one in enumerate(requests) if n not in gone])
    assert stepped.passes == [[CHUNK]] * (2 if len(gone) == 3 else 4)
    for n in gone:
        assert requests[n].generation.result(0).finish_reason == "cancelled"


def test_a_callback_that_fails_ends_one_of_them(prompts: list[list[int]]) -> None:
    def broken(_: object) -> None:
        raise ValueError("broken")

    stepped = Stepped(limits=LIMITS)
    requests = [
        stepped.submit([*prompts[1]], on_chunk=broken if n == 1 else None) for n in range(3)
    ]
    stepped.finish(requests[0], requests[2])
    assert isinstance(requests[1].generation.exception(0), MgmError)


@pytest.mark.parametrize("length", [5, 90])
def test_outputs_of_a_shared_prompt_equal_separate_ones(
    rng: np.random.Generator, length: int
) -> None:
    pair, prompt = random_pair(rng), rng.integers(4, 200, length).tolist()
    each = [
        SamplingParams(
            max_tokens=30, temperature=(0, 1, 5)[n % 3], seed=n, ignore_eos=True, top_k=64 * n
        )
        for n in range(6)
    ]
    with Engine(pair, max_batch=8, limits=Limits(pause_seconds=np.inf)) as engine:
        alone = [engine.generate(prompt, replace(params, num_draft_tokens=0))[0] for params in each]
        shared = engine.generate([prompt] * len(each), each)
        assert sum(one.stats.reused_tokens for one in shared) > 0
    assert [one.tokens for one in shared] == [one.tokens for one in alone]
    assert len({tuple(one.tokens) for one in shared}) > 1
