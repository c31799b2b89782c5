"""Requests that come and go while others decode: order, rows, pauses, cancelling, failures.

What a request writes must not depend on any of it. Everything here happens at an exact round: the
tests act on the worker's thread, between what it does.
"""

import asyncio
import gc
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import cycle, groupby, pairwise
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
import pytest

from helpers.checkpoints import VOCAB, PairPaths
from mlx_gemma_mtp import Chunk, Engine, Generation, MgmError, SamplingParams, load
from mlx_gemma_mtp.decode import round as speculate
from mlx_gemma_mtp.decode.depth import Depth
from mlx_gemma_mtp.decode.round import PlayRound, Round
from mlx_gemma_mtp.engine import batch, engine, prefill
from mlx_gemma_mtp.engine.prefill import CHUNKS, Pace
from mlx_gemma_mtp.engine.worker import mlx_worker
from mlx_gemma_mtp.errors import (
    GenerationError,
    NotEnoughMemoryError,
    QueueFullError,
    UsageError,
    as_failure,
)
from mlx_gemma_mtp.model import cache
from mlx_gemma_mtp.model.cache import KVCache
from mlx_gemma_mtp.model.target import Target
from mlx_gemma_mtp.text.tokenizer import TextStream

PLAIN = SamplingParams(max_tokens=16, seed=11, temperature=1, ignore_eos=True, num_draft_tokens=0)
LONG = replace(PLAIN, max_tokens=60)
ENDLESS = replace(PLAIN, max_tokens=900)
SECONDS = 60  # after which what should long have happened never does
NO_MEMORY = "[malloc] Unable to allocate 1024 bytes."


class Event(NamedTuple):
    """A chunk of a prompt, or a round."""

    what: str
    size: int  # tokens of the chunk, rows of the round
    engine: int = 0  # which of those loaded, for a round
    capacity: int = 0  # slots of its full-attention layers


