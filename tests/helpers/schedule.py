"""Outputs written alone, a random schedule of their requests, and the clock that plays it.

Moments are counted in rounds, which the clock's own player counts.
"""

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, get_args

import mlx.core as mx
import numpy as np

from helpers.checkpoints import VOCAB, PairPaths
from helpers.fake_target import SECONDS
from helpers.forced import Row, is_decisive
from helpers.spelled import spelled
from helpers.traffic import tokens_of
from mlx_gemma_mtp import Chunk, Completion, Engine, Generation, SamplingParams
from mlx_gemma_mtp.decode.player import Draft, RoundPlayer, round_player
from mlx_gemma_mtp.decode.round import Round
from mlx_gemma_mtp.engine.pair import open_pair
from mlx_gemma_mtp.engine.worker import mlx_worker
from mlx_gemma_mtp.memory import Limits
from mlx_gemma_mtp.model.cache import KVCache
from mlx_gemma_mtp.model.target import Target

CHUNK = 24  # tokens; prompts up to 90 come in up to four, and wrap every ring

SAMPLING = (
    SamplingParams(temperature=0, top_k=0, top_p=1),
    SamplingParams(temperature=1, top_k=0, top_p=1),
    SamplingParams(temperature=0, top_k=5, top_p=0.5),
    SamplingParams(temperature=1, top_k=64, top_p=0.95),
    SamplingParams(temperature=1, top_k=0, top_p=0.8),
    SamplingParams(temperature=1, top_k=7, top_p=1),
)

End = Literal["waiting", "prefill", "rounds", "talking", "failing"]


@dataclass(frozen=True)
class Ask:
    """A request, when it comes, and when it is cancelled or its callback fails, if ever."""

    row: Row
    params: SamplingParams
    start: int = 0  # round
    end: End | None = None
    after: int = 0  # chunks of the prompt, rounds since the start, or tokens of output
    read: threading.Event = field(default_factory=threading.Event)  # that many chunks
    cancelled: threading.Event = field(default_factory=threading.Event)


class Clock:
    """Time in rounds. When no request is served, it moves on to the next moment awaited."""

    def __init__(self, draft: Draft, moments: list[int]) -> None:
        self._draft = draft
        self.sizes: Counter[int] = Counter()  # rounds by number of rows
        self.talking = 0  # requests that have some output and have not ended
        self._moves: list[tuple[int, mx.array, mx.array, mx.array]] = []
        self.now = 0
        self._ahead = sorted(moments)
        self._served = 0
        self._changed = threading.Condition()

    def start(self, moment: int) -> None:
        with self._changed:
            self._ahead.remove(moment)
            self._served += 1

    def end(self, _: Future[Completion]) -> None:
        with self._changed:
            self._served -= 1
            if self._served == 0 and self._ahead:
                self.now = max(self.now, self._ahead[0])
            self._changed.notify_all()

    def wait_until(self, moment: int, generation: Generation | None = None) -> None:
        """Wait for a moment, or the end of a request."""

        def come() -> bool:
            return self.now >= moment or (generation is not None and generation.done())

        with self._changed:
            assert self._changed.wait_for(come, SECONDS), f"round {moment} never came"

    def player(self, *models: Any) -> RoundPlayer:
        """Stands in for `round_player`: its rounds are counted."""
        player = round_player(*models, draft=self._draft)

        def verify(kv_cache: KVCache, *others: Any) -> Round:
            before = kv_cache.offset
            played = player.verify(kv_cache, *others)
            most = others[2].max_accepted
            self._moves.append((self.talking, most, before, kv_cache.offset))
            with self._changed:
                self.now += 1
                self.sizes[played.accepted.shape[0]] += 1
                self._changed.notify_all()
            return played

        return player._replace(verify=verify)

    def assert_free_rows_stayed(self) -> None:
        """In every round as many rows moved as requests were talking, and no others."""

        def read() -> list[tuple[int, list[int], list[int]]]:
            return [
                (talking, most.tolist(), (after - before).tolist())
                for talking, most, before, after in self._moves
            ]

        for talking, max_accepted, moved in mlx_worker().run(read):
            assert talking == sum(most >= 0 for most in max_accepted)
            for most, tokens in zip(max_accepted, moved, strict=True):
                assert tokens == 0 if most < 0 else 1 <= tokens <= most + 1


@dataclass
class Pieces:
    """The output of a request, piece by piece. `then` is called after each piece."""

    clock: Clock
    then: Callable[[], object] = lambda: None
    pieces: list[Chunk] = field(default_factory=list)
    done: Completion | BaseException | None = None
    talking: bool = False
    cancelled_at: float = np.inf  # rounds
    ended_at: int = 0

    def __call__(self, chunk: Chunk) -> None:
        self.pieces.append(chunk)
        continues = chunk.finish_reason is None
        try:
            self.then()
        except ValueError:
            continues = False
            raise
        finally:
            self.clock.talking += continues - self.talking
            self.talking = continues
            self.ended_at = self.clock.now

    @property
    def tokens(self) -> list[int]:
        return tokens_of(self.pieces)


