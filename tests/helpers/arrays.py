"""The arrays of checkpoints and models: read, written, cast, renamed, quantized, compared."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from mlx_gemma_mtp.files.checkpoint import read_config
from mlx_gemma_mtp.model.drafter import Drafter
from mlx_gemma_mtp.model.target import Target

Arrays = dict[str, mx.array]
AFFINE = {"group_size": 64, "bits": 4, "mode": "affine"}


def parameters(model: Target | Drafter) -> Arrays:
    return dict(tree_flatten(model.parameters()))


def assert_same_bits(one: Target | Drafter, other: Target | Drafter) -> None:
    mine, theirs = parameters(one), parameters(other)
    assert mine.keys() == theirs.keys()
    assert [name for name in mine if not mx.array_equal(mine[name], theirs[name])] == []


def read_arrays(folder: Path) -> Arrays:
    """Return all arrays of a checkpoint under the names in its files."""
    found: Arrays = {}
    for path in folder.glob("*.safetensors"):
        found |= mx.load(str(path))
    return found


def write(folder: Path, config: dict[str, Any], arrays: Arrays) -> Path:
    """Write a checkpoint of these arrays, in one file."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    mx.save_safetensors(str(folder / "model.safetensors"), arrays)
    return folder


def cast(source: Path, folder: Path, *types: mx.Dtype) -> Path:
    """Copy a checkpoint with all floating-point arrays rounded to each of these types in turn."""
    arrays = read_arrays(source)
    for name, array in arrays.items():
        if mx.issubdtype(array.dtype, mx.floating):
            for dtype in types:
                array = array.astype(dtype)
            arrays[name] = array
    return write(folder, read_config(source), arrays)


def to_mlx_names(source: Path) -> Arrays:
    """Return a text-only checkpoint's arrays as mlx-community names them, not quantized."""
    arrays: Arrays = {}
    for name, array in read_arrays(source).items():
        name = "language_model." + name
        if name.endswith(".experts.gate_up_proj"):
            stem = name.removesuffix("gate_up_proj") + "switch_glu."
            gate, up = mx.split(array, 2, axis=1)
            arrays |= {f"{stem}gate_proj.weight": gate, f"{stem}up_proj.weight": up}
        elif name.endswith(".experts.down_proj"):
            stem = name.removesuffix("down_proj") + "switch_glu."
            arrays[f"{stem}down_proj.weight"] = array
        else:
            arrays[name] = array
    return arrays


def quantize_arrays(arrays: Arrays, format_of: Callable[[str], dict[str, Any] | None]) -> Arrays:
    """Quantize the weight of every module that has a format."""
    quantized: Arrays = {}
    for name, array in arrays.items():
        chosen = format_of(name.removesuffix(".weight")) if array.ndim > 1 else None
        if chosen is None:
            quantized[name] = array
            continue
        stem = name.removesuffix("weight")
        parts = mx.quantize(array, **chosen)
        labels = ("weight", "scales", "biases")[: len(parts)]
        quantized |= {stem + label: part for label, part in zip(labels, parts, strict=True)}
    return quantized
