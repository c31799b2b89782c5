"""One turn of an engine: prompts go in side by side, and a window of their decoding is timed.

Every engine is an iterator of rounds, each with the new tokens of every row, so that all are timed
in the same way.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Generator
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import mlx.core as mx

from mlx_gemma_mtp import Chunk, Engine, SamplingParams
from mlx_gemma_mtp.engine.generation import Generation
from mlx_gemma_mtp.engine.results import Stats
from mlx_gemma_mtp.errors import MgmError

from .record import Window

WAVES = 16  # prompts go in at most this many times until a window is full
FUTILE = 3  # and this many times if all rows end too early to be timed

# A row whose prompt isn't done has no tokens yet. The first of a row is the one after its prompt.
Rounds = Generator[list[list[int]], None, None]
Wave = Callable[[int], list[list[int]]]  # the prompts of a number


class Turn(NamedTuple):
    """first_tokens: seconds until each row's first token. gaps: seconds between the tokens of a
    row, 0 within a round. stats: of each row, from its prompt to its end; ours alone."""

    window: Window
    first_tokens: list[float]
    gaps: list[float]
    stats: list[Stats]
    peak_bytes: int

    def plus(self, other: Turn) -> Turn:
        """Both turns as one."""
        return Turn(
            self.window + other.window,
            self.first_tokens + other.first_tokens,
            self.gaps + other.gaps,
            self.stats + other.stats,
            max(self.peak_bytes, other.peak_bytes),
        )


def timed(
    rounds: Rounds,
    prompts: list[list[int]],
    *,
    tokens: int,
    warm_up: int,
    clock: Callable[[], float] = time.perf_counter,
) -> Turn:
    """Play rounds until the window holds this many tokens, or a row ends.

    rounds: not started yet. warm_up: rounds before the window, once all rows decode.
    """
    mx.reset_peak_memory()
    first_tokens: dict[int, float] = {}
    times: list[float] = []  # of each round once all rows decode
    counts: list[list[int]] = []  # tokens of each row in it
    start = clock()
    for new in rounds:
        now = clock()
        for row, of_row in enumerate(new):
            if of_row:
                first_tokens.setdefault(row, now - start)
        if len(first_tokens) == len(prompts):
            times.append(now)
            counts.append([len(of_row) for of_row in new])
            if sum(map(sum, counts[warm_up + 1 :])) >= tokens:
                break
    rounds.close()
    times, counts = times[warm_up:] or [0.0], counts[warm_up + 1 :]
    gaps: list[float] = []
    for (before, after), of_rows in zip(pairwise(times), counts, strict=True):
        for count in filter(None, of_rows):
            gaps += [after - before, *[0.0] * (count - 1)]
    window = Window(
        tokens=sum(map(sum, counts)),
        rounds=len(counts),
        seconds=times[-1] - times[0],
        prefill_tokens=sum(len(prompts[row]) for row in first_tokens),
        prefill_seconds=max(first_tokens.values(), default=0.0),
    )
    return Turn(window, list(first_tokens.values()), gaps, [], mx.get_peak_memory())


def play_turn(
    engine: Engine, wave: Wave, params: SamplingParams, *, tokens: int, warm_up: int
) -> Turn:
    """A turn of ours with `tokens` tokens of every row on average, in at most WAVES waves.

    The next wave follows if a row ends early. Raises what ends a request, and MgmError if all
    completions are too short to be timed.
    """
    turn, wanted = Turn(Window(0, 0, 0.0, 0, 0.0), [], [], [], 0), tokens * len(wave(0))
    for number in range(WAVES):
        prompts, stats, missing = wave(number), list[Stats](), wanted - turn.window.tokens
        at = [time.perf_counter()]
        rounds = our_rounds(engine, prompts, params, stats, at)
        clock = partial(at.__getitem__, 0)
        turn = turn.plus(timed(rounds, prompts, tokens=missing, warm_up=warm_up, clock=clock))
        turn.stats.extend(stats)
        if turn.window.tokens >= wanted or (number == FUTILE and not turn.window.rounds):
            break
    if not turn.window.rounds:
        raise MgmError("these completions end too early to be timed: choose other --tasks")
    return turn


def our_rounds(
    engine: Engine,
    prompts: list[list[int]],
    params: SamplingParams,
    stats: list[Stats],
    at: list[float],
) -> Rounds:
    """Rounds of our engine until a row ends; the statistics of the rows are added to `stats`.

    at: its item becomes the time when the round yielded was ready, on the engine's thread: this one
    may wake up late, and then gets several rounds at once.
    """
    arrived: queue.SimpleQueue[tuple[float, int, Chunk | None]] = queue.SimpleQueue()
    generations: list[Generation] = []
    new: list[list[int]] = [[] for _ in prompts]

    def submit(row: int) -> Generation:
        own = replace(params, seed=row)

        def on_chunk(chunk: Chunk | None) -> None:
            arrived.put((time.perf_counter(), row, chunk))

        return engine.submit(prompts[row], own, on_chunk)

    try:
        for row in range(len(prompts)):
            generations.append(submit(row))
            generations[-1].add_done_callback(lambda _: arrived.put((0.0, 0, None)))
        while True:
            ready, row, chunk = arrived.get()
            if chunk is None or chunk.finish_reason:  # fewer rows play its round
                return
            if new[row]:  # the rows of a round come in order
                yield new
                new = [[] for _ in prompts]
            new[row], at[0] = chunk.tokens, ready
    finally:
        for generation in generations:
            generation.cancel()
        stats += [generation.result().stats for generation in generations]  # raises what failed
