"""Simulated machines and texts, to see how far a choice of divisions stays behind the best one.

A machine says what a pass of N tokens and a step of the drafter take, played with noise, outliers,
changes and compilations: made up, measured on NVIDIA GPUs, or a Mac as `mgm estimate` predicts it.
A text is a chance for each row, round and draft. Speeds are counted from what was to be expected of
what was played, so that only the choices count, not luck. Nothing sleeps: the clock is a sum.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import NamedTuple

import numpy as np
from mlx_gemma_mtp.bench.chips import find_chip
from mlx_gemma_mtp.bench.estimate import plan, predicted_round
from mlx_gemma_mtp.bench.floor import Floor

from mlx_gemma_mtp.decode.acceptance import Acceptance
from mlx_gemma_mtp.decode.costs import WIDTHS
from mlx_gemma_mtp.decode.depth import MOST, Depth
from mlx_gemma_mtp.decode.division import Chances, Division, Shape
from mlx_gemma_mtp.decode.table import PassTable

Rng = np.random.Generator
Floats = np.ndarray[tuple[int, ...], np.dtype[np.float64]]

# Milliseconds of a round with K = 0 .. 8 drafts of every row.
MACHINES = {
    "flat": [25, 27, 28, 29, 30, 31, 33, 34, 36],
    "jump at 4": [15, 17, 19, 21, 30, 31, 32, 33, 34],
    "jump at 1": [11, 22, 23, 24, 25, 26, 27, 28, 29],
    "mixture": [10, 14, 18, 22, 26, 30, 34, 38, 42],
    "linear": [10, 21, 32, 43, 54, 65, 76, 87, 98],  # a CPU: drafts never pay
    # From shared measurements of one H100: 31B at batch 1 went from 41 to 84 tokens/s at 0.8.
    "H100 31B": [24.4, 28.2, 32.1, 36.0, 39.9, 43.9, 47.8, 51.7, 55.6],
    # Measured when many experts are read: one draft costs half a round.
    "H100 26B at batch 4": [13.9, 21.5, 23.0, 26.0, 28.0, 30.0, 33.0, 35.0, 37.0],
    # 26B-A4B with an expert path that sorts from 8 rows on: 4 times as slow there.
    "H100 26B": [11.0, 11.1, 12.9, 14.7, 16.4, 18.1, 19.2, 47.0, 49.0],
}
STEP = 0.03  # of such a machine's plain round: what one of its drafts takes
# In 4 bits. Costs have steps where Metal's kernels change.
MACS = [
    (chip, size) for chip in ("M1 Max", "M3 Max", "M4 Pro", "M5 Max") for size in ("31B", "26B-A4B")
]
MAC_CONTEXT = 1000  # tokens of each row
# The chance of each draft to be accepted if those before it are. The last: published for a drafter.
TEXTS = {
    "0.95": [0.95] * MOST,
    "0.85": [0.85] * MOST,
    "0.8": [0.8] * MOST,
    "0.55": [0.55] * MOST,
    "0.5": [0.5] * MOST,
    "0.35": [0.35] * MOST,
    "0.2": [0.2] * MOST,
    "0": [0.0] * MOST,
    "published": [0.84, 0.71, 0.64] + [0.70] * (MOST - 3),
}


@dataclass
class Machine:
    """Passes of N tokens cost `passes`[N], a step `step`, times `scale`; timings are noisy.

    scale: [rounds], or [rounds, tokens]. The first round of a shape, also after buffers were
    resized, is compiled and gives no timing. noise: relative standard deviation of a timing; None:
    drawn.
    """

    batch: int
    passes: Floats  # seconds, [tokens]
    step: float
    scale: Floats = field(default_factory=lambda: np.ones(1))
    compile_seconds: float = 0.0
    resized_every: int | None = None  # rounds
    noise: float | None = None

    def seconds(self, at: int, tokens: int, steps: int) -> float:
        """Return what a round takes."""
        scale = self.scale[min(at, len(self.scale) - 1)]
        factor = float(scale if scale.ndim == 0 else scale[tokens])
        return factor * float(self.passes[tokens] + steps * self.step)

    def probed(self, rng: Rng, error: float) -> PassTable:
        """Return what a probe would measure, each time off by this on average."""

        def off(seconds: float) -> float:
            return seconds * float(np.exp(rng.normal(0, error)))

        widths = [width for width in WIDTHS if width < len(self.passes)]
        return PassTable(
            passes={width: off(float(self.passes[width])) for width in widths},
            steps={self.batch: off(self.step)},
        )


class Best(NamedTuple):
    """Tokens per second of what is known afterwards, fixed for the whole run.

    of_all: dividing N tokens among the rows, with S steps. single: one K for all rows. plain: none.
    """

    of_all: float
    single: float
    plain: float


@dataclass
class Played:
    """The division of every round, and what was to be expected of it."""

    divisions: list[Division]
    tokens: Floats  # [rounds]
    seconds: Floats  # [rounds]
    machine: Machine
    chances: Floats
    compilations: int

    def speed(self, start: int = 0, end: int | None = None) -> float:
        """Return tokens per second of some of the rounds."""
        return float(self.tokens[start:end].sum() / self.seconds[start:end].sum())

    def best(self, start: int = 0, end: int | None = None) -> Best:
        """Return what could have been done in these rounds."""
        rounds = range(len(self.divisions))[start:end]
        return best_of(self.machine, self.chances, rounds)

    def behind_best(self, start: int = 0, end: int | None = None) -> float:
        """Share of the best division's speed that is missing; negative if that is beaten."""
        return 1 - self.speed(start, end) / self.best(start, end).of_all

    def behind_plain(self, start: int = 0, end: int | None = None) -> float:
        """The same against plain decoding."""
        return 1 - self.speed(start, end) / self.best(start, end).plain

    @property
    def shapes(self) -> set[Shape]:
        """All shapes that were played."""
        return {division.shape for division in self.divisions}


