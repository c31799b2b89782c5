"""Converted folders: what is in them, compared and damaged."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx_gemma_mtp.convert.plan import Options
from mlx_lm import utils as mlx_lm

from helpers.arrays import Arrays
from helpers.broken import LONGEST, change_arrays
from helpers.command import Done, assert_plain
from helpers.logits import assert_logits_agree, capped_logits, logits_of_mlx_lm
from mlx_gemma_mtp.files.checkpoint import weight_files
from mlx_gemma_mtp.model.target import Target

Converted = Callable[[str, Options], Path]

MOE = "26B-A4B"


def hashes(folder: Path) -> dict[str, str]:
    """Return SHA-256 of every file without a time in it."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("manifest.json", "README.md")
    }


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
    assert_plain(done)
    line = done.stderr.splitlines()[-1]
    assert (done.returncode, done.stdout) == (exit_code, ""), done.stderr
    assert line.startswith("mgm: "), done.stderr
    assert word in line
    assert len(line) < LONGEST


def put_nan(folder: Path) -> None:
    """Put a NaN into the last file, which is read late."""

    def edit(arrays: Arrays) -> None:
        name = max(arrays, key=lambda name: arrays[name].size)
        flat = np.array(arrays[name]).ravel()
        flat[flat.size // 2] = np.nan
        arrays[name] = mx.array(flat).reshape(arrays[name].shape)

    change_arrays(edit, weight_files(folder)[-1].name)(folder)