class Watch:
    """What engines loaded from now on do, in order. Called after each event: `then`."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.then: Callable[[], object] = lambda: None
        self.cache: KVCache  # of the last round
        self.limit: mx.array
        self._num_engines = 0

    @property
    def rounds(self) -> list[Event]:
        return [event for event in self.events if event.what == "round"]

    def at_rounds(self, actions: dict[int, Callable[[], object]]) -> None:
        """From now on, call each action after its round, counted from 1."""
        start = len(self.rounds)

        def act() -> None:
            if self.events[-1].what == "round":
                actions.get(len(self.rounds) - start, lambda: None)()

        self.then = act

    def player(self, *models: Any) -> PlayRound:
        play_round = speculate.round_player(*models)
        number, self._num_engines = self._num_engines, self._num_engines + 1

        def play(*arguments: Any) -> Round:
            played = play_round(*arguments)
            self.cache, self.limit = arguments[0], arguments[3]
            capacity = self.cache.capacity("full_attention")
            self.events.append(Event("round", played.accepted.shape[0], number, capacity))
            self.then()
            return played

        return play

    def prefill(self, target: Target, cache: KVCache, tokens: mx.array) -> mx.array:
        hidden = speculate.prefill(target, cache, tokens)
        self.events.append(Event("chunk", tokens.shape[1]))
        self.then()
        return hidden


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    watched = Watch()
    monkeypatch.setattr(engine, "round_player", watched.player)
    monkeypatch.setattr(prefill, "prefill", watched.prefill)
    return watched


@pytest.fixture(scope="module")
def pair(pairs: dict[str, PairPaths]) -> PairPaths:
    return pairs["12B"]


@pytest.fixture
def running(pair: PairPaths, watch: Watch) -> Iterator[Engine]:
    with load(*pair) as loaded:
        yield loaded


@pytest.fixture
def prompts(rng: np.random.Generator) -> list[list[int]]:
    return [rng.integers(0, VOCAB, size).tolist() for size in (3, 20, 7, 40, 11, 5, 31, 9)]


def alone(running: Engine, prompt: list[int], params: SamplingParams) -> list[int]:
    return running.generate(prompt, params)[0].tokens


def tokens(generation: Generation) -> list[int]:
    return generation.result(SECONDS).tokens


def at_rest() -> None:
    """Wait until the worker has done all that was submitted, and what follows from it."""
    for _ in range(2):
        mlx_worker().run(lambda: None)


class Held:
    """The worker does nothing while this is open, so that what is submitted is there at once."""

    def __enter__(self) -> None:
        self._go_on = threading.Event()
        mlx_worker().submit(lambda: self._go_on.wait(SECONDS))

    def __exit__(self, *_: object) -> None:
        self._go_on.set()


# Joining and leaving


@pytest.mark.parametrize("num_draft_tokens", [0, 3])
def test_a_request_that_joins_others_writes_its_own_text(
    running: Engine, prompts: list[list[int]], watch: Watch, num_draft_tokens: int
) -> None:
    params = [
        replace(LONG, max_tokens=60 - 12 * i, temperature=i % 2, num_draft_tokens=num_draft_tokens)
        for i in range(4)
    ]
    expected = [alone(running, *one) for one in zip(prompts, params, strict=False)]
    late: list[Generation] = []

    def join() -> None:
        number = len(late) + 1
        late.append(running.submit(prompts[number], params[number]))

    watch.at_rounds({4: join, 5: join, 20: join})
    first = running.submit(prompts[0], params[0])
    assert tokens(first) == expected[0]
    assert [tokens(one) for one in late] == expected[1:]
    assert {event.size for event in watch.rounds} == {1, 2, 4}


@pytest.mark.parametrize(
    ("max_batch", "sizes"),
    [(8, [1, 2, 4, 8, 4, 2, 1]), (5, [1, 2, 4, 5, 4, 2, 1]), (3, [1, 2, 3, 2, 1]), (1, [1])],
)
def test_a_batch_grows_and_shrinks_with_its_rows_and_their_texts_stay(
    pair: PairPaths,
    prompts: list[list[int]],
    watch: Watch,
    monkeypatch: pytest.MonkeyPatch,
    max_batch: int,
    sizes: list[int],
) -> None:
    monkeypatch.setattr(batch, "SHRINK_AFTER", 2)
    # The first stays longest; each of the others joins two rounds after the one before it, and
    # ends six rounds after it.
    params = [replace(PLAIN, max_tokens=90, seed=0)]
    params += [replace(params[0], max_tokens=20 + 4 * i, seed=i) for i in range(1, max_batch)]
    with load(*pair, max_batch=max_batch) as running:
        expected = [alone(running, *one) for one in zip(prompts, params, strict=False)]
        played = len(watch.rounds)
        going: list[Generation] = []

        def join() -> None:
            going.append(running.submit(prompts[len(going)], params[len(going)]))

        watch.at_rounds({2 * i: join for i in range(1, max_batch)})
        join()
        assert tokens(going[0]) == expected[0]
        assert [tokens(one) for one in going] == expected
    assert [size for size, _ in groupby(e.size for e in watch.rounds[played:])] == sizes


def test_a_batch_does_not_shrink_between_two_requests_in_quick_succession(
    running: Engine, prompts: list[list[int]], watch: Watch
) -> None:
    def again() -> None:
        short.append(running.submit(prompts[1], replace(PLAIN, max_tokens=3)))

    short: list[Generation] = []
    watch.at_rounds(dict.fromkeys(range(1, 50, 6), again))
    running.submit(prompts[0], LONG).result(SECONDS)
    assert [size for size, _ in groupby(e.size for e in watch.rounds)][:2] == [1, 2]
    assert {event.size for event in watch.rounds[2:50]} == {2}


def test_room_for_a_long_text_is_given_back_when_the_batch_shrinks(
    running: Engine,
    rng: np.random.Generator,
    prompts: list[list[int]],
    watch: Watch,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(batch, "SHRINK_AFTER", 2)
    expected = alone(running, prompts[0], LONG)
    played = len(watch.rounds)
    long = rng.integers(0, VOCAB, 700).tolist()
    watch.at_rounds({3: lambda: running.submit(long, PLAIN)})
    assert tokens(running.submit(prompts[0], LONG)) == expected
    capacities = [size for size, _ in groupby(e.capacity for e in watch.rounds[played:])]
    assert capacities == [256, 768, 256]


def test_an_idle_engine_holds_no_cache(pair: PairPaths, prompts: list[list[int]]) -> None:
    def held() -> int:
        at_rest()
        gc.collect()
        return mx.get_active_memory()

    with load(*pair) as running:
        running.generate(prompts[0], PLAIN)
        before = held()
        running.generate(prompts, LONG)
        assert held() <= before + 10_000
        assert mx.get_cache_memory() == 0


def test_a_row_leaves_nothing_to_the_next_one(
    running: Engine, prompts: list[list[int]], watch: Watch
) -> None:
    """Not even values that are not finite, which a mask does not hide: 0 × NaN is NaN."""
    params = [LONG, replace(PLAIN, max_tokens=6, temperature=0), replace(PLAIN, max_tokens=30)]
    expected = [alone(running, *one) for one in zip(prompts, params, strict=False)]
    third: list[Generation] = []

    def poison() -> None:
        if watch.events[-1].what == "round" and watch.limit.tolist() == [0, -1] and not third:
            for part in (watch.cache.keys, watch.cache.values):
                for buffer in part:
                    buffer[1] = mx.nan
            third.append(running.submit(prompts[2], params[2]))

    watch.then = poison
    with Held():
        first, second = (running.submit(*one) for one in zip(prompts[:2], params, strict=False))
    assert [tokens(first), tokens(second), tokens(third[0])] == expected
    assert max(event.size for event in watch.rounds) == 2  # the third got the second's row


def test_counts_are_those_of_the_request_however_late_it_joined(
    running: Engine, prompts: list[list[int]], watch: Watch
) -> None:
    late: list[Generation] = []
    watch.at_rounds({9: lambda: late.append(running.submit(prompts[1], PLAIN))})
    first = running.submit(prompts[0], replace(LONG, num_draft_tokens=2)).result(SECONDS)
    second = late[0].result(SECONDS)
    assert second.stats.rounds == 15
    assert second.stats.drafted == 0
    assert first.stats.drafted == 2 * first.stats.rounds
    for stats in (first.stats, second.stats):
        assert 0 < stats.longest_pause_seconds <= stats.decode_seconds
        assert stats.decode_seconds <= stats.rounds * stats.longest_pause_seconds + 1e-3


# Order and the queue


def test_requests_start_in_their_order(
    pair: PairPaths, watch: Watch, rng: np.random.Generator
) -> None:
    lengths = rng.permutation([1, 5, 30, 64, 65, 130, 200, 3, 90, 10, 40, 2]).tolist()
    started: list[int] = []
    with load(*pair, max_batch=3) as running:

        def submit(number: int) -> Generation:
            def note(chunk: Chunk) -> None:
                if number not in started:
                    started.append(number)

            own = replace(PLAIN, max_tokens=int(rng.integers(1, 30)))
            return running.submit([7] * lengths[number], own, note)

        with Held():
            going = [submit(number) for number in range(len(lengths))]
        done = [one.result(SECONDS) for one in going]
    assert started == list(range(len(lengths)))
    waits = [one.stats.queue_seconds for one in done]
    assert waits[0] < waits[-1]
    assert next(event.size for event in watch.events if event.what == "chunk") == lengths[0]


def test_a_full_queue_refuses_and_then_takes_again(
    pair: PairPaths, prompts: list[list[int]], watch: Watch
) -> None:
    with load(*pair, max_batch=1, max_queue=2) as running:
        expected = [alone(running, prompt, PLAIN) for prompt in prompts[:4]]
        with Held():
            going = [running.submit(prompt, PLAIN) for prompt in prompts[:2]]
            for ask in (running.submit, lambda *asked: next(running.stream(*asked))):
                with pytest.raises(QueueFullError) as raised:
                    ask(prompts[3], PLAIN)
                assert str(raised.value).startswith("2 requests are waiting")
            assert going[1].cancel()
        assert [tokens(one) for one in going] == [expected[0], []]
        with Held():
            going = [running.submit(prompt, PLAIN) for prompt in prompts[2:4]]
        assert [tokens(one) for one in going] == expected[2:]


def test_a_list_of_prompts_may_be_longer_than_the_queue_and_leaves_room_in_it(
    pair: PairPaths, prompts: list[list[int]], watch: Watch
) -> None:
    between: list[Generation] = []
    with load(*pair, max_batch=1, max_queue=1) as running:
        expected = [alone(running, prompt, PLAIN) for prompt in prompts]
        assert [one.tokens for one in running.generate(prompts, PLAIN)] == expected
    with load(*pair, max_batch=1, max_queue=2) as running:
        watch.at_rounds({20: lambda: between.append(running.submit(prompts[5], PLAIN))})
        assert [one.tokens for one in running.generate(prompts, PLAIN)] == expected
        assert tokens(between[0]) == expected[5]


def test_two_engines_take_turns(pair: PairPaths, prompts: list[list[int]], watch: Watch) -> None:
    with load(*pair) as one, load(*pair) as other:
        expected = alone(one, prompts[0], LONG)
        played = len(watch.rounds)
        with Held():
            going = [engine.submit(prompts[0], LONG) for engine in (one, other)]
        assert [tokens(generation) for generation in going] == [expected] * 2
    turns = [event.engine for event in watch.rounds[played:]]
    assert turns == [0, 1] * 59


# Pauses


def test_a_chunk_is_the_largest_that_keeps_others_waiting_a_quarter_second() -> None:
    fresh = Pace()
    assert (fresh.chunk(decoding=False), fresh.chunk(decoding=True)) == (CHUNKS[-1], CHUNKS[0])
    fresh.measure(CHUNKS[0] - 1, 0.001)  # too few tokens to tell
    assert fresh.chunk(decoding=True) == CHUNKS[0]
    for seconds_per_token, chunk in [(1e-6, 512), (0.2 / 512, 512), (0.2 / 128, 128), (1.0, 64)]:
        pace = Pace()
        pace.measure(100, 100 * seconds_per_token)
        assert pace.chunk(decoding=True) == chunk
        assert pace.chunk(decoding=False) == CHUNKS[-1]
        for _ in range(20):
            pace.measure(100, 1e-6)  # it was a hiccup
        assert pace.chunk(decoding=True) == CHUNKS[-1]


def test_a_long_prompt_lets_the_others_go_on_between_its_chunks(
    running: Engine,
    rng: np.random.Generator,
    prompts: list[list[int]],
    watch: Watch,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(prefill, "PAUSE_SECONDS", 0)
    chunk_seconds = 0.2
    long = rng.integers(0, VOCAB, 9 * CHUNKS[0] + 5).tolist()
    expected = [alone(running, prompt, LONG) for prompt in (prompts[0], long)]
    seen = len(watch.events)
    late: list[Generation] = []

    def act() -> None:
        event = watch.events[-1]
        if event.what == "chunk" and late:
            time.sleep(chunk_seconds)
        if event.what == "round" and not late:
            late.append(running.submit(long, LONG))

    watch.then = act
    first = running.submit(prompts[0], LONG).result(SECONDS)
    assert [first.tokens, tokens(late[0])] == expected
    events = [(event.what, event.size) for event in watch.events[seen:]]
    between = [("round", 1), ("chunk", CHUNKS[0])] * 9
    assert events[: 3 + len(between)] == [("chunk", 3), *between, ("round", 1), ("chunk", 5)]
    # Its longest pause is one chunk, not the prompt.
    assert chunk_seconds < first.stats.longest_pause_seconds < 5 * chunk_seconds


def test_short_prompts_join_together(
    running: Engine, prompts: list[list[int]], watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many as count for one chunk: each of them takes as long as the smallest."""
    monkeypatch.setattr(prefill, "PAUSE_SECONDS", np.inf)
    running.generate([7] * CHUNKS[0], replace(PLAIN, max_tokens=1))  # something to measure
    seen = len(watch.events)
    with Held():
        going = [running.submit(prompt, PLAIN) for prompt in prompts]
    for one in going:
        one.result(SECONDS)
    events = [event.what for event in watch.events[seen:]]
    assert events[:8] == ["chunk"] * 8
    assert watch.rounds[-1].size == 8