def best_of(machine: Machine, chances: Floats, rounds: Sequence[int]) -> Best:
    """Return the best that could be done in these rounds, knowing all chances."""
    batch, most = chances.shape[1], chances.shape[2]
    kinds, counts = np.unique(chances[rounds].reshape(len(rounds), -1), axis=0, return_counts=True)
    tokens = np.zeros((most + 1, batch * (most + 1) + 1))
    for kind, count in zip(kinds, counts, strict=True):
        tokens += count * _tokens(kind.tobytes(), batch, most)
    scales = machine.scale
    if len(scales) > 1:
        scales = scales[rounds]
    scale = np.broadcast_to(scales.mean(0), machine.passes.shape)[: tokens.shape[1]]
    passes = machine.passes[: tokens.shape[1]]
    seconds = scale * (passes + np.arange(most + 1)[:, None] * machine.step)
    with np.errstate(divide="ignore", invalid="ignore"):
        speeds = np.where(tokens > 0, tokens / seconds / len(rounds), 0)
    single = max(speeds[k, batch * (k + 1)] for k in range(most + 1))
    return Best(float(speeds.max()), float(single), float(speeds[0, batch]))


@cache
def _tokens(chances: bytes, batch: int, most: int) -> Floats:
    """Return the expected tokens [S + 1, N + 1] of the best division of N tokens with S steps."""
    reached = np.cumprod(np.frombuffer(chances).reshape(batch, most), axis=1)
    tokens = np.zeros((most + 1, batch * (most + 1) + 1))
    for steps in range(most + 1):
        likeliest = np.sort(reached[:, :steps].ravel())[::-1]
        tokens[steps, batch : batch * (steps + 1) + 1] = batch + np.cumsum([0, *likeliest])
    # One K for all rows is the division of B (K + 1) with K steps: every draft that there is.
    return tokens


@cache
def mac(chip: str, size: str, batch: int, context: int = MAC_CONTEXT) -> Machine:
    """Return the predicted machine: in 4 bits, with this context in each row."""
    floor, found, lengths = planned(size), find_chip(chip), [context] * batch
    passes = [
        predicted_round(floor, found, lengths, count, 0).seconds()
        for count in range(1, max(WIDTHS[-1], batch * (MOST + 1)) + 1)
    ]
    step = predicted_round(floor, found, lengths, 1, 1).seconds() - passes[0]
    return Machine(batch, np.array([np.nan, *passes]), step)


@cache
def planned(size: str) -> Floor:
    """Return what the rounds of a size in 4 bits read and multiply."""
    return plan(size, bits=4).floor


