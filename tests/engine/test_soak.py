"""Hundreds of requests from sixteen threads: none waits forever, loses a token or leaves a trace.

Most go to a random pair whose drafts are forced right and wrong, so all outputs are known; the rest
to the demo pair. The seed gives settings, moments and ends; how requests meet is the machine's.
"""

import threading
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import numpy as np
import pytest

from helpers.checkpoints import PairPaths
from helpers.forced import Forced, at_random
from helpers.schedule import write_alone
from helpers.traffic import (
    SECONDS,
    Watched,
    assert_counted,
    assert_told_once,
    in_time,
    memory_at_rest,
    text_of,
    tokens_of,
)
from mlx_gemma_mtp import Chunk, Completion, Engine, SamplingParams
from mlx_gemma_mtp.decode.player import round_player
from mlx_gemma_mtp.demo.recipe.tasks import held_out
from mlx_gemma_mtp.engine.pair import open_pair
from mlx_gemma_mtp.errors import GenerationError
from mlx_gemma_mtp.memory import Limits

pytestmark = pytest.mark.slow

NUM_THREADS = 16
NUM_REQUESTS = {"12B": 250, "demo": 60}
NUM_TEXTS = 32  # of the random pair
NUM_COMPARED = 20  # of the demo's
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
    result: Completion | BaseException | None = None

    @property
    def tokens(self) -> list[int]:
        return tokens_of(self.pieces)

    @property
    def completed(self) -> bool:
        """True if it ended by itself."""
        return bool(self.pieces) and self.pieces[-1].finish_reason in ("stop", "length")


def submit(running: Engine, ask: Ask) -> None:
    """Make a request, end it in its way, and keep the result."""
    due = threading.Event()

    def note(chunk: Chunk) -> None:
        ask.pieces.append(chunk)
        if len(ask.tokens) >= ask.after:
            due.set()
            if ask.end == "failed":
                raise EOFError

    going = running.submit(ask.prompt, ask.params, note)
    going.add_done_callback(lambda _: due.set())
    if ask.end == "cancelled":
        if ask.after:  # else while it waits
            due.wait()
        going.cancel()
    ask.result = going.exception() or going.result()


def stream(running: Engine, ask: Ask) -> None:
    pieces = running.stream(ask.prompt, ask.params)
    for chunk in pieces:
        ask.pieces.append(chunk)
        if ask.end == "left" and len(ask.tokens) >= ask.after:
            break
    pieces.close()  # type: ignore[attr-defined]


