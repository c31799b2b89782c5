"""Simulated machines and texts, to see how far a choice of K stays behind the best fixed one.

A machine is a table of round times by K, played with noise, outliers, changes and compilations:
made up, measured on NVIDIA GPUs, or a Mac's as `mgm estimate` predicts it. A text is a chance for
each row, round and draft. Speeds are counted from what was to be expected of the K played, so that
only the choices count, not luck. Nothing sleeps: the clock is a sum.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from mlx_gemma_mtp.bench.chips import find_chip
from mlx_gemma_mtp.bench.estimate import plan, predicted_round
from mlx_gemma_mtp.bench.floor import Floor

from mlx_gemma_mtp.decode.acceptance import Acceptance
from mlx_gemma_mtp.decode.depth import MOST, Depth

Rng = np.random.Generator
Floats = np.ndarray[tuple[int, ...], np.dtype[np.float64]]

# Milliseconds of a round with K = 0 .. 8 drafts.
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
# In 4 bits, with this many rows. Costs have steps where Metal's kernels change.
MACS = [
    (chip, size, batch)
    for chip in ("M1 Max", "M3 Max", "M4 Pro", "M5 Max")
    for size in ("31B", "26B-A4B")
    for batch in (1, 4, 8)
]
MAC_CONTEXT = 1000  # tokens of each row
# The chance of each draft to be accepted if those before it are. The last: published for a drafter.
TEXTS = {
    "0.95": [0.95] * MOST,
    "0.8": [0.8] * MOST,
    "0.5": [0.5] * MOST,
    "0.2": [0.2] * MOST,
    "0": [0.0] * MOST,
    "published": [0.84, 0.71, 0.64] + [0.70] * (MOST - 3),
}


@dataclass
class Machine:
    """Rounds cost `seconds` [rounds, K + 1]; timings of them are noisy.

    The first round of a K, also after buffers were resized, is compiled and gives no timing.
    """

    seconds: Floats
    compile_seconds: float = 0.0
    resized_every: int | None = None  # rounds
    noise: float | None = None  # relative standard deviation of a timing; None: drawn


@dataclass
class Played:
    """The K of every round, and what was to be expected of it."""

    ks: list[int]
    tokens: Floats  # [rounds, K + 1], of all rows
    seconds: Floats  # [rounds, K + 1]
    compilations: int

    def _behind(self, fixed: int | slice, start: int, end: int | None) -> float:
        rounds = np.arange(len(self.ks))[start:end]
        tokens, seconds = self.tokens[rounds], self.seconds[rounds]
        at = np.arange(len(rounds)), self.ks[start:end]
        best = (tokens.sum(0) / seconds.sum(0))[fixed].max()
        return float(1 - tokens[at].sum() / seconds[at].sum() / best)

    def behind_best(self, start: int = 0, end: int | None = None) -> float:
        """Share of the best fixed K's speed that is missing; negative if that is beaten."""
        return self._behind(slice(None), start, end)

    def behind_plain(self, start: int = 0, end: int | None = None) -> float:
        """The same against K = 0."""
        return self._behind(0, start, end)


@cache
def mac(chip: str, size: str, batch: int) -> list[float]:
    """Return the predicted milliseconds of a round with K = 0 .. 8 drafts."""
    floor, found = planned(size), find_chip(chip)
    lengths = [MAC_CONTEXT] * batch
    rounds = (predicted_round(floor, found, lengths, k) for k in range(MOST + 1))
    return [1e3 * one.seconds() for one in rounds]


@cache
def planned(size: str) -> Floor:
    """Return what the rounds of a size in 4 bits read and multiply."""
    return plan(size, bits=4).floor


def machine(name: str | tuple[str, str, int], rounds: int, scale: Floats | float = 1.0) -> Machine:
    """Return a machine whose times are scaled by a number, or by one for each round [, and K]."""
    table = np.array(MACHINES[name] if isinstance(name, str) else mac(*name)) / 1e3
    scales = np.asarray(scale, float)
    return Machine(np.ones((rounds, 1)) * table * (scales if scales.ndim != 1 else scales[:, None]))


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


def steady(text: str | list[str], rounds: int) -> Floats:
    """Return the chances [rounds, B, K] of one row, or of several."""
    rows = [TEXTS[name] for name in ([text] if isinstance(text, str) else text)]
    return np.broadcast_to(np.array(rows), (rounds, len(rows), MOST))


def expected_tokens(chances: Floats) -> Floats:
    """Return the mean tokens [rounds, K + 1] of all rows, from chances [rounds, B, K]."""
    reached = np.cumprod(chances, axis=2).sum(1)
    rows = np.full((len(chances), 1), float(chances.shape[1]))
    return np.cumsum(np.concatenate([rows, reached], axis=1), axis=1)


def play(
    rng: Rng,
    depth: Depth,
    machine: Machine,
    chances: Floats,
    join: Callable[[int, list[Acceptance]], None] | None = None,
) -> Played:
    """Play a text [rounds, B, K] on a machine, as the engine does.

    A round is reported when the next is under way. A K that differs from the last is played twice,
    and only rounds between two of their kind are timed.
    join: called before every round, may replace rows.
    """
    rounds, batch, most = chances.shape
    wrong = rng.random(chances.shape) >= chances
    agreeing = np.where(wrong.any(2), wrong.argmax(2), most).tolist()
    jitter = np.maximum(rng.normal(1, machine.noise or rng.uniform(0.05, 0.10), rounds), 0.5)
    jitter[rng.random(rounds) < 0.01] *= 3  # rare outliers
    timed = (machine.seconds * jitter[:, None]).tolist()
    rows = [depth.row() for _ in range(batch)]
    ks: list[int] = []
    compiled: set[int] = set()
    compilations = 0
    repeat = was_new = False
    played = rows
    for r in range(rounds):
        if join:
            join(r, rows)
        if machine.resized_every and r % machine.resized_every == 0:
            compiled.clear()
        k = ks[-1] if repeat else depth.choose(batch, rows)
        repeat = bool(ks) and k != ks[-1]
        is_new = k not in compiled
        if ks:
            if ks[-1] == k and not is_new and not was_new:
                depth.round_took(batch, k, timed[r - 1][k])
            for row, agreed in zip(played, agreeing[r - 1], strict=True):
                row.seen(ks[-1], min(agreed, ks[-1]))
        if is_new:
            compiled.add(k)
            compilations += 1
            if machine.compile_seconds:
                depth.round_compiled(batch, k, machine.compile_seconds)
        ks.append(k)
        played, was_new = list(rows), is_new
    return Played(ks, expected_tokens(chances), machine.seconds, compilations)
