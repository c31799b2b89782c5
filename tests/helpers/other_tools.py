"""Checkpoints as other tools write them: mlx-lm, live, and Transformers with every key.

Transformers 5.24.0 writes the same files as 5.22.2, except for its version (compared for all kinds,
with and without towers), so `make_pair` stands for both. What mlx-vlm 0.7.10 wrote is in MLX_VLM.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten
from mlx_lm import utils as mlx_lm
from mlx_lm.convert import mixed_quant_predicate_builder

from helpers.checkpoints import to_global_spelling

# Tiny random models that mlx-vlm 0.7.10 converted: a mixture in mxfp4, whose routers' exceptions
# have no mode; a model with per-layer embeddings by a mixed recipe, and its drafter with a centroid
# head in 4 bits. greedy.json has a prompt and the tokens that mlx-vlm adds to it in float32.
MLX_VLM = Path(__file__).parent.parent / "files" / "mlx_vlm"


def as_published(source: Path, folder: Path) -> Path:
    """Copy a target with every key in its config, as Google does; MLX's tools need some.

    Transformers leaves out what equals its own defaults.
    """
    from transformers import AutoConfig

    shutil.copytree(source, folder)
    path = folder / "config.json"
    if "per_layer_config" in path.read_text():
        AutoConfig.from_pretrained(source).to_json_file(path, use_diff=False)
        to_global_spelling(folder)
    config = json.loads(path.read_text())
    text = config.get("text_config", config)
    text.setdefault("hidden_size_per_layer_input", 0)
    config["vocab_size"] = text["vocab_size"]
    path.write_text(json.dumps(config))
    return folder


def convert_with_mlx_lm(
    source: Path,
    out: Path,
    *,
    dtype: mx.Dtype | None = None,
    recipe: str | None = None,
    **quantization: Any,
) -> Path:
    """Convert a checkpoint as `mlx_lm.convert` does, which also needs a tokenizer.

    quantization: bits, mode or global_scale, as mlx-lm's `quantize_model` takes them.
    """
    model, config = mlx_lm.load_model(source, lazy=True)
    if dtype is not None:
        model.set_dtype(dtype)
    if recipe is not None:
        quantization["quant_predicate"] = mixed_quant_predicate_builder(recipe, model, None)
    if quantization:
        options = {"group_size": None, "bits": None} | quantization
        model, config = mlx_lm.quantize_model(model, config, **options)
    mlx_lm.save_model(out, model)
    mlx_lm.save_config(config, out / "config.json")
    return out


def load_in_mlx_lm(folder: Path) -> nn.Module:
    """Load a checkpoint in mlx-lm's own model, to compute in float32.

    MLX returns the rows of a table in mxfp4 and the like as bfloat16, in which mlx-lm would scale
    them, so such tables are made whole; that is exact.
    """
    model, _ = mlx_lm.load_model(folder)
    model.set_dtype(mx.float32)
    whole = []
    for path, table in model.named_modules():
        if isinstance(table, nn.QuantizedEmbedding) and table.mode != "affine":
            rows = mx.dequantize(
                table.weight, table.scales, None, table.group_size, table.bits, table.mode
            )
            embedding = nn.Embedding(1, 1)
            embedding.weight = rows.astype(mx.float32)
            whole.append((path, embedding))
    model.update_modules(tree_unflatten(whole))
    return model
