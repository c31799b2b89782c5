"""The order of requests, pauses, cancelling, rows and the rounds timed for Depth, step by step."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle, groupby, pairwise, repeat

import mlx.core as mx
import numpy as np
import pytest

from helpers.depths import GivenDepth
from helpers.fake_target import VOCAB, output
from helpers.stepped import LONG, Stepped
from helpers.traffic import tokens_of
from mlx_gemma_mtp import Chunk
from mlx_gemma_mtp.decode.division import Shape
from mlx_gemma_mtp.engine.pace import Pace
from mlx_gemma_mtp.engine.request import Request
from mlx_gemma_mtp.memory import Limits

CHUNKS = Limits().chunks


def test_requests_start_in_their_order(rng: np.random.Generator) -> None:
    lengths = rng.permutation([1, 5, 30, 64, 65, 130, 200, 3, 90, 10, 40, 2]).tolist()
    started: dict[int, Chunk] = {}  # the first chunk of each, in their order
    stepped = Stepped(max_batch=3)
    requests = [
        stepped.submit(
            [7] * length, int(rng.integers(1, 30)), on_chunk=partial(started.setdefault, n)
        )
        for n, length in enumerate(lengths)
    ]
    stepped.finish(*requests)
    assert list(started) == list(range(len(lengths)))
    waits = [one.stats.queue_seconds for one in requests]
    assert waits[0] < waits[-1]
    assert stepped.passes[0][0] == lengths[0]


# Pauses


def test_a_chunk_is_the_largest_that_takes_no_longer_than_a_pause() -> None:
    fresh = Pace(Limits())
    assert (fresh.chunk(), fresh.chunk(0.25)) == (CHUNKS[-1], CHUNKS[0])
    # A token of a short pass takes longer: that shows what one takes at most.
    for seconds, chunk in [(1.0, CHUNKS[0]), (0.04, 256), (0.2, 256), (0.01, 1024)]:
        fresh.measure(50, seconds)
        assert fresh.chunk(0.25) == chunk
    fresh.measure(100, 1.0)
    assert fresh.chunk(0.25) == CHUNKS[0]
    for seconds_per_token, chunk in [(1e-6, 2048), (0.2 / 512, 512), (0.2 / 128, 128), (1.0, 64)]:
        pace = Pace(Limits())
        pace.measure(100, 100 * seconds_per_token)
        assert pace.chunk(0.25) == chunk
        assert pace.chunk(0.25, most=256) == min(chunk, 256)
        assert pace.chunk() == CHUNKS[-1]
        for _ in range(20):
            pace.measure(100, 1e-6)  # it was a hiccup
        assert pace.chunk(0.25) == CHUNKS[-1]


def test_a_long_prompt_starts_with_a_small_pass_that_shows_the_pace(
    rng: np.random.Generator, wait: Callable[[float], None]
) -> None:
    stepped = Stepped()
    stepped.then = lambda event: wait(event.size / 100 * (event.what == "chunk"))
    long = stepped.submit(rng.integers(0, VOCAB, 700).tolist())
    stepped.step()
    question = stepped.submit([7] * 3)
    stepped.finish(long, question)
    assert stepped.passes[:3] == [[64], [3], [64]]  # 100 tokens in the second that a pass may take


def test_others_decode_between_the_chunks_of_a_long_prompt(
    rng: np.random.Generator, prompts: list[list[int]], wait: Callable[[float], None]
) -> None:
    stepped, chunk_seconds = Stepped(limits=Limits(pause_seconds=0)), 0.1
    first = stepped.submit(prompts[0], LONG)
    stepped.step()
    stepped.then = lambda event: wait(chunk_seconds * (event.what == "chunk"))
    long = stepped.submit(rng.integers(0, VOCAB, 9 * CHUNKS[0] + 5).tolist(), LONG)
    stepped.finish(first, long)
    events = [event[:2] for event in stepped.events]
    between = [("round", 1), ("chunk", CHUNKS[0])] * 9
    assert events[: 3 + len(between)] == [("chunk", 3), *between, ("round", 1), ("chunk", 5)]
    # Its longest pause is one chunk, not the prompt.
    assert first.stats.longest_pause_seconds == pytest.approx(chunk_seconds, rel=0.01)


def test_a_chunk_is_smaller_while_rows_decode(rng: np.random.Generator) -> None:
    """At most 512 tokens, however quick the machine is."""
    stepped = Stepped(limits=Limits(pause_seconds=np.inf))
    first = stepped.submit(rng.integers(0, VOCAB, 900).tolist(), LONG)
    stepped.step(3)
    second = stepped.submit(rng.integers(0, VOCAB, 900).tolist())
    stepped.finish(first, second)
    assert stepped.passes == [[900], [512], [388]]


# Cancelling


def test_a_request_can_be_cancelled_while_it_waits(prompts: list[list[int]]) -> None:
    stepped = Stepped(max_batch=1)
    first, second, third = (stepped.submit(prompt) for prompt in prompts[:3])
    assert second.generation.cancel()
    stepped.step()
    done = second.generation.result(0)
    assert (done.tokens, done.finish_reason) == ([], "cancelled")
    assert done.stats.prompt_tokens == len(prompts[1])
    assert not second.generation.cancel()
    stepped.finish(first, third)


def test_a_request_can_be_cancelled_in_its_prefill(prompts: list[list[int]]) -> None:
    stepped = Stepped(limits=Limits(pause_seconds=np.inf))
    cancelled = [stepped.submit([7] * (CHUNKS[-1] + more)) for more in (100, 90)]
    stepped.step()
    third = stepped.submit(prompts[0])
    for request in cancelled:
        request.generation.cancel()
    stepped.finish(third)
    for request in cancelled:
        assert (request.tokens, request.generation.result().finish_reason) == ([], "cancelled")
    assert [event.size for event in stepped.events if event.what == "chunk"] == [CHUNKS[-1], 3]


def test_a_request_can_be_cancelled_while_it_decodes(prompts: list[list[int]]) -> None:
    stepped, chunks = Stepped(), list[Chunk]()
    first = stepped.submit(prompts[0], LONG)
    second = stepped.submit(prompts[1], LONG, on_chunk=chunks.append)
    while len(stepped.rounds) < 10:
        stepped.step()
    second.generation.cancel()
    third = stepped.submit(prompts[2], LONG)
    stepped.finish(first, third)
    done = second.generation.result(0)
    assert done.finish_reason == chunks[-1].finish_reason == "cancelled"
    assert tokens_of(chunks) == done.tokens == output(prompts[1], len(done.tokens))
    assert 8 <= len(done.tokens) <= 11
    assert {event.size for event in stepped.rounds[-30:]} <= {1, 2}  # the third got its row


# Timing


class Timed(GivenDepth):
    """Records which rounds were timed, by their number."""

    def __init__(self, choices: Iterator[int]) -> None:
        super().__init__(choices)
        self.stepped = Stepped(depth=self)
        self.timed: set[int] = set()

    def round_took(self, shape: Shape, seconds: float) -> None:
        # The round after it has been laid out already.
        number = len(self.stepped.rounds) - 2
        round_ = self.stepped.rounds[number]
        assert (round_.size, round_.drafts) == (shape.batch, shape.num_positions - 1)
        assert seconds > 0
        self.timed.add(number)


def test_a_round_is_timed_only_if_nothing_came_between(prompts: list[list[int]]) -> None:
    depth = Timed(repeat(0))
    stepped = depth.stepped
    first = stepped.submit(prompts[0], LONG)
    stepped.step(5)
    second = stepped.submit(prompts[1], 2, drafts=2)
    stepped.finish(first, second)
    rounds = [(r.size, r.drafts, i in depth.timed) for i, r in enumerate(stepped.rounds)]
    assert rounds[:4] == [(1, 0, False), (1, 0, True), (1, 0, True), (1, 0, True)]
    assert rounds[4:6] == [(1, 0, False), (2, 2, False)]  # a prefill and a resize between them
    # Each change is to a shape not seen before, or comes with a resize.
    changes = [after for before, after in pairwise(rounds) if before[:2] != after[:2]]
    assert [timed for _, _, timed in changes] == [False] * len(changes)
    # Nor are the first, the last, and the ones before a change: none like them was in flight.
    assert not rounds[-1][2]
    assert sum(not timed for _, _, timed in rounds) == 2 + 2 * len(changes)


def test_a_round_is_timed_only_before_one_of_its_shape(prompts: list[list[int]]) -> None:
    depth = Timed(cycle([0, 0, 0, 2, 2, 0, 0, 3]))
    stepped = depth.stepped
    for _ in range(2):  # for the second request no shape is new
        start = len(stepped.rounds)
        stepped.finish(stepped.submit(prompts[0], LONG, drafts=None))
    rounds = [(r.drafts, i in depth.timed) for i, r in enumerate(stepped.rounds)][start:]
    for (drafts, timed), (following, _) in pairwise(rounds[1:]):
        assert timed == (drafts == following)
    assert len({drafts for drafts, timed in rounds if timed}) > 1


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
    stepped = Stepped()
    stepped.submit(prompts[0])
    stepped.finish()
    before = stepped.memory_at_rest()
    requests = [stepped.submit(prompt, LONG) for prompt in prompts]
    stepped.step(9)
    assert stepped.cache.nbytes > 20_000
    stepped.finish(*requests)
    assert stepped.memory_at_rest() <= before + 10_000
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
