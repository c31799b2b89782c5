"""One turn of an engine: prompts go in side by side, and a window of their decoding is timed.

Knows nothing of other turns, of other engines or of what is printed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from time import perf_counter
from typing import NamedTuple

import mlx.core as mx

from mlx_gemma_mtp import Chunk, Engine, SamplingParams
from mlx_gemma_mtp.engine.results import Generation, Stats
from mlx_gemma_mtp.errors import MgmError

from .window import Window
from .workload import Row

SAME_ROUND = 1e-4  # s; a round comes in several chunks where it goes from thought to answer, say
WAVES = 16  # times that prompts go in, at most, until a window is full,
FUTILE = 3  # and after which a window is given up that holds nothing


class Sample(NamedTuple):
    """What a turn showed: its window, and what only our own engine tells.

    first_tokens: seconds that each row waited for its first token. gaps: seconds that each token
    of the window came after the one before it in its row, 0 within a burst. stats: of each row,
    from its prompt to its end.
    """

    window: Window
    first_tokens: Sequence[float] = ()
    gaps: Sequence[float] = ()
    stats: Sequence[Stats] = ()
    peak_bytes: int = 0

    def plus(self, other: Sample) -> Sample:
        """Both turns as one."""
        return Sample(
            self.window.plus(other.window),
            [*self.first_tokens, *other.first_tokens],
            [*self.gaps, *other.gaps],
            [*self.stats, *other.stats],
            max(self.peak_bytes, other.peak_bytes),
        )


def decode(
    engine: Engine,
    wave: Callable[[int], list[Row]],
    params: SamplingParams,
    *,
    tokens: int,
    warm_up: int,
) -> Sample:
    """Decode until the window holds `tokens` tokens of every row on average, or all waves are over.

    wave: the prompts that go in side by side; where a text ends too early, the next wave follows.
    warm_up: rounds before the window, once all rows decode. Seeds are the rows' numbers. Raises
    what ends a request, and MgmError where texts are too short to be timed.
    """
    mx.reset_peak_memory()
    sample, missing = None, tokens * len(wave(0))
    for number in range(WAVES):
        prompts = [row.ids for row in wave(number)]
        played = _wave(engine, prompts, params, missing, warm_up)
        sample = played if sample is None else sample.plus(played)
        missing -= played.window.tokens
        if missing <= 0 or (number == FUTILE and not sample.window.rounds):
            break
    assert sample is not None
    if not sample.window.rounds:
        raise MgmError("these texts end before there is anything to time: take other --tasks")
    return sample._replace(peak_bytes=mx.get_peak_memory())


def _wave(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    params: SamplingParams,
    tokens: int,
    warm_up: int,
) -> Sample:
    notes = _Notes(len(prompts), tokens, warm_up)
    generations: list[Generation] = []
    begun = perf_counter()
    try:
        for row, prompt in enumerate(prompts):
            own = replace(params, seed=row)
            generation = engine.submit(list(prompt), own, partial(notes.take, row))
            generation.add_done_callback(lambda _: notes.over.set())
            generations.append(generation)
        notes.over.wait()
    finally:
        for generation in generations:
            generation.cancel()
        done = [generation.result() for generation in generations]  # raises what failed
    return notes.sample(begun, [completion.stats for completion in done], prompts)


class _Notes:
    """Notes each row's tokens as they come, on the engine's thread.

    Once every row decodes, a round begins with the tokens of row 0. The one in which a text ends,
    and what comes after it, is not timed: it plays fewer rows.
    """

    def __init__(self, num_rows: int, tokens: int, warm_up: int) -> None:
        self.over = threading.Event()
        self._enough = tokens
        self._first = warm_up
        self._arrivals: list[list[tuple[float, int]]] = [[] for _ in range(num_rows)]
        self._waiting = set(range(num_rows))
        self._last = (-1, 0.0)  # the row of the last chunk, and when it came
        self._times: list[float] = []  # of every round: when it came,
        self._tokens: list[int] = []  # and what it brought

    def take(self, row: int, chunk: Chunk) -> None:
        """One row's tokens of one round."""
        if self.over.is_set():
            return
        if chunk.finish_reason:
            if row > 0:
                self._drop_round()
            self.over.set()
            return
        now = perf_counter()
        begins = row == 0 and not (self._last[0] == 0 and now - self._last[1] < SAME_ROUND)
        self._last = (row, now)
        self._waiting.discard(row)
        if not self._waiting:
            if begins or not self._times:
                self._times.append(now)
                self._tokens.append(0)
                if sum(self._tokens[self._first + 1 : -1]) >= self._enough:
                    self._drop_round()
                    self.over.set()
                    return
            self._tokens[-1] += len(chunk.tokens)
            now = self._times[-1]  # a round is one moment for all rows
        self._arrivals[row].append((now, len(chunk.tokens)))

    def _drop_round(self) -> None:
        """The last one is not complete."""
        del self._times[-1:], self._tokens[-1:]

    def sample(self, begun: float, stats: list[Stats], prompts: Sequence[Sequence[int]]) -> Sample:
        """What the window holds: the rounds after those of the warm-up."""
        times = self._times[self._first :] or [0.0]
        gaps = [
            gap
            for arrivals in self._arrivals
            for (before, _), (now, count) in pairwise(arrivals)
            if count and times[0] <= before and now <= times[-1]
            for gap in (now - before, *[0.0] * (count - 1))
        ]
        firsts = [arrivals[0][0] - begun for arrivals in self._arrivals if arrivals]
        window = Window(
            sum(self._tokens[self._first + 1 :]),
            len(times) - 1,
            times[-1] - times[0],
            sum(len(prompts[row]) for row, arrivals in enumerate(self._arrivals) if arrivals),
            max(firsts, default=0.0),
        )
        return Sample(window, firsts, gaps, stats)


class SecondTurn(NamedTuple):
    """A conversation's second prompt: its tokens, those not computed again, seconds to its first
    token with all of it prefilled and with a session."""

    prompt_tokens: int
    reused_tokens: int
    fresh: float
    reused: float


def second_turn(engine: Engine, row: Row, tokens: int, *, fresh_first: bool) -> SecondTurn:
    """Answer a prompt with so many tokens, then time the turn after it both ways."""
    session = engine.session()
    plain = SamplingParams(temperature=0, num_draft_tokens=0, max_tokens=tokens)
    answer = engine.submit(row.ids, plain, session=session).result()
    second = row.then(answer)
    first = replace(plain, max_tokens=1)
    sessions = (None, session) if fresh_first else (session, None)
    stats = {one: engine.submit(second, first, session=one).result().stats for one in sessions}
    session.close()
    fresh, reused = stats[None], stats[session]
    return SecondTurn(
        fresh.prompt_tokens,
        reused.reused_tokens,
        fresh.first_token_seconds,
        reused.first_token_seconds,
    )
