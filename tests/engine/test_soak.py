"""Hundreds of requests from sixteen threads: none waits forever, loses a token or leaves a trace.

Most go to a random pair, 12B in small, whose drafts are forced right and wrong so that all outputs
are known beforehand; the rest to the demo pair, whose outputs are compared in a sample. Settings,
moments and ends are drawn from the seed of the run; how the requests meet depends on the machine.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import numpy as np
import pytest

from helpers.checkpoints import VOCAB, PairPaths
from helpers.forced import Forced, Row, at_random
from helpers.traffic import SECONDS, Watched, in_time, memory_at_rest
from mlx_gemma_mtp import Chunk, Completion, Engine, SamplingParams, load
from mlx_gemma_mtp.decode.round import round_player
from mlx_gemma_mtp.demo.recipe.tasks import held_out
from mlx_gemma_mtp.engine.pair import open_pair
from mlx_gemma_mtp.errors import GenerationError, MgmError

pytestmark = pytest.mark.slow

NUM_THREADS = 16
NUM_REQUESTS = {"12B": 400, "demo": 100}
NUM_TEXTS = 32  # of the random pair
NUM_COMPARED = 30  # of the demo's
MAX_TOKENS = 24
PROMPT_TOKENS = 40  # at most; so each prompt is read in one piece, whatever the pace
SLACK = 10_000  # bytes
QUARTERS = 4

End = Literal["own", "cancelled", "left", "failed"]


@dataclass
class Ask:
    """A request, how it is made and ended, and its result."""

    prompt: list[int]
    params: SamplingParams
    streamed: bool
    end: End
    after: int  # tokens, after which it is ended
    text: list[int] | None = None  # its whole output, if known
    pieces: list[Chunk] = field(default_factory=list)
    result: Completion | MgmError | None = None

    @property
    def tokens(self) -> list[int]:
        return [token for chunk in self.pieces for token in chunk.tokens]

    @property
    def completed(self) -> bool:
        """True if it ended by itself."""
        return bool(self.pieces) and self.pieces[-1].finish_reason in ("stop", "length")


class Broken(Exception):
    """What a callback raises here."""


# One request


def serve(running: Engine, ask: Ask) -> None:
    """Make a request, end it in its way, and keep the result."""
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
    """It ended once, in its way, with nothing lost, doubled or miscounted."""
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
    """Whether it is streamed, how it ends, and after how many tokens."""
    after = int(rng.integers(0, max_tokens))
    chance = rng.random()
    if chance < 0.2:
        return False, "cancelled", after
    if chance < 0.22:
        return False, "failed", max(1, after)
    if chance < 0.32:
        return True, "left", max(1, after)
    return bool(rng.random() < 0.3), "own", 0


def soak(running: Watched, asks: list[Ask]) -> None:
    """Serve them in four quarters, with sixteen threads, and check all that needs no other run."""
    waiting, traffic = threading.Lock(), running.traffic
    traffic.forget()
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
def close() -> Iterator[Callable[[Watched], Watched]]:
    """Closes an engine at the end, unless it is stuck."""
    opened: list[Watched] = []

    def later(running: Watched) -> Watched:
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
    close: Callable[[Watched], Watched],
) -> None:
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
            rows.append(Row(prompt, params, alone.generate(prompt, params)[0].tokens))

    with load(*pairs["12B"]) as alone:
        in_time([write_alone])
    forced = Forced(rng, rows, at_random(rng, rows, rate=0.8))
    player = partial(round_player, draft=forced)
    running = close(Watched(open_pair(*pairs["12B"]), player=player))
    running.generate(rows[0].prompt, rows[0].params)

    asks = []
    for _ in range(NUM_REQUESTS["12B"]):
        row = rows[rng.integers(NUM_TEXTS)]
        max_tokens = int(rng.integers(4, MAX_TOKENS + 1))
        drafts = (0, 1, 3, 5, "auto")[rng.integers(5)]
        params = replace(row.params, max_tokens=max_tokens, num_draft_tokens=drafts)
        text = row.tokens[:max_tokens]
        asks.append(Ask(row.prompt, params, *draw_end(rng, max_tokens), text))
    soak(running, asks)
    for ask in asks:
        assert ask.text is not None
        assert ask.tokens == ask.text[: len(ask.tokens)], ask
        assert ask.tokens == ask.text or not ask.completed, ask
    # Streams that were left ended early, most of them.
    left = [ask for ask in asks if ask.end == "left"]
    seen = Counter(ask.pieces[-1].finish_reason for ask in asks if ask.pieces)
    reasons = Counter(
        one.result().finish_reason for one in running.traffic.generations if not one.exception()
    )
    assert reasons["cancelled"] - seen["cancelled"] > len(left) / 4


def test_the_demo_pair_serves_many_and_nothing_is_lost(
    rng: np.random.Generator, close: Callable[[Watched], Watched]
) -> None:
    running = close(Watched(open_pair("demo")))
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
    soak(running, asks)
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