# Cancelling


def test_a_request_that_waits_can_be_cancelled(
    pair: PairPaths, prompts: list[list[int]], watch: Watch
) -> None:
    with load(*pair, max_batch=1) as running:
        expected = [alone(running, prompt, PLAIN) for prompt in prompts[:3]]
        with Held():
            going = [running.submit(prompt, PLAIN) for prompt in prompts[:3]]
            assert going[1].cancel()
        assert [tokens(one) for one in going] == [expected[0], [], expected[2]]
        done = going[1].result()
        assert (done.finish_reason, done.stats.prompt_tokens) == ("cancelled", len(prompts[1]))
        assert not going[1].cancel()
        assert going[0].result().finish_reason == "length"


def test_a_request_can_be_cancelled_in_its_prefill(
    running: Engine, prompts: list[list[int]], watch: Watch
) -> None:
    expected = alone(running, prompts[0], PLAIN)
    chunks: list[Event] = []

    def cancel() -> None:
        chunks.append(watch.events[-1])
        if watch.events[-1].what == "chunk" and len(chunks) == 2:
            going.cancel()

    with Held():
        watch.then = cancel
        going = running.submit([7] * (CHUNKS[-1] + 100), PLAIN)
        running.submit([7] * (CHUNKS[-1] - 1), PLAIN).cancel()
        after = running.submit(prompts[0], PLAIN)
    assert going.result(SECONDS).finish_reason in ("cancelled", "length")
    assert tokens(after) == expected