class Reading:
    """Stands in for a target: waits in prompts that must be cancelled while they are read."""

    def __init__(self, target: Target, asks: list[Ask]) -> None:
        self._target = target
        self._at: dict[tuple[int, ...], Ask] = {}  # the last chunks read
        for one in asks:
            if one.end == "prefill":
                end = CHUNK * one.after
                self._at[tuple(one.row.prompt[end - CHUNK : end])] = one

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self).get("_target"), name)  # none yet in a new copy

    def __call__(self, *arguments: Any) -> mx.array:
        return self._target(*arguments)

    def read(self, tokens: mx.array, cache: KVCache, *others: Any) -> mx.array:
        hidden = self._target.read(tokens, cache, *others)
        if one := self._at.get(tuple(tokens[0].tolist())):
            one.read.set()
            assert one.cancelled.wait(SECONDS)
        return hidden


def write_alone(
    pair: PairPaths,
    rng: np.random.Generator,
    sizes: Sequence[int],
    lengths: Sequence[int],
    limits: Limits,
) -> list[Row]:
    """Outputs of random prompts without a drafter, one at a time, except those with a near tie."""
    opened = open_pair(pair.target, None)
    suppressed = opened.default_tokens("suppress_tokens")
    rows = []
    with Engine(opened, max_batch=1, limits=limits) as alone:
        for number, (size, length) in enumerate(zip(sizes, lengths, strict=True)):
            for _ in range(10):
                prompt = rng.integers(0, VOCAB, size).tolist()
                params = replace(
                    SAMPLING[number % len(SAMPLING)],
                    max_tokens=int(length),
                    seed=int(rng.integers(2**32)),
                    num_draft_tokens=0,
                    ignore_eos=True,
                )
                row = Row(prompt, params, alone.submit(prompt, params).result(SECONDS).tokens)
                if mlx_worker().run(partial(is_decisive, opened.target, row, suppressed)):
                    rows.append(row)
                    break
    assert len(rows) == len(sizes), "plain texts differ from one pass, or only tie"
    return rows


def draw_settings(rng: np.random.Generator, row: Row) -> SamplingParams:
    """The row's own, with another number of drafts and often an earlier end."""
    length = len(row.tokens)
    stop = []
    if length > 2 and rng.random() < 0.4:  # two digits of one token and one of the next
        at = 3 * int(rng.integers(1, length - 1))
        stop = [spelled(row.tokens)[at + 1 : at + 4]]
    return replace(
        row.params,
        max_tokens=int(rng.integers(1, length + 1)) if rng.random() < 0.3 else length,
        num_draft_tokens=(0, 1, 3, 5, "auto")[rng.integers(5)],
        ignore_eos=bool(rng.random() < 0.6),
        stop=stop,
    )


def draw_schedule(rng: np.random.Generator, rows: list[Row], max_batch: int) -> list[Ask]:
    """Each row once, in random order, somewhat faster than they can be served.

    The longest comes first and ends by itself: the others meet it.
    """
    longest = max(rows, key=lambda row: len(row.tokens))
    asks, start = [Ask(longest, longest.params)], 0
    for number in rng.permutation(len(rows)):
        row = rows[number]
        if row is longest:
            continue
        start += int(rng.integers(0, 2 + 12 // max_batch))
        end = get_args(End)[rng.integers(5)] if rng.random() < 0.4 else None
        num_chunks, num_tokens = -(-len(row.prompt) // CHUNK), len(row.tokens)
        if end == "prefill" and num_chunks == 1:
            end = "rounds"
        most = {"prefill": num_chunks, "rounds": 40}.get(end or "", num_tokens + 1)
        asks.append(Ask(row, draw_settings(rng, row), start, end, int(rng.integers(1, most))))
    return asks


def ask(running: Engine, clock: Clock, one: Ask) -> Pieces:
    """Submit a request at its moment, end it at its other one, and wait for that."""
    clock.wait_until(one.start)
    clock.start(one.start)
    told = Pieces(clock)
    going: list[Generation] = []  # a piece may come before `submit` is back

    def end_in_time() -> None:
        if len(told.tokens) >= one.after and one.end == "failing":
            raise ValueError("broken")
        if len(told.tokens) >= one.after and going:
            cancel()

    def cancel() -> None:
        going[0].cancel()
        told.cancelled_at = min(told.cancelled_at, clock.now)

    if one.end in ("talking", "failing"):
        told.then = end_in_time
    going.append(running.submit(one.row.prompt, one.params, told))
    going[0].add_done_callback(clock.end)
    if one.end == "prefill":
        assert one.read.wait(SECONDS)
        cancel()
        one.cancelled.set()
    if one.end == "rounds":
        clock.wait_until(one.start + one.after, going[0])
    if one.end in ("waiting", "rounds"):
        cancel()
    told.done = going[0].exception(SECONDS) or going[0].result()
    return told
