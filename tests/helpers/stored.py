"""A tiny random mixture on disk, without torch, and other ways to store it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from helpers.arrays import Arrays, parameters, read_arrays, write
from helpers.random_pair import EXPERTS, SHAPE, random_pair
from mlx_gemma_mtp.engine.worker import mlx_worker
from mlx_gemma_mtp.files.checkpoint import read_config

CONFIG: dict[str, Any] = SHAPE | EXPERTS
WIDTH: int = SHAPE["hidden_size"]


@pytest.fixture(scope="session", name="mixture")
def mixture_on_disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A target with experts: config.json and model.safetensors, names as in Transformers."""
    target = random_pair(np.random.default_rng(5), experts=EXPERTS).target
    mlx_worker().run(lambda: mx.eval(target.parameters()))  # made there, and not yet computed
    arrays = {
        "model." + (name.removesuffix(".weight") if ".experts." in name else name): array
        for name, array in parameters(target).items()
    }
    return write(tmp_path_factory.mktemp("mixture") / "model", CONFIG, arrays)


def rewritten(
    source: Path,
    folder: Path,
    change: Callable[[Arrays], object] = lambda _: None,
    **config: Any,
) -> Path:
    """Write a checkpoint again after a change to its arrays, with more keys in its config."""
    arrays = read_arrays(source)
    mx.eval(arrays)
    change(arrays)
    return write(folder, read_config(source) | config, arrays)


def quantized(arrays: Mapping[str, mx.array], name: str, **chosen: Any) -> Arrays:
    """Return the arrays that MLX stores instead of this one, and nothing else."""
    parts = mx.quantize(arrays[name], **chosen)
    stem = name.removesuffix("weight")
    return dict(zip((stem + "weight", stem + "scales", stem + "biases"), parts, strict=False))