def assert_ended_well(ask: Ask) -> None:
    """It ended once, in its way, with nothing lost, doubled or miscounted."""
    finals = [chunk for chunk in ask.pieces if chunk.finish_reason]
    assert finals in ([], ask.pieces[-1:]), ask
    if ask.end == "failed":
        if len(ask.tokens) < ask.after:  # an end token came first
            assert isinstance(ask.result, Completion)
        else:
            assert isinstance(ask.result, GenerationError), ask
            assert isinstance(ask.result.__cause__, EOFError)
            assert len(ask.tokens) - len(ask.pieces[-1].tokens) < ask.after
            return
    elif ask.end == "left" and not finals:
        assert len(ask.tokens) >= ask.after
        return
    assert finals, ask
    if not ask.streamed:
        assert isinstance(ask.result, Completion), ask
        assert_told_once(ask.pieces, ask.result)
    reason = finals[0].finish_reason
    assert reason in ("stop", "length") or ask.end == "cancelled"
    assert len(ask.tokens) == ask.params.max_tokens or reason != "length"
    drafts = ask.params.num_draft_tokens
    stats = assert_counted(ask.pieces, ask.prompt, drafts)
    if isinstance(drafts, int):
        assert stats.drafted_at == [stats.rounds] * (drafts if stats.rounds else 0)
    assert ask.tokens or stats.first_token_seconds == stats.decode_seconds == 0
    for seconds in (stats.queue_seconds, stats.first_token_seconds, stats.decode_seconds):
        assert 0 <= seconds < SECONDS


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
    waiting = threading.Lock()
    running.forget()
    memory = [memory_at_rest()]
    start = time.perf_counter()
    size = -(-len(asks) // QUARTERS)
    for begin in range(0, len(asks), size):
        left = asks[begin : begin + size]

        def work(left: list[Ask] = left) -> None:
            while True:
                with waiting:
                    if not left:
                        return
                    ask = left.pop()
                (stream if ask.streamed else submit)(running, ask)

        in_time([work] * NUM_THREADS, lambda: sum(len(ask.pieces) for ask in asks))
        memory.append(memory_at_rest())
    seconds = time.perf_counter() - start
    print(
        f"{len(asks)} requests, {sum(len(ask.tokens) for ask in asks)} tokens in {seconds:.1f} s; "
        f"{dict(Counter(ask.end for ask in asks))}; bytes at rest: {memory}"
    )

    for ask in asks:
        assert_ended_well(ask)
    assert all(generation.done() for generation in running.generations)
    assert running.ends == Counter(range(len(asks)))
    assert max(memory[1:]) <= memory[0] + SLACK
    assert memory[QUARTERS] <= memory[QUARTERS // 2] + SLACK
    assert [request for request in running.requests if request() is not None] == []


def test_the_random_pair_serves_hundreds_and_nothing_is_lost(
    pairs: dict[str, PairPaths], rng: np.random.Generator
) -> None:
    sizes, lengths = rng.integers(1, PROMPT_TOKENS, NUM_TEXTS), [MAX_TOKENS] * NUM_TEXTS
    rows = write_alone(pairs["12B"], rng, sizes, lengths, Limits())
    forced = Forced(rng, rows, at_random(rng, rows, rate=0.8))
    player = partial(round_player, draft=forced)
    asks = []
    for _ in range(NUM_REQUESTS["12B"]):
        row = rows[rng.integers(NUM_TEXTS)]
        max_tokens = int(rng.integers(4, MAX_TOKENS + 1))
        drafts = (0, 1, 3, 5, "auto")[rng.integers(5)]
        params = replace(row.params, max_tokens=max_tokens, num_draft_tokens=drafts)
        text = row.tokens[:max_tokens]
        asks.append(Ask(row.prompt, params, *draw_end(rng, max_tokens), text))
    with Watched(open_pair(*pairs["12B"]), player=player) as running:
        running.generate(rows[0].prompt, rows[0].params)
        soak(running, asks)
        reasons = Counter(
            one.result().finish_reason for one in running.generations if not one.exception()
        )
    for ask in asks:
        assert ask.text is not None
        assert ask.tokens == ask.text[: len(ask.tokens)], ask
        assert ask.tokens == ask.text or not ask.completed, ask
    # Streams that were left ended early, most of them.
    seen = Counter(ask.pieces[-1].finish_reason for ask in asks if ask.pieces)
    left = Counter(ask.end for ask in asks)["left"]
    assert reasons["cancelled"] - seen["cancelled"] > left / 4


def test_the_demo_pair_serves_many_and_nothing_is_lost(rng: np.random.Generator) -> None:
    pair = open_pair("demo")
    assert pair.text is not None
    prompts = [pair.text.chat(example.messages) for example in held_out(200)]
    prompts = [prompt for prompt in prompts if len(prompt) <= PROMPT_TOKENS]
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
    compared = []

    def compare() -> None:
        completed = [ask for ask in asks if ask.completed]
        for number in rng.permutation(len(completed))[:NUM_COMPARED]:
            ask = completed[number]
            (alone,) = running.generate(ask.prompt, replace(ask.params, num_draft_tokens=0))
            assert ask.tokens == alone.tokens, ask
            assert text_of(ask.pieces) == alone.text
            if ask.params.num_draft_tokens in (1, 2):
                (alone,) = running.generate(ask.prompt, ask.params)
                stats = ask.pieces[-1].stats
                assert stats is not None
                # The drafter's drafts depend on this row alone. Whether copies replace them depends
                # on how often those of all rows were accepted.
                if not (stats.copies_drafted or alone.stats.copies_drafted):
                    assert stats.accepted_at == alone.stats.accepted_at, ask
            compared.append(ask)

    with Watched(pair) as running:
        running.generate(prompts[0], SamplingParams(max_tokens=4))
        soak(running, asks)
        in_time([compare], lambda: len(compared))
