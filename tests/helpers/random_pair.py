"""A tiny random pair of any type, without torch or files: with experts, quantized, in bfloat16."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_map

from helpers.checkpoints import COMMON, TARGETS
from mlx_gemma_mtp.engine.pair import OpenPair
from mlx_gemma_mtp.engine.worker import mlx_worker
from mlx_gemma_mtp.files.weights import quantize
from mlx_gemma_mtp.model.config import DrafterConfig, TargetConfig
from mlx_gemma_mtp.model.drafter import Drafter
from mlx_gemma_mtp.model.target import Target

SUPPRESSED = [3, 200]
SHAPE: dict[str, Any] = COMMON | TARGETS["26B-A4B"]
SHAPE |= {
    "model_type": "gemma4_text",
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "layer_types": ["sliding_attention"] * 3 + ["full_attention"],
    "enable_moe_block": False,
}
EXPERTS = {"enable_moe_block": True}


def random_pair(
    rng: np.random.Generator,
    dtype: mx.Dtype = mx.float32,
    bits: int | None = None,
    experts: dict[str, Any] | None = None,
) -> OpenPair:
    """A tiny random pair, with logits as far apart as those of a trained model."""

    def make() -> OpenPair:
        config = TargetConfig.from_dict(SHAPE | (experts or {}))
        drafter = DrafterConfig.from_dict(
            {
                "model_type": "gemma4_assistant",
                "text_config": SHAPE,
                "backbone_hidden_size": config.hidden_size,
                "use_ordered_embeddings": False,
            }
        )
        models = Target(config), Drafter(drafter)
        for model in models:
            model.update(tree_map(noise, model.parameters()))
            if bits:
                quantize(model, bits)
        models[0].norm.weight *= 4
        return OpenPair(*models, None, {"suppress_tokens": SUPPRESSED, "top_k": 64}, None)

    def noise(parameter: mx.array) -> mx.array:
        if parameter.ndim == 1:
            return mx.ones(parameter.shape, dtype)
        drawn = rng.standard_normal(parameter.shape) * parameter.shape[-1] ** -0.5
        return mx.array(drawn).astype(dtype)

    return mlx_worker().run(make)
