"""Gemma 4 pairs at their real sizes with random weights, to time rounds where no weights are.

The shapes are those of the published configurations; the values are noise, so nothing these
models say means anything and their drafts are never right.
"""

from __future__ import annotations

from typing import Any, TypeVar

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map

from mlx_gemma_mtp.engine.worker import mlx_worker
from mlx_gemma_mtp.files.weights import quantize
from mlx_gemma_mtp.model.config import DrafterConfig, TargetConfig
from mlx_gemma_mtp.model.drafter import Drafter
from mlx_gemma_mtp.model.layers import fuse_projections
from mlx_gemma_mtp.model.target import Target

Model = TypeVar("Model", Target, Drafter)

_COMMON: dict[str, Any] = {"model_type": "gemma4_text", "final_logit_softcapping": 30.0}
_K_EQ_V: dict[str, Any] = {
    "attention_k_eq_v": True,
    "sliding_window": 1024,
    "hidden_size_per_layer_input": 0,
    "max_position_embeddings": 262_144,
}
TARGETS: dict[str, dict[str, Any]] = {
    "E2B": {
        "hidden_size": 1536,
        "intermediate_size": 6144,
        "num_hidden_layers": 35,
        "layer_types": (["sliding_attention"] * 4 + ["full_attention"]) * 7,
        "num_attention_heads": 8,
        "num_key_value_heads": 1,
        "num_kv_shared_layers": 20,
        "use_double_wide_mlp": True,
    },
    "E4B": {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "num_hidden_layers": 42,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "num_kv_shared_layers": 18,
    },
    "12B": {
        **_K_EQ_V,
        "hidden_size": 3840,
        "intermediate_size": 15360,
        "num_hidden_layers": 48,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "num_global_key_value_heads": 1,
    },
    "26B-A4B": {
        **_K_EQ_V,
        "hidden_size": 2816,
        "intermediate_size": 2112,
        "num_hidden_layers": 30,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "num_global_key_value_heads": 2,
        "enable_moe_block": True,
        "num_experts": 128,
        "top_k_experts": 8,
        "moe_intermediate_size": 704,
    },
    "31B": {
        **_K_EQ_V,
        "hidden_size": 5376,
        "intermediate_size": 21504,
        "num_hidden_layers": 60,
        "num_attention_heads": 32,
        "num_key_value_heads": 16,
        "num_global_key_value_heads": 4,
    },
}


def random_pair(
    size: str, dtype: mx.Dtype = mx.bfloat16, bits: int | None = None
) -> tuple[Target, Drafter]:
    """A target and its drafter at a published size, weights drawn with a standard deviation of
    one over the root of their input width. bits: 4 or 8 quantizes them as `load` does.

    Nothing is computed yet: sizes are known, memory is not taken. `draw` does that.
    """
    target, drafter = configs(size)
    return _noise(Target(target), dtype, bits), _noise(Drafter(drafter), dtype, bits)


def draw(model: Model) -> Model:
    """Compute the weights, one at a time, so that memory holds one copy; joined as `load` does.

    To be called on the worker. Ends early where the process does.
    """
    for parameter in dict(tree_flatten(model.parameters())).values():
        if mlx_worker().leaving.is_set():
            break
        mx.eval(parameter)
    return fuse_projections(model)


def configs(size: str) -> tuple[TargetConfig, DrafterConfig]:
    """The configurations of a published size."""
    target, drafter = settings(size)
    return TargetConfig.from_dict(target), DrafterConfig.from_dict(drafter)


def settings(size: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What config.json holds of a published target and its drafter, as far as shapes go."""
    target = _COMMON | TARGETS[size]
    small = size in ("E2B", "E4B")
    text = _COMMON | {
        "hidden_size": 256 if small else 1024,
        "intermediate_size": 2048 if small else 8192,
        "num_hidden_layers": 4,
        "num_attention_heads": 4 if small else target["num_attention_heads"],
        "num_key_value_heads": target["num_key_value_heads"],
        "sliding_window": target.get("sliding_window", 512),
        "layer_types": ["sliding_attention"] * 3 + ["full_attention"],
    }
    drafter = {
        "model_type": "gemma4_assistant",
        "text_config": text,
        "backbone_hidden_size": target["hidden_size"],
        "use_ordered_embeddings": small,
    }
    return target, drafter


def _noise(model: Model, dtype: mx.Dtype, bits: int | None) -> Model:
    """Replace every parameter by noise."""

    def noise(parameter: mx.array) -> mx.array:
        if parameter.dtype == mx.int32:  # a centroid head's token ordering
            return mx.random.permutation(parameter.size).astype(mx.int32)
        if parameter.ndim == 1:  # norms and scales
            return mx.ones(parameter.shape, dtype)
        return mx.random.normal(parameter.shape, dtype) * parameter.shape[-1] ** -0.5

    model.update(tree_map(noise, model.parameters()))
    if bits is not None:
        quantize(model, bits)
    return model
