"""Pairs and converted pairs that the tests of this folder share."""

from functools import cache
from pathlib import Path

import pytest
from mlx_gemma_mtp.convert.conversion import convert
from mlx_gemma_mtp.convert.plan import Options

from helpers.broken import breakable_pair  # noqa: F401 - the fixture `broken`
from helpers.checkpoints import PairPaths, make_pair
from helpers.converted import MOE, Converted
from helpers.stored import mixture_on_disk  # noqa: F401 - the fixture `mixture`


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture(scope="session")
def converted(pairs: dict[str, PairPaths], tmp_path_factory: pytest.TempPathFactory) -> Converted:
    """Each kind's pair, or the demo pair, converted with these options, once; to be copied."""

    @cache
    def of(kind: str, options: Options) -> Path:
        out = tmp_path_factory.mktemp(kind) / "out"
        convert(kind if kind == "demo" else pairs[kind].target, out, options)
        return out

    return of


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory, seed: int) -> PairPaths:
    """A pair whose target is in several files; to be copied."""
    return make_pair(MOE, tmp_path_factory.mktemp("tiny"), seed, sharded=True, multimodal=True)


@pytest.fixture(scope="session")
def whole(tiny: PairPaths, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The result of an uninterrupted conversion of the tiny pair."""
    out = tmp_path_factory.mktemp("whole") / "out"
    convert(tiny.target, out, Options())
    return out
