"""Prompts for the fake pair, and an engine that runs it."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from helpers.fake_target import VOCAB, fake_engine
from mlx_gemma_mtp import Engine


@pytest.fixture
def prompts(rng: np.random.Generator) -> list[list[int]]:
    return [rng.integers(0, VOCAB, size).tolist() for size in (3, 20, 7, 40, 11, 5, 31, 9)]


@pytest.fixture
def running() -> Iterator[Engine]:
    with fake_engine() as engine:
        yield engine


@pytest.fixture
def wait(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Moves a clock on, which everybody reads now; otherwise it moves a microsecond per reading."""
    now = 1000.0

    def wait(seconds: float) -> None:
        nonlocal now
        now += seconds

    def read() -> float:
        wait(1e-6)
        return now

    monkeypatch.setattr("time.perf_counter", read)

    return wait