def test_a_request_can_be_cancelled_while_it_decodes(
    running: Engine, prompts: list[list[int]], watch: Watch
) -> None:
    expected = [alone(running, prompt, LONG) for prompt in prompts[:3]]
    chunks: list[Chunk] = []
    late: list[Generation] = []

    def swap() -> None:
        second.cancel()
        late.append(running.submit(prompts[2], LONG))

    watch.at_rounds({10: swap})
    with Held():
        first = running.submit(prompts[0], LONG)
        second = running.submit(prompts[1], LONG, chunks.append)
    assert [tokens(first), tokens(late[0])] == [expected[0], expected[2]]
    done = second.result(SECONDS)
    assert done.finish_reason == chunks[-1].finish_reason == "cancelled"
    assert done.tokens == expected[1][: len(done.tokens)]
    assert 8 <= len(done.tokens) <= 11  # the round under way then, and the one after
    assert [token for chunk in chunks for token in chunk.tokens] == done.tokens
    assert {event.size for event in watch.rounds[-30:]} <= {1, 2}  # the late one got its row


# Failures


def fails_now(what: str = "broken") -> Callable[..., Any]:
    def fail(*_: object, **__: object) -> Any:
        raise RuntimeError(what)

    return fail


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (RuntimeError(NO_MEMORY), NotEnoughMemoryError),
        (RuntimeError("[metal::malloc] Attempting to allocate 9 bytes"), NotEnoughMemoryError),
        (RuntimeError("cudaMallocAsync(&data, size) failed: out of memory"), NotEnoughMemoryError),
        (RuntimeError("[METAL] execution failed: Insufficient Memory"), NotEnoughMemoryError),
        (MemoryError(), NotEnoughMemoryError),
        (RuntimeError("broken\nfor good"), GenerationError),
        (ValueError("broken"), GenerationError),
        (SystemExit(3), GenerationError),
    ],
)
def test_what_fails_in_a_prefill_ends_that_request_alone(
    running: Engine,
    prompts: list[list[int]],
    watch: Watch,
    error: BaseException,
    kind: type[MgmError],
) -> None:
    expected = [alone(running, prompt, LONG) for prompt in prompts[:2]]
    bad: list[Generation] = []

    def fail() -> None:
        if watch.events[-1] == ("chunk", CHUNKS[0], 0, 0):
            raise error

    with Held():
        watch.then = fail
        first = running.submit(prompts[0], LONG)
        bad = [running.submit([7] * CHUNKS[0], LONG)]
        second = running.submit(prompts[1], LONG)
    assert [tokens(first), tokens(second)] == expected
    with pytest.raises(kind) as raised:
        bad[0].result(SECONDS)
    assert type(raised.value) is kind
    assert raised.value.__cause__ is error
    assert "\n" not in str(raised.value)
    assert kind is not NotEnoughMemoryError or raised.value.exit_code == 4


