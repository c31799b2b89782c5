"""Shared by all tests: one fresh seed per run, a random pair of each kind, and the marks."""

import gc
import os
import secrets
import signal
import tempfile
from collections.abc import Generator
from typing import TYPE_CHECKING

import numpy as np
import pytest

from helpers.command import mgm_here  # noqa: F401 - a fixture

if TYPE_CHECKING:
    from helpers.checkpoints import PairPaths
    from mlx_gemma_mtp.text.tokenizer import Text

# Set in the environment, so that all processes of a run use the same one.
SEED = int(os.environ.setdefault("MGM_TEST_SEED", str(secrets.randbits(31))))

# A shell's background job ignores Ctrl-C, and so would every process that a test starts.
signal.signal(signal.SIGINT, signal.default_int_handler)

# What engines save about this machine, and what is converted, stays out of the user's folders.
_OWN = tempfile.TemporaryDirectory(prefix="mgm-test-")
os.environ |= {"MGM_CACHE_DIR": _OWN.name, "MGM_DATA_DIR": _OWN.name}

# The layouts of checkpoints are spread over the kinds, so that each is tested with some kind: names
# with and without towers next to them, one file or several, and both spellings of the head size of
# full-attention layers.
LAYOUTS = {
    "E2B": {"multimodal": True},
    "E4B": {"sharded": True},
    "12B": {"multimodal": True, "sharded": True},
    "26B-A4B": {"multimodal": True},
    "31B": {},
}
GLOBAL_SPELLING = ("26B-A4B", "31B")
KINDS = tuple(LAYOUTS)
MAKE_CHECKPOINTS = {"pairs", "plain", "sharded", "tiny"}  # fixtures that need torch


def pytest_sessionstart(session: pytest.Session) -> None:
    # Not `pytest_report_header`: -q hides it.
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None:
        reporter.write_line(f"to repeat this run: MGM_TEST_SEED={SEED} pytest …")


@pytest.hookimpl(tryfirst=True)  # before -m selects by marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if MAKE_CHECKPOINTS & {*getattr(item, "fixturenames", ())}:
            item.add_marker(pytest.mark.torch)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Imports and tests stay, half a million objects: collecting garbage need not look at them."""
    gc.disable()
    collected = yield
    gc.freeze()
    gc.enable()
    return collected


@pytest.fixture(scope="session")
def seed() -> int:
    """The seed of everything random in this run."""
    return SEED


@pytest.fixture
def rng(request: pytest.FixtureRequest, seed: int) -> np.random.Generator:
    """Random numbers of one test, whichever other tests run."""
    return np.random.default_rng([seed, *request.node.name.encode()])


@pytest.fixture(scope="session")
def text() -> "Text":
    """The demo's tokenizer."""
    from mlx_gemma_mtp.files.names import DEMO
    from mlx_gemma_mtp.text.tokenizer import Text

    return Text(DEMO)


@pytest.fixture(scope="session", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Each published kind of Gemma 4 in turn."""
    return str(request.param)


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory, seed: int) -> "dict[str, PairPaths]":
    """A target and its drafter of every kind, on disk; read-only for tests."""
    # Imports torch: only if needed.
    from helpers.checkpoints import make_pair, to_global_spelling

    made = {}
    for name, layout in LAYOUTS.items():
        made[name] = make_pair(name, tmp_path_factory.mktemp(name), seed, **layout)
        for folder in made[name] if name in GLOBAL_SPELLING else ():
            to_global_spelling(folder)
    return made


@pytest.fixture(scope="session")
def pair(kind: str, pairs: "dict[str, PairPaths]") -> "PairPaths":
    """The pair of this kind."""
    return pairs[kind]