def machine(name: str, batch: int = 1, scale: Floats | float = 1.0) -> Machine:
    """Return a machine of MACHINES with so many rows.

    Times are scaled by a number, or by one for each round [, and K].
    """
    rounds_of_k = np.array(MACHINES[name]) / 1e3
    step = STEP * float(rounds_of_k[0])
    ks = np.arange(MOST + 1)
    of_tokens = np.maximum(np.arange(batch * (MOST + 1) + 1) / batch - 1, 0)
    passes = np.interp(of_tokens, ks, rounds_of_k - ks * step)
    scales = np.atleast_1d(np.asarray(scale, float))
    if scales.ndim == 2:
        scales = scales[:, np.ceil(of_tokens).astype(int)]
    return Machine(batch, passes, step, scales)


def slower_and_back(_: Rng, rounds: int) -> Floats:
    """The context grows, 40% slower at the end; for a while another app takes half the machine."""
    scale = 1 + 0.4 * np.arange(rounds) / rounds
    scale[rounds * 3 // 10 : rounds // 2] *= 2
    return scale


def restless(rng: Rng, rounds: int) -> Floats:
    """A machine as seen behind a busy host: its pace creeps up and drops at once."""
    scale = np.empty(rounds)
    at = 0
    while at < rounds:
        length = min(int(rng.integers(60, 300)), rounds - at)
        creep = np.linspace(rng.uniform(0.9, 1.2), rng.uniform(1.2, 1.8), length)
        scale[at : at + length] = creep if rng.random() < 0.7 else creep[::-1]
        at += length
    return scale


def jumping(rng: Rng, rounds: int) -> Floats:
    """The cost of all K, or of one, rises to 1.5x at once, and falls back: [rounds, K + 1]."""
    scale = np.ones((rounds, MOST + 1))
    at = int(rng.integers(50, 300))
    while at < rounds:
        length, k = int(rng.integers(100, 500)), int(rng.integers(6))
        scale[at : at + length, slice(None) if rng.random() < 0.5 else k] = 1.5
        at += length + int(rng.integers(50, 300))
    return scale


def steady(text: str | Sequence[str], rounds: int) -> Floats:
    """Return the chances [rounds, B, K] of one row, or of several."""
    rows = [TEXTS[name] for name in ([text] if isinstance(text, str) else text)]
    return np.broadcast_to(np.array(rows), (rounds, len(rows), MOST))


def play(
    rng: Rng,
    depth: Depth,
    machine: Machine,
    chances: Floats,
    join: Callable[[int, list[Acceptance]], None] | None = None,
) -> Played:
    """Play a text [rounds, B, K] on a machine, as the engine does.

    A round is reported when the next is under way. Only rounds between two of their shape are
    timed. join: called before every round, may replace rows.
    """
    rounds, batch, most = chances.shape
    wrong = rng.random(chances.shape) >= chances
    agreeing = np.where(wrong.any(2), wrong.argmax(2), most).tolist()
    jitter = np.maximum(rng.normal(1, machine.noise or rng.uniform(0.05, 0.10), rounds), 0.5)
    jitter[rng.random(rounds) < 0.01] *= 3  # rare outliers
    rows = [depth.row() for _ in range(batch)]
    played = rows
    divisions: list[Division] = []
    seconds: list[float] = []
    compiled: set[Shape] = set()
    compilations = 0
    was_new = False
    for r in range(rounds):
        if join:
            join(r, rows)
        if machine.resized_every and r % machine.resized_every == 0:
            compiled.clear()
        division = depth.choose([Chances(row.reached) for row in rows])
        shape = division.shape
        is_new = shape not in compiled
        if divisions:
            last = divisions[-1]
            if last.shape == shape and not is_new and not was_new:
                depth.round_took(shape, seconds[-1] * float(jitter[r - 1]))
            for row, drafted, agreed in zip(played, last.drafts, agreeing[r - 1], strict=True):
                row.seen(drafted, min(agreed, drafted))
        if is_new:
            compiled.add(shape)
            compilations += 1
            if machine.compile_seconds:
                depth.round_compiled(shape, machine.compile_seconds)
        divisions.append(division)
        seconds.append(machine.seconds(r, shape.num_tokens, shape.num_steps))
        played, was_new = list(rows), is_new
    reached = np.concatenate([np.ones((rounds, batch, 1)), np.cumprod(chances, axis=2)], axis=2)
    sums = np.cumsum(reached, axis=2)
    drafts = np.array([division.drafts for division in divisions])
    tokens = np.take_along_axis(sums, drafts[:, :, None], axis=2)[:, :, 0].sum(1)
    return Played(divisions, tokens, np.array(seconds), machine, chances, compilations)
