"""Hundreds of requests from sixteen threads: none waits for ever, loses a token or leaves a trace.

Most go to a random pair, 12B in small, whose drafts are forced right and wrong so that all texts
are known beforehand; the rest to the demo pair, of whose texts a sample is compared. Settings,
moments and ends are drawn from the seed of the run; how the requests meet is up to the machine.
"""

import faulthandler
import gc
import tempfile
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

import mlx.core as mx
import numpy as np
import pytest

from helpers.checkpoints import VOCAB, PairPaths
from helpers.forced import Forced, Row, at_random
from mlx_gemma_mtp import Chunk, Completion, Engine, Generation, SamplingParams, load
from mlx_gemma_mtp.decode import round as speculate
from mlx_gemma_mtp.demo.recipe.tasks import held_out
from mlx_gemma_mtp.engine.request import Request
from mlx_gemma_mtp.engine.scheduler import Scheduler
from mlx_gemma_mtp.engine.worker import mlx_worker
from mlx_gemma_mtp.errors import GenerationError, MgmError

NUM_THREADS = 16
NUM_REQUESTS = {"12B": 400, "demo": 100}
NUM_TEXTS = 32  # of the random pair
NUM_COMPARED = 30  # of the demo's
MAX_TOKENS = 24
PROMPT_TOKENS = 40  # at most; so each prompt is read in one piece, whatever the pace
SECONDS = 240  # after which a soak is taken for a deadlock
SLACK = 10_000  # bytes
QUARTERS = 4

End = Literal["own", "cancelled", "left", "failed"]


@dataclass
class Ask:
    """A request, how it is made and ended, and what became of it."""

    prompt: list[int]
    params: SamplingParams
    streamed: bool
    end: End
    after: int  # tokens, after which it is ended
    text: list[int] | None = None  # what it says alone, where that is known
    pieces: list[Chunk] = field(default_factory=list)
    result: Completion | MgmError | None = None

    @property
    def tokens(self) -> list[int]:
        return [token for chunk in self.pieces for token in chunk.tokens]

    @property
    def completed(self) -> bool:
        """Did it come to its own end?"""
        return bool(self.pieces) and self.pieces[-1].finish_reason in ("stop", "length")


class Broken(Exception):
    """What a callback raises here."""


# What goes through an engine


@dataclass
class Traffic:
    """Every request that an engine was given; holds none of them alive."""

    requests: list["weakref.ref[Request]"] = field(default_factory=list)
    generations: list[Generation] = field(default_factory=list)
    ends: Counter[int] = field(default_factory=Counter)  # of each generation, by its number

    def forget(self) -> None:
        for noted in (self.requests, self.generations, self.ends):
            noted.clear()

    def note(self, request: Request) -> None:
        number = len(self.generations)
        self.requests.append(weakref.ref(request))
        self.generations.append(request.generation)
        request.generation.add_done_callback(lambda _: self.ends.update([number]))


@pytest.fixture
def traffic(monkeypatch: pytest.MonkeyPatch) -> Traffic:
    noted = Traffic()
    submit, lock = Scheduler.submit, threading.Lock()

    def note(self: Scheduler, request: Request, *, patient: bool = False) -> Generation:
        with lock:
            noted.note(request)
        return submit(self, request, patient=patient)

    monkeypatch.setattr(Scheduler, "submit", note)
    return noted


