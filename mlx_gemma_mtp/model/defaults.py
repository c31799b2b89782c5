"""What a config.json leaves to the defaults of Transformers' Gemma 4 configuration classes."""

from __future__ import annotations

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
ROPE_DEFAULTS: dict[str, dict[str, Any]] = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
    "full_attention": {
        "rope_type": "proportional",
        "partial_rotary_factor": 0.25,
        "rope_theta": 1_000_000.0,
    },
}


def text_section(raw: dict[str, Any]) -> dict[str, Any]:
    """The text part of a config, with Transformers' defaults for missing keys."""
    section = raw.get("text_config", raw)
    if not isinstance(section, dict):
        raise CheckpointError("config.json: text_config must be an object")
    unified = "unified" in str(section.get("model_type", raw.get("model_type")))
    text = _TEXT_DEFAULTS | (_UNIFIED_DEFAULTS if unified else {})
    text |= {key: value for key, value in section.items() if value is not None or key not in text}
    unsupported = {
        "attention_bias": bool(text.get("attention_bias")),
        "use_bidirectional_attention": text.get("use_bidirectional_attention") == "all",
        "hidden_activation": text["hidden_activation"] != "gelu_pytorch_tanh",
    }
    for key, bad in unsupported.items():
        if bad:
            raise CheckpointError(f"config.json: no Gemma 4 text model has {key}={text[key]!r}")
    return text