@pytest.mark.parametrize("where", [0, 1, -2, -1])
def test_a_request_for_which_the_batch_cannot_grow_ends_and_the_others_go_on(
    running: Engine,
    prompts: list[list[int]],
    watch: Watch,
    monkeypatch: pytest.MonkeyPatch,
    where: int,
) -> None:
    expected = [alone(running, prompt, LONG) for prompt in prompts[:3]]
    arranged = cache._arranged
    bad: list[Generation] = []
    left: list[int] = []  # buffers until memory runs out

    def arrange(*arguments: Any) -> mx.array:
        if bad and left and left.pop() == 0:
            left.clear()
            raise RuntimeError(NO_MEMORY)
        return arranged(*arguments)

    def join() -> None:
        number = 2 * len(watch.cache.keys)
        left[:] = range(where % number + 1)
        bad.append(running.submit(prompts[1], LONG))

    monkeypatch.setattr(cache, "_arranged", arrange)
    watch.at_rounds({9: join, 20: lambda: bad.append(running.submit(prompts[2], LONG))})
    assert tokens(running.submit(prompts[0], LONG)) == expected[0]
    with pytest.raises(NotEnoughMemoryError):
        bad[0].result(SECONDS)
    assert tokens(bad[1]) == expected[2]  # by then there is memory again


