"""The plain outputs that rounds with drafts must generate again."""

from collections.abc import Callable

import pytest

from helpers.checkpoints import PairPaths
from helpers.plain import Plain, decode_plainly
from mlx_gemma_mtp.engine.pair import open_pair


@pytest.fixture(scope="session")
def plains(pairs: dict[str, PairPaths], seed: int) -> Callable[[str], Plain]:
    """The plain outputs of a kind; decoded when first asked for."""
    made: dict[str, Plain] = {}

    def get(kind: str) -> Plain:
        if kind not in made:
            pair = open_pair(*pairs[kind])._replace(fingerprint=None)  # learns nothing for others
            made[kind] = decode_plainly(kind, pair, seed)
        return made[kind]

    return get


@pytest.fixture(scope="session")
def plain(kind: str, plains: Callable[[str], Plain]) -> Plain:
    """The plain outputs of this kind."""
    return plains(kind)
