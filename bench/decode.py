"""Timing an engine at work: rows with random prompts decode side by side, and rounds are counted.

Knows nothing of what is printed, nor of other engines.
"""

from __future__ import annotations

import random
import statistics
import threading
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from time import perf_counter
from typing import Literal, NamedTuple

from mlx_gemma_mtp import Chunk, Engine, SamplingParams
from mlx_gemma_mtp.request import Stats

STUCK_SECONDS = 600  # without a single round


class Sample(NamedTuple):
    """Some rounds of decoding: the tokens of all rows, and the seconds they took."""

    tokens: int
    rounds: int
    seconds: float


class Speed(NamedTuple):
    """Tokens per second over all rows, and milliseconds per round: medians of several samples."""

    tokens_per_second: float
    low: float
    high: float
    ms: float


def speed(samples: Sequence[Sample]) -> Speed:
    """Median, lowest and highest tokens per second, median milliseconds per round."""
    rates = [sample.tokens / sample.seconds for sample in samples]
    ms = [sample.seconds / sample.rounds * 1e3 for sample in samples]
    return Speed(statistics.median(rates), min(rates), max(rates), statistics.median(ms))


def random_prompts(lengths: Sequence[int], vocab_size: int) -> list[list[int]]:
    """Token ids of prompts of these lengths, the same in every call."""
    rng = random.Random(0)
    return [rng.choices(range(vocab_size), k=length) for length in lengths]


class _Watch:
    """Notes each row's tokens as they come, on the engine's thread."""

    def __init__(self, num_rows: int, rounds: int) -> None:
        self.enough = threading.Event()
        self.stirred = threading.Event()
        self._left = set(range(num_rows))
        self._rounds = rounds
        self._marks: list[tuple[float, int]] = []  # when a round came, tokens until then
        self._tokens = 0

    def take(self, row: int, chunk: Chunk) -> None:
        """One row's tokens of one round."""
        self.stirred.set()
        self._left.discard(row)
        if not self._left and row == 0:
            self._marks.append((perf_counter(), self._tokens))
            if len(self._marks) > self._rounds:
                self.enough.set()
        self._tokens += len(chunk.tokens)

    def samples(self, warm_up: int, rounds: int) -> list[Sample]:
        marks = self._marks[warm_up::rounds]
        return [
            Sample(after[1] - before[1], rounds, after[0] - before[0])
            for before, after in pairwise(marks)
        ]


def decode(
    engine: Engine,
    lengths: Sequence[int],
    num_drafts: int | Literal["auto"],
    *,
    rounds: int,
    samples: int,
    warm_up: int,
) -> tuple[list[Sample], Stats]:
    """Time `samples` times `rounds` rounds, once all rows decode and `warm_up` rounds are over.

    Greedy, through `Engine.submit`, as any program would. Returns the samples and the counts of
    one of the rows, warm-up included.
    """
    watch = _Watch(len(lengths), warm_up + rounds * samples)
    params = SamplingParams(
        temperature=0, ignore_eos=True, num_draft_tokens=num_drafts, seed=0, max_tokens=1 << 20
    )
    generations = []
    try:
        for row, prompt in enumerate(random_prompts(lengths, engine.config.vocab_size)):
            generations.append(engine.submit(prompt, params, partial(watch.take, row)))
        while not watch.enough.wait(STUCK_SECONDS):
            failed = [g for g in generations if g.done()]
            if failed or not watch.stirred.is_set():
                break
            watch.stirred.clear()
    finally:
        for generation in generations:
            generation.cancel()
        done = [generation.result() for generation in generations]  # raises what failed
    return watch.samples(warm_up, rounds)[:samples], done[0].stats
