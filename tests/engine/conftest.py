"""Prompts for the fake pair."""

import numpy as np
import pytest

from helpers.fake_target import VOCAB


@pytest.fixture
def prompts(rng: np.random.Generator) -> list[list[int]]:
    return [rng.integers(0, VOCAB, size).tolist() for size in (3, 20, 7, 40, 11, 5, 31, 9)]
