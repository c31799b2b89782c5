"""Converted pairs that the tests of this folder share, and `mgm` in this process."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from mlx_gemma_mtp.convert.conversion import convert
from mlx_gemma_mtp.convert.plan import Options

from helpers.checkpoints import PairPaths, make_pair
from helpers.command import Done, run_here
from helpers.converted import TINY


@pytest.fixture(scope="session")
def converted(
    pairs: dict[str, PairPaths], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, Options], Path]:
    """Each kind's pair, or the demo pair, converted with these options, once; to be copied."""
    made: dict[tuple[str, Options], Path] = {}

    def of(kind: str, options: Options) -> Path:
        if (kind, options) not in made:
            out = tmp_path_factory.mktemp(kind) / "out"
            convert(kind if kind == "demo" else pairs[kind].target, out, options)
            made[kind, options] = out
        return made[kind, options]

    return of


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory, seed: int) -> PairPaths:
    """A pair whose target is in several files; to be copied."""
    return make_pair(TINY, tmp_path_factory.mktemp("tiny"), seed, sharded=True, multimodal=True)


@pytest.fixture(scope="session")
def whole(tiny: PairPaths, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The result of an uninterrupted conversion of the tiny pair."""
    out = tmp_path_factory.mktemp("whole") / "out"
    convert(tiny.target, out, Options())
    return out


@pytest.fixture
def broken(tiny: PairPaths, tmp_path: Path) -> PairPaths:
    """A pair that a test may break."""
    return PairPaths(
        shutil.copytree(tiny.target, tmp_path / "target"),
        shutil.copytree(tiny.drafter, tmp_path / "target-assistant"),
    )


@pytest.fixture
def mgm(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """Runs `mgm` with these arguments in this process."""

    def run(*arguments: str | Path) -> Done:
        return run_here(monkeypatch, capfd, arguments)

    return run
