"""A pair in float32, and the plain outputs that rounds with drafts must generate again."""

import pytest

from helpers.checkpoints import PairPaths
from helpers.plain import Plain, decode_plainly
from helpers.rounds import Models, load_models
from mlx_gemma_mtp.engine.pair import open_pair


@pytest.fixture(scope="session")
def models(pair: PairPaths) -> Models:
    return load_models(pair)


@pytest.fixture(scope="session")
def plain(kind: str, pair: PairPaths, seed: int) -> Plain:
    opened = open_pair(*pair)._replace(fingerprint=None)  # learns nothing for others
    return decode_plainly(kind, opened, seed)
