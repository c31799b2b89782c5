"""What a config.json leaves to the defaults of Transformers' Gemma 4 classes, and checks of values.

Settings that change the output and that this runtime doesn't have are refused here by name.
"""

from __future__ import annotations

import math
from typing import Any

from mlx_gemma_mtp.errors import CheckpointError

# The defaults of Transformers' Gemma4TextConfig; its save_pretrained may leave them out.
_TEXT_DEFAULTS: dict[str, Any] = {
    "vocab_size": 262_144,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 30,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "global_head_dim": 512,
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 131_072,
    "rms_norm_eps": 1e-6,
    "sliding_window": 512,
    "hidden_size_per_layer_input": 256,
}
_UNIFIED_DEFAULTS = {
    "max_position_embeddings": 262_144,
    "sliding_window": 1024,
    "hidden_size_per_layer_input": 0,
}
# Settings of other models that Transformers' Gemma4TextConfig takes, and the values supported here.
_SUPPORTED: dict[str, tuple[Any, ...]] = {
    "attention_bias": (False, None),
    "hidden_activation": ("gelu_pytorch_tanh",),
    "use_bidirectional_attention": ("vision", False, None),
    "is_causal": (True, None),
}
# Counts and sizes. Some tools write them as floats.
_INTEGERS = {
    *(key for key, value in _TEXT_DEFAULTS.items() if isinstance(value, int)),
    *("num_global_key_value_heads", "vocab_size_per_layer_input", "num_kv_shared_layers"),
    *("num_experts", "top_k_experts", "moe_intermediate_size", "sliding_window_pattern"),
    *("backbone_hidden_size", "num_centroids", "centroid_intermediate_top_k"),
}
_DEFAULT_PATTERN = 6  # one full-attention layer in this many


def text_section(raw: dict[str, Any]) -> dict[str, Any]:
    """Return the text part of a config, with Transformers' defaults for missing keys.

    Raises CheckpointError for settings that are not supported.
    """
    section = raw.get("text_config", raw)
    if not isinstance(section, dict):
        raise CheckpointError("config.json: text_config must be an object")
    unified = "unified" in str(section.get("model_type", raw.get("model_type")))
    text = _TEXT_DEFAULTS | (_UNIFIED_DEFAULTS if unified else {})
    text |= {key: value for key, value in section.items() if value is not None or key not in text}
    for key, supported in _SUPPORTED.items():
        if text.get(key) not in supported:
            raise CheckpointError(f"config.json: {key}={text[key]!r} is not supported")
    pattern = text.get("sliding_window_pattern", _DEFAULT_PATTERN)
    if not text.get("layer_types"):
        if pattern != _DEFAULT_PATTERN:  # Transformers ignores it, MLX's tools don't
            raise CheckpointError(
                f"config.json: sliding_window_pattern is {pattern!r}, but layer_types is missing"
            )
        count, sliding = text["num_hidden_layers"], "sliding_attention"
        text["layer_types"] = [  # the last layer is always a full one
            "full_attention" if number % _DEFAULT_PATTERN == 0 or number == count else sliding
            for number in range(1, count + 1)
        ]
    return text


def with_integers(raw: dict[str, Any]) -> dict[str, Any]:
    """Return a config with counts and sizes such as 64.0 as integers."""

    def read(key: str, value: Any) -> Any:
        if isinstance(value, dict):
            return with_integers(value)
        whole = key in _INTEGERS and isinstance(value, float) and value.is_integer()
        return int(value) if whole else value

    return {key: read(key, value) for key, value in raw.items()}


def check_sizes(config: object, *keys: str) -> None:
    """Raise CheckpointError unless these attributes are sizes."""
    for key in keys:
        value = getattr(config, key)
        if type(value) is not int or not 0 < value < 2**31:
            raise CheckpointError(f"config.json: {key} must be a positive integer, not {value!r}")


def check_number(key: str, value: Any, most: float = math.inf) -> None:
    """Raise CheckpointError unless a value is a positive, finite number."""
    if type(value) not in (int, float) or not 0 < value <= most or value == math.inf:
        bound = "" if most == math.inf else f" and at most {most}"
        raise CheckpointError(f"config.json: {key} must be above 0{bound}, not {value!r}")
