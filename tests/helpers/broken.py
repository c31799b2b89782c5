"""Pairs that a test may break, the ways to break them, and what an error must look like."""

from __future__ import annotations

import functools
import json
import operator
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import pytest

from mlx_gemma_mtp import MgmError, SamplingParams, load
from mlx_gemma_mtp.errors import (
    CheckpointError,
    ModelNotFoundError,
    PromptTooLongError,
    UsageError,
)

if TYPE_CHECKING:
    from helpers.checkpoints import PairPaths

EXIT_CODES = {UsageError: 2, PromptTooLongError: 2, ModelNotFoundError: 3}  # others: 1
LONGEST = 600  # characters of a message, paths included
GREEDY = SamplingParams(max_tokens=6, temperature=0, ignore_eos=True)
WEIGHTS = "model.safetensors"

Edit = Callable[[Path], object]


@pytest.fixture(scope="session", name="tiny")
def tiny_pair(tmp_path_factory: pytest.TempPathFactory) -> PairPaths:
    from helpers.checkpoints import make_pair

    return make_pair("26B-A4B", tmp_path_factory.mktemp("tiny"), 1)


@pytest.fixture(name="broken")
def breakable_pair(tiny: PairPaths, tmp_path: Path) -> PairPaths:
    return tiny._replace(
        target=shutil.copytree(tiny.target, tmp_path / "target"),
        drafter=shutil.copytree(tiny.drafter, tmp_path / "target-assistant"),
    )


def refusal(kind: type[MgmError], call: Callable[[], object]) -> str:
    """Return the message of the error that the call must raise: one short line."""
    with pytest.raises(MgmError) as caught:
        call()
    message = str(caught.value)
    assert type(caught.value) is kind, message
    assert caught.value.exit_code == EXIT_CODES.get(kind, 1)
    assert message.isprintable(), message  # so it is one line
    assert 0 < len(message) < LONGEST
    return message


def load_refusal(*pair: Any, kind: type[MgmError] = CheckpointError, **options: Any) -> str:
    """Return the message of the error that loading this target and drafter must raise."""
    return refusal(kind, lambda: load(*pair, **options))


def refused_or_fine(target: Path, drafter: Path | None) -> None:
    """Load and use an odd pair: it gives an error for people, or as many tokens as asked."""
    params = SamplingParams(max_tokens=3, temperature=1, seed=0, ignore_eos=True)
    message = ""
    try:
        with load(target, drafter) as engine:
            assert len(engine.generate([5, 6], params)[0].tokens) == 3
    except MgmError as error:
        message = str(error)
    assert message.isprintable(), message


def table(cases: dict[str, Any]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", cases.values(), ids=cases.keys())


def each(cases: dict[Any, list[Any]]) -> pytest.MarkDecorator:
    """Run a test for each name with each of its values."""
    pairs = [(name, value) for name, values in cases.items() for value in values]
    return pytest.mark.parametrize(("name", "value"), pairs, ids=lambda one: repr(one)[:24])


def set_values(values: dict[str, Any], file: str = "config.json") -> Edit:
    """Set dotted keys of a JSON file; ... removes the key."""

    def edit(folder: Path) -> None:
        raw = json.loads((folder / file).read_text())
        for dotted, value in values.items():
            *outer, key = dotted.split(".")
            section = functools.reduce(operator.getitem, outer, raw)
            section[key] = value
            if value is ...:
                del section[key]
        (folder / file).write_text(json.dumps(raw))

    return edit


def put(file: str, content: str | bytes) -> Edit:
    data = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / file).write_bytes(data)


def change_arrays(change: Callable[[dict[str, mx.array]], object], file: str = WEIGHTS) -> Edit:
    """Rewrite the weights after a change to their dictionary."""

    def edit(folder: Path) -> None:
        arrays = dict(mx.load(str(folder / file)))
        mx.eval(arrays)
        change(arrays)
        mx.save_safetensors(str(folder / file), arrays)

    return edit
