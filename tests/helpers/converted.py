"""Converted folders: what is in them, compared and damaged."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten
from mlx_gemma_mtp.convert.plan import Options
from mlx_lm import utils as mlx_lm

from helpers.command import Done
from helpers.logits import assert_logits_agree, capped_logits, logits_of_mlx_lm
from mlx_gemma_mtp.files.checkpoint import weight_files
from mlx_gemma_mtp.model.target import Target

Arrays = dict[str, mx.array]
Converted = Callable[[str, Options], Path]
Mgm = Callable[..., Done]  # the fixture `mgm_here`

MOE = "26B-A4B"
TINY = MOE
LONGEST = 600  # characters of a message, paths included


def read_arrays(folder: Path) -> Arrays:
    """Return all arrays of a checkpoint under the names in its files."""
    found: Arrays = {}
    for path in folder.glob("*.safetensors"):
        found |= mx.load(str(path))
    return found


def hashes(folder: Path) -> dict[str, str]:
    """Return SHA-256 of every file without a time in it."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("manifest.json", "README.md")
    }


def parameters(model: nn.Module) -> Arrays:
    return dict(tree_flatten(model.parameters()))


def assert_same_arrays(found: Arrays, expected: Arrays) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype, name
        assert mx.array_equal(found[name], array), name


def assert_mlx_lm_agrees(folder: Path, target: Target) -> None:
    """mlx-lm's own model, loaded by its own loader, computes the same."""
    model, _ = mlx_lm.load_model(folder)
    assert_logits_agree(logits_of_mlx_lm(model), capped_logits(target))


def assert_refused(done: Done, exit_code: int, word: str) -> None:
    """It ended with one readable line that has this word, and nothing on stdout."""
    line = done.stderr.splitlines()[-1]
    assert (done.returncode, done.stdout) == (exit_code, ""), done.stderr
    assert line.startswith("mgm: "), done.stderr
    assert word in line
    assert len(line) < LONGEST
    assert "Traceback" not in done.stderr


def edit_json(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def put_nan(folder: Path) -> None:
    """Put a NaN into the last file, which is read late."""
    path = weight_files(folder)[-1]
    arrays = mx.load(str(path))
    name = max(arrays, key=lambda name: arrays[name].size)
    flat = np.array(arrays[name]).ravel()
    flat[flat.size // 2] = np.nan
    arrays[name] = mx.array(flat).reshape(arrays[name].shape)
    mx.save_safetensors(str(path), arrays)
