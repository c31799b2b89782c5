"""One turn of our engine: prompts go in side by side, and a window of their decoding is timed.

Doesn't know about other turns or other engines.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import mlx.core as mx

from mlx_gemma_mtp import Chunk, Engine, SamplingParams
from mlx_gemma_mtp.engine.results import Generation, Stats
from mlx_gemma_mtp.errors import MgmError

from .record import Window

SAME_ROUND = 1e-4  # s; a round gives several chunks if the kind of output changes in it
WAVES = 16  # prompts go in at most this many times until a window is full
FUTILE = 3  # and this many times if all texts end too early to be timed


class Turn(NamedTuple):
    """A window; the rest is known of our own engine alone.

    first_tokens: seconds until each row's first token. gaps: seconds between the tokens of a row, 0
    within a round. stats: of each row, from its prompt to its end.
    """

    window: Window
    first_tokens: Sequence[float] = ()
    gaps: Sequence[float] = ()
    stats: Sequence[Stats] = ()
    peak_bytes: int = 0

    def plus(self, other: Turn) -> Turn:
        """Both turns as one."""
        return Turn(
            self.window + other.window,
            [*self.first_tokens, *other.first_tokens],
            [*self.gaps, *other.gaps],
            [*self.stats, *other.stats],
            max(self.peak_bytes, other.peak_bytes),
        )


def play_turn(
    engine: Engine,
    wave: Callable[[int], list[list[int]]],
    params: SamplingParams,
    *,
    tokens: int,
    warm_up: int,
) -> Turn:
    """Decode until the window holds `tokens` tokens of every row on average, or WAVES are over.

    wave: the prompts of a number; the next ones follow if a text ends early. warm_up: rounds before
    the window, once all rows decode. Raises what ends a request, and MgmError if all texts are too
    short to be timed.
    """
    mx.reset_peak_memory()
    turn, wanted = Turn(Window(0, 0, 0.0, 0, 0.0)), tokens * len(wave(0))
    for number in range(WAVES):
        missing = wanted - turn.window.tokens
        turn = turn.plus(_play_wave(engine, wave(number), params, missing, warm_up))
        full = turn.window.tokens >= wanted
        if full or (number == FUTILE and not turn.window.rounds):
            break
    if not turn.window.rounds:
        raise MgmError("these completions end too early to be timed: choose other --tasks")
    return turn._replace(peak_bytes=mx.get_peak_memory())


def _play_wave(
    engine: Engine, prompts: list[list[int]], params: SamplingParams, tokens: int, warm_up: int
) -> Turn:
    notes = Notes(len(prompts), tokens, warm_up)
    generations: list[Generation] = []
    start = time.perf_counter()
    try:
        for row, prompt in enumerate(prompts):
            own = replace(params, seed=row)
            generations.append(engine.submit(prompt, own, partial(notes.take, row)))
            generations[-1].add_done_callback(lambda _: notes.over.set())
        notes.over.wait()
    finally:
        for generation in generations:
            generation.cancel()
        done = [generation.result() for generation in generations]  # raises what failed
    return notes.turn(start, [completion.stats for completion in done], list(map(len, prompts)))


class Notes:
    """When each row's tokens arrived, noted on the engine's thread.

    Once all rows decode, a round starts with the tokens of row 0. The round in which a text ends is
    not timed, nor is anything after it: fewer rows play there.
    """

    def __init__(
        self,
        num_rows: int,
        tokens: int,
        warm_up: int,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.over = threading.Event()
        self._wanted, self._first, self._clock = tokens, warm_up, clock
        self._arrivals: list[list[tuple[float, int]]] = [[] for _ in range(num_rows)]
        self._last = (-1, 0.0)  # row and time of the last chunk
        self._times: list[float] = []  # of every round: when it came
        self._tokens: list[int] = []  # and how many tokens it brought

    def take(self, row: int, chunk: Chunk) -> None:
        """One row's tokens of one round."""
        if self.over.is_set():
            return
        if chunk.finish_reason:
            self._stop(incomplete=row > 0)
            return
        now = self._clock()
        starts = row == 0 and not (self._last[0] == 0 and now - self._last[1] < SAME_ROUND)
        self._last = (row, now)
        if all(arrivals for other, arrivals in enumerate(self._arrivals) if other != row):
            if starts or not self._times:
                self._times.append(now)
                self._tokens.append(0)
                if sum(self._tokens[self._first + 1 : -1]) >= self._wanted:
                    self._stop(incomplete=True)
                    return
            self._tokens[-1] += len(chunk.tokens)
            now = self._times[-1]  # a round is one moment for all rows
        self._arrivals[row].append((now, len(chunk.tokens)))

    def _stop(self, *, incomplete: bool) -> None:
        if incomplete:  # not all rows of the last round have come
            del self._times[-1:], self._tokens[-1:]
        self.over.set()

    def turn(self, start: float, stats: list[Stats], prompt_tokens: list[int]) -> Turn:
        """The rounds after the warm-up."""
        times = self._times[self._first :] or [0.0]
        gaps = [
            gap
            for arrivals in self._arrivals
            for (before, _), (now, count) in pairwise(arrivals)
            if count and times[0] <= before and now <= times[-1]
            for gap in (now - before, *[0.0] * (count - 1))
        ]
        begun = [row for row, arrivals in enumerate(self._arrivals) if arrivals]
        firsts = [self._arrivals[row][0][0] - start for row in begun]
        window = Window(
            sum(self._tokens[self._first + 1 :]),
            len(times) - 1,
            times[-1] - times[0],
            sum(prompt_tokens[row] for row in begun),
            max(firsts, default=0.0),
        )
        return Turn(window, firsts, gaps, stats)
