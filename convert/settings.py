"""config.json of the output: the source's, with its quantization and the keys that mlx-lm needs.

Knows Transformers' and mlx-lm's spellings; reads and writes no files.
"""

from __future__ import annotations

import copy
import json
from typing import Any

from mlx_gemma_mtp.model.config import TargetConfig

from .formats import parse_format
from .plan import MULTIMODAL, Plan


def config_json(plan: Plan) -> str:
    """Return the content of the file."""
    config = copy.deepcopy(plan.source.config)
    text = config.get("text_config", config)
    for section in (config, text):
        for key in ("dtype", "torch_dtype"):
            if section.get(key) is not None:
                section[key] = plan.recipe.dtype
    if isinstance(plan.config, TargetConfig):
        text |= _for_mlx_lm(plan.config)
        if config["model_type"] in MULTIMODAL:
            config["vocab_size"] = plan.config.vocab_size
    blocks = {
        parameter.name.removesuffix(".weight"): parameter.format.block
        for parameter in plan.parameters
        if parameter.format is not None
    }
    if blocks:
        used = list(blocks.values())
        base = parse_format(plan.recipe.bits, plan.recipe.group_size)
        common = base.block if base is not None and base.block in used else used[0]
        others = {path: block for path, block in blocks.items() if block != common}
        config |= dict.fromkeys(("quantization", "quantization_config"), common | others)
    return json.dumps(config, indent=2) + "\n"


def _for_mlx_lm(config: TargetConfig) -> dict[str, Any]:
    """Return the keys for which mlx-lm would use E2B's values, or that it reads nowhere else.

    Transformers leaves out keys that equal its own defaults, and mlx-lm ignores `per_layer_config`.
    """
    sliding, full = (
        config.layers[config.last_owner(kind)] for kind in ("sliding_attention", "full_attention")
    )
    narrow = config.layers[0].intermediate_size
    wanted: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": narrow,
        "use_double_wide_mlp": any(layer.intermediate_size > narrow for layer in config.layers),
        "num_hidden_layers": len(config.layers),
        "layer_types": [layer.kind for layer in config.layers],
        "num_kv_shared_layers": len(config.layers) - config.num_kv_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": sliding.num_key_value_heads,
        "head_dim": sliding.head_dim,
        "global_head_dim": full.head_dim,
        "attention_k_eq_v": full.k_eq_v,
        "sliding_window": config.sliding_window,
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": config.rms_norm_eps,
        "hidden_size_per_layer_input": config.hidden_size_per_layer_input,
        "enable_moe_block": config.num_experts > 0,
    }
    if full.k_eq_v:
        wanted["num_global_key_value_heads"] = full.num_key_value_heads
    if config.hidden_size_per_layer_input:
        wanted["vocab_size_per_layer_input"] = config.vocab_size_per_layer_input
    return wanted