def in_time(jobs: list[Callable[[], None]]) -> None:
    """Run each on a thread of its own; where one does not end in time, show all threads and fail.

    What a job raises is raised here.
    """
    errors: list[BaseException] = []

    def run(job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException as error:  # noqa: BLE001 - raised below
            errors.append(error)

    # Daemons, because the process must end even where they do not.
    threads = [threading.Thread(target=run, args=[job], daemon=True) for job in jobs]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + SECONDS
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    if any(thread.is_alive() for thread in threads):
        with tempfile.TemporaryFile("w+") as dump:
            faulthandler.dump_traceback(dump, all_threads=True)
            dump.seek(0)
            pytest.fail(f"not done after {SECONDS} s:\n{dump.read()}")
    if errors:
        raise errors[0]


def memory_at_rest() -> int:
    """Bytes in use by MLX once the worker has nothing left to do."""
    for _ in range(2):
        mlx_worker().submit(lambda: None).result(SECONDS)
    gc.collect()
    return mlx_worker().submit(mx.get_active_memory).result(SECONDS)


# One request


def serve(running: Engine, ask: Ask) -> None:
    """Make a request, end it as it is to be ended, and note what became of it."""
    (stream if ask.streamed else submit)(running, ask)


def submit(running: Engine, ask: Ask) -> None:
    due = threading.Event()

    def note(chunk: Chunk) -> None:
        ask.pieces.append(chunk)
        if len(ask.tokens) >= ask.after:
            due.set()
            if ask.end == "failed":
                raise Broken

    going = running.submit(ask.prompt, ask.params, note)
    going.add_done_callback(lambda _: due.set())
    if ask.end == "cancelled":
        if ask.after:  # else while it waits
            due.wait()
        going.cancel()
    try:
        ask.result = going.result()
    except MgmError as error:
        ask.result = error


def stream(running: Engine, ask: Ask) -> None:
    pieces = running.stream(ask.prompt, ask.params)
    for chunk in pieces:
        ask.pieces.append(chunk)
        if ask.end == "left" and len(ask.tokens) >= ask.after:
            break
    pieces.close()  # type: ignore[attr-defined]


def answer(ask: Ask) -> str:
    return "".join(chunk.text for chunk in ask.pieces if chunk.kind == "answer")


def assert_ended_well(ask: Ask) -> None:
    """Did it end once, as it was to, with nothing lost, doubled or miscounted?"""
    finals = [chunk for chunk in ask.pieces if chunk.finish_reason]
    assert finals in ([], ask.pieces[-1:]), ask
    if ask.end == "failed":
        if len(ask.tokens) < ask.after:  # an end token came first
            assert isinstance(ask.result, Completion)
        else:
            assert isinstance(ask.result, GenerationError), ask
            assert isinstance(ask.result.__cause__, Broken)
            assert len(ask.tokens) - len(ask.pieces[-1].tokens) < ask.after
            return
    elif ask.end == "left" and not finals:
        assert len(ask.tokens) >= ask.after
        return
    assert finals, ask
    if not ask.streamed:
        assert isinstance(ask.result, Completion), ask
        assert ask.result.tokens == ask.tokens
        assert ask.result.text == answer(ask)
        assert ask.result.finish_reason == finals[0].finish_reason
        assert ask.result.stats is finals[0].stats
    reason, stats = finals[0].finish_reason, finals[0].stats
    assert reason in ("stop", "length") or ask.end == "cancelled"
    assert len(ask.tokens) == ask.params.max_tokens or reason != "length"

    assert stats is not None
    assert stats.prompt_tokens == len(ask.prompt)
    assert stats.generated_tokens == len(ask.tokens)
    # Each round gives one token more than it accepts; the last may have been cut by one.
    given = stats.rounds + stats.accepted + min(len(ask.tokens), 1)
    assert 0 <= given - len(ask.tokens) <= (reason != "cancelled")
    assert stats.accepted <= stats.drafted
    drafts = ask.params.num_draft_tokens
    if isinstance(drafts, int):
        assert stats.drafted_at == [stats.rounds] * (drafts if stats.rounds else 0)
    assert ask.tokens or stats.first_token_seconds == stats.decode_seconds == 0
    for seconds in (stats.queue_seconds, stats.first_token_seconds, stats.decode_seconds):
        assert 0 <= seconds < SECONDS


# The soak


def draw_end(rng: np.random.Generator, max_tokens: int) -> tuple[bool, End, int]:
    """Is it streamed, how does it end, and after how many tokens?"""
    after = int(rng.integers(0, max_tokens))
    chance = rng.random()
    if chance < 0.2:
        return False, "cancelled", after
    if chance < 0.22:
        return False, "failed", max(1, after)
    if chance < 0.32:
        return True, "left", max(1, after)
    return bool(rng.random() < 0.3), "own", 0


def soak(running: Engine, asks: list[Ask], traffic: Traffic) -> None:
    """Serve them in four quarters, with sixteen threads, and check all that needs no other run."""
    waiting = threading.Lock()
    memory = [memory_at_rest()]
    start = time.perf_counter()
    size = -(-len(asks) // QUARTERS)
    for begin in range(0, len(asks), size):
        left = iter(asks[begin : begin + size])

        def work(left: Iterator[Ask] = left) -> None:
            while True:
                with waiting:
                    ask = next(left, None)
                if ask is None:
                    return
                serve(running, ask)

        in_time([work] * NUM_THREADS)
        memory.append(memory_at_rest())
    seconds = time.perf_counter() - start
    print(
        f"{len(asks)} requests, {sum(len(ask.tokens) for ask in asks)} tokens in {seconds:.1f} s; "
        f"{dict(Counter(ask.end for ask in asks))}; bytes at rest: {memory}"
    )

    for ask in asks:
        assert_ended_well(ask)
    assert all(generation.done() for generation in traffic.generations)
    assert traffic.ends == Counter(range(len(asks)))
    assert max(memory[1:]) <= memory[0] + SLACK
    assert memory[QUARTERS] <= memory[QUARTERS // 2] + SLACK
    assert [request for request in traffic.requests if request() is not None] == []


@pytest.fixture
def close() -> Iterator[Callable[[Engine], Engine]]:
    """Closes an engine in the end; a stuck one is left alone."""
    opened: list[Engine] = []

    def later(running: Engine) -> Engine:
        opened.append(running)
        return running

    yield later
    for running in opened:
        closing = threading.Thread(target=running.close, daemon=True)
        closing.start()
        closing.join(10)


def test_the_random_pair_serves_hundreds_and_nothing_is_lost(
    pairs: dict[str, PairPaths],
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
    traffic: Traffic,
    close: Callable[[Engine], Engine],
) -> None:
    running = close(load(*pairs["12B"]))
    rows: list[Row] = []

    def write_alone() -> None:
        for number in range(NUM_TEXTS):
            prompt = rng.integers(0, VOCAB, rng.integers(1, PROMPT_TOKENS)).tolist()
            params = SamplingParams(
                max_tokens=MAX_TOKENS,
                temperature=number % 2,
                top_k=int(rng.choice([0, 8])),
                top_p=float(rng.choice([1, 0.9])),
                seed=number,
                num_draft_tokens=0,
                ignore_eos=True,
            )
            rows.append(Row(prompt, params, running.generate(prompt, params)[0].tokens))

    in_time([write_alone])
    monkeypatch.setattr(speculate, "draft", Forced(rng, rows, at_random(rng, rows, rate=0.8)))

    asks = []
    for _ in range(NUM_REQUESTS["12B"]):
        row = rows[rng.integers(NUM_TEXTS)]
        max_tokens = int(rng.integers(4, MAX_TOKENS + 1))
        drafts = (0, 1, 3, 5, "auto")[rng.integers(5)]
        params = replace(row.params, max_tokens=max_tokens, num_draft_tokens=drafts)
        text = row.tokens[:max_tokens]
        asks.append(Ask(row.prompt, params, *draw_end(rng, max_tokens), text))
    traffic.forget()
    soak(running, asks, traffic)
    for ask in asks:
        assert ask.text is not None
        assert ask.tokens == ask.text[: len(ask.tokens)], ask
        assert ask.tokens == ask.text or not ask.completed, ask
    # Streams that were left ended early, most of them.
    left = [ask for ask in asks if ask.end == "left"]
    seen = Counter(ask.pieces[-1].finish_reason for ask in asks if ask.pieces)
    reasons = Counter(
        one.result().finish_reason for one in traffic.generations if not one.exception()
    )
    assert reasons["cancelled"] - seen["cancelled"] > len(left) / 4


def test_the_demo_pair_serves_many_and_nothing_is_lost(
    rng: np.random.Generator, traffic: Traffic, close: Callable[[Engine], Engine]
) -> None:
    running = close(load("demo"))
    assert running.text is not None
    prompts = [running.text.chat(example.messages) for example in held_out(200)]
    prompts = [prompt for prompt in prompts if len(prompt) <= PROMPT_TOKENS]
    running.submit(prompts[0], SamplingParams(max_tokens=4)).result(SECONDS)

    asks = []
    for _ in range(NUM_REQUESTS["demo"]):
        max_tokens = int(rng.integers(4, MAX_TOKENS + 1))
        params = SamplingParams(
            max_tokens=max_tokens,
            temperature=int(rng.integers(2)),
            top_k=int(rng.choice([0, 64])),
            top_p=float(rng.choice([1, 0.95])),
            seed=int(rng.integers(2**32)),
            stop=["e"] if rng.random() < 0.1 else (),
            num_draft_tokens=(0, 1, 2, "auto")[rng.integers(4)],
            ignore_eos=bool(rng.random() < 0.5),
        )
        prompt = prompts[rng.integers(len(prompts))]
        asks.append(Ask(prompt, params, *draw_end(rng, max_tokens)))
    traffic.forget()
    soak(running, asks, traffic)
    completed = [ask for ask in asks if ask.completed]

    def compare() -> None:
        for number in rng.permutation(len(completed))[:NUM_COMPARED]:
            ask = completed[number]
            (alone,) = running.generate(ask.prompt, replace(ask.params, num_draft_tokens=0))
            assert ask.tokens == alone.tokens, ask
            assert answer(ask) == alone.text
            if ask.params.num_draft_tokens in (1, 2):  # then drafts are its own business, too
                (alone,) = running.generate(ask.prompt, ask.params)
                stats = ask.pieces[-1].stats
                assert stats is not None
                assert stats.accepted_at == alone.stats.accepted_at, ask

    in_time([compare])
