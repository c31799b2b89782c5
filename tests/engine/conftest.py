"""Prompts for the fake pair, and an engine that runs it."""

from collections.abc import Iterator

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