def test_a_batch_that_cannot_be_put_back_fails_and_the_engine_goes_on(
    running: Engine, prompts: list[list[int]], watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = alone(running, prompts[2], PLAIN)
    arranged = cache._arranged
    calls: list[int] = []

    def arrange(*arguments: Any) -> mx.array:
        calls.append(1)
        if len(calls) > 3:
            raise RuntimeError(NO_MEMORY)
        return arranged(*arguments)

    monkeypatch.setattr(cache, "_arranged", arrange)
    late: list[Generation] = []
    watch.at_rounds({9: lambda: late.append(running.submit(prompts[1], LONG))})
    first = running.submit(prompts[0], LONG)
    for one in (first, *late):
        with pytest.raises(MgmError):
            one.result(SECONDS)
    assert tokens(running.submit(prompts[2], PLAIN)) == expected


def test_a_text_for_which_there_is_no_more_room_ends_and_the_others_go_on(
    running: Engine,
    rng: np.random.Generator,
    prompts: list[list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    long = rng.integers(0, VOCAB, 240).tolist()
    expected = [alone(running, *one) for one in ((prompts[0], LONG), (long, LONG))]
    with monkeypatch.context() as patch:
        patch.setattr(KVCache, "grow", lambda self, capacity: None)
        patch.setattr(batch.Batch, "_grow", batch.Batch._grow)
        grow = fails_now(NO_MEMORY)

        def grow_when_needed(self: KVCache, capacity: int) -> None:
            if capacity > self.capacity("full_attention"):
                grow()

        patch.setattr(KVCache, "grow", grow_when_needed)
        pieces: list[Chunk] = []
        with Held():
            first = running.submit(prompts[0], LONG)
            second = running.submit(long, LONG, pieces.append)
        assert tokens(first) == expected[0]
        with pytest.raises(NotEnoughMemoryError):
            second.result(SECONDS)
        said = [token for piece in pieces for token in piece.tokens]
        assert 10 <= len(said) <= 17
        assert said == expected[1][: len(said)]
    assert tokens(running.submit(long, LONG)) == expected[1]


def test_what_fails_in_a_round_ends_its_rows_and_those_who_wait_are_served(
    pair: PairPaths, prompts: list[list[int]], watch: Watch
) -> None:
    with load(*pair, max_batch=2) as running:
        expected = [alone(running, prompt, PLAIN) for prompt in prompts[:4]]
        at_rest()
        del watch.cache
        memory = mlx_worker().run(mx.get_active_memory)
        watch.at_rounds({6: fails_now()})
        with Held():
            going = [running.submit(prompt, PLAIN) for prompt in prompts[:4]]
        errors: list[MgmError] = []
        for one in going[:2]:
            with pytest.raises(GenerationError, match="broken") as raised:
                one.result(SECONDS)
            assert isinstance(raised.value.__cause__, RuntimeError)
            errors.append(raised.value)
        assert errors[0] is not errors[1]
        assert [tokens(one) for one in going[2:]] == expected[2:]
        at_rest()
        del watch.cache
        gc.collect()
        assert mlx_worker().run(mx.get_active_memory) <= memory + 10_000  # `errors` keeps nothing


def test_what_fails_between_the_rounds_ends_everything_and_the_engine_goes_on(
    pair: PairPaths, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with load(*pair, max_batch=1) as running:
        expected = alone(running, prompts[0], PLAIN)
        with monkeypatch.context() as patch:
            patch.setattr(batch.Batch, "full", property(fails_now()))
            with Held():
                going = [running.submit(prompt, PLAIN) for prompt in prompts]
            for one in going:
                with pytest.raises(GenerationError, match="broken"):
                    one.result(SECONDS)
        assert tokens(running.submit(prompts[0], PLAIN)) == expected


class Unwritable(TextStream):
    """A text that breaks at its sixth token."""

    def __init__(self) -> None:
        self._left = 5
        self.stopped = False

    def add(self, token: int) -> str:
        self._left -= 1
        if self._left < 0:
            raise ValueError("broken")
        return "x"

    def finish(self) -> str:
        return ""


class UnwritableText:
    """Stands in for `text.Text`."""

    def stream(self, stop: object = ()) -> TextStream:
        return Unwritable()


@pytest.mark.parametrize("where", ["callback", "text"])
def test_what_fails_in_a_callback_or_a_text_ends_that_request_alone(
    running: Engine, prompts: list[list[int]], where: str
) -> None:
    expected = [alone(running, prompt, LONG) for prompt in prompts[:3:2]]
    pieces: list[Chunk] = []

    def note(chunk: Chunk) -> None:
        pieces.append(chunk)
        if where == "callback" and len(pieces) == 5:
            raise ValueError("broken")

    with Held():
        first = running.submit(prompts[0], LONG)
        if where == "text":
            running.text = UnwritableText()  # type: ignore[assignment]
        bad = running.submit(prompts[1], LONG, note)
        running.text = None
        second = running.submit(prompts[2], LONG)
    with pytest.raises(GenerationError, match="ValueError: broken") as raised:
        bad.result(SECONDS)
    assert isinstance(raised.value.__cause__, ValueError)
    assert "in note" in raised.value.__cause__.__notes__[0] or where == "text"
    assert len(pieces) == 5
    assert [tokens(first), tokens(second)] == expected


def test_a_callback_that_would_wait_for_itself_is_told_so(
    running: Engine, pair: PairPaths, prompts: list[list[int]]
) -> None:
    def ask(what: Callable[[], object]) -> str:
        asked = running.submit(prompts[0], PLAIN, lambda _: void(what()))
        with pytest.raises(UsageError) as raised:
            asked.result(SECONDS)
        return str(raised.value)

    def void(_: object) -> None:
        return None

    forever = running.submit(prompts[1], ENDLESS)
    for what in (
        lambda: running.generate(prompts[1], PLAIN),
        lambda: next(running.stream(prompts[1], PLAIN)),
        lambda: load(*pair),
        forever.result,
        running.close,
    ):
        assert "callback" in ask(what)
    forever.cancel()


def test_an_error_is_told_to_each_caller_in_an_object_of_its_own() -> None:
    closed = MgmError("closed")
    told = [as_failure(closed) for _ in range(2)]
    assert told[0] is not told[1]
    assert [(type(one), str(one)) for one in told] == [(MgmError, "closed")] * 2


# Waiting for a result


def test_a_result_may_be_waited_for_a_while(running: Engine, prompts: list[list[int]]) -> None:
    going = running.submit(prompts[0], ENDLESS)
    with pytest.raises(TimeoutError):
        going.result(0.05)
    assert not going.done()
    going.cancel()
    assert going.result(SECONDS).finish_reason == "cancelled"
    assert going.done()


def test_requests_can_be_awaited(running: Engine, prompts: list[list[int]]) -> None:
    expected = [alone(running, prompt, PLAIN) for prompt in prompts]
    forever = running.submit(prompts[0], ENDLESS)

    async def ask() -> list[list[int]]:
        dropped = asyncio.ensure_future(asyncio.wrap_future(forever))
        going = [asyncio.wrap_future(running.submit(prompt, PLAIN)) for prompt in prompts]
        done = await asyncio.gather(*going)
        dropped.cancel()
        with pytest.raises(asyncio.CancelledError):
            await dropped
        return [one.tokens for one in done]

    assert asyncio.run(ask()) == expected
    assert forever.result(SECONDS).finish_reason == "cancelled"


# Closing


def test_closing_tells_everyone_who_is_not_done(
    pair: PairPaths, prompts: list[list[int]], watch: Watch
) -> None:
    reached, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        reached.set()
        go_on.wait(SECONDS)

    with load(*pair, max_batch=2, max_queue=3) as running:
        watch.at_rounds({5: hold})
        with Held():
            going = [running.submit(prompts[0], ENDLESS), running.submit([7] * 900, ENDLESS)]
            going += [running.submit(prompts[2], ENDLESS)]
        with ThreadPoolExecutor(2) as threads:
            many = threads.submit(running.generate, prompts, ENDLESS)
            assert reached.wait(SECONDS)
            played = len(watch.rounds)
            closing = threads.submit(running.close)
            time.sleep(0.1)
            go_on.set()
            closing.result(SECONDS)
            for one in (*going, many):
                with pytest.raises(MgmError, match="closed"):
                    one.result(SECONDS)
        assert len(watch.rounds) <= played + 1
        with pytest.raises(MgmError, match="closed"):
            running.submit(prompts[0], PLAIN)


# Timing


def test_a_round_is_timed_only_where_nothing_came_between(
    running: Engine, prompts: list[list[int]], watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    observed: list[tuple[int, int, bool]] = []

    def observe(
        self: object, flight: batch.Flight, accepted: list[int], seconds: float | None
    ) -> None:
        assert len(accepted) == len(flight.rows)
        observed.append((len(flight.rows), flight.num_draft_tokens, seconds is not None))

    monkeypatch.setattr(batch.Batch, "_observe", observe)
    late: list[Generation] = []

    def join() -> None:
        late.append(running.submit(prompts[1], replace(PLAIN, num_draft_tokens=2, max_tokens=2)))

    watch.at_rounds({5: join})
    running.submit(prompts[0], LONG).result(SECONDS)
    at_rest()
    assert observed[0] == (1, 0, False)
    assert set(observed[1:4]) == {(1, 0, True)}
    assert observed[4:6] == [(1, 0, False), (2, 2, False)]  # a prefill and a resize between them
    # Each change is to a shape not seen before, or comes with a resize.
    changes = [after for before, after in pairwise(observed) if before[:2] != after[:2]]
    assert [timed for _, _, timed in changes] == [False] * len(changes)
    # Nor are the first, the last, and the ones before a change: none like them was in flight.
    assert not observed[-1][2]
    assert sum(not timed for _, _, timed in observed) == 2 + 2 * len(changes)


def test_a_round_is_timed_only_beside_one_of_as_many_drafts_and_a_change_comes_twice(
    running: Engine, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    observed: list[tuple[int, bool]] = []
    wanted = cycle([0, 0, 0, 2, 0, 0, 3])

    def observe(
        self: object, flight: batch.Flight, accepted: list[int], seconds: float | None
    ) -> None:
        observed.append((flight.num_draft_tokens, seconds is not None))

    monkeypatch.setattr(batch.Batch, "_observe", observe)
    monkeypatch.setattr(Depth, "choose", lambda *_: next(wanted))
    for _ in range(2):  # in the second text no shape is new
        observed.clear()
        running.submit(prompts[0], replace(LONG, num_draft_tokens="auto")).result(SECONDS)
        at_rest()
    for (drafts, timed), (following, _) in pairwise(observed[1:]):
        assert timed == (drafts == following)
    runs = [len(list(same)) for _, same in groupby(drafts for drafts, _ in observed)]
    assert min(runs[1:-1]) >= 2  # the first may begin with the last number of the text before
    assert len(runs) > 4
