"""What a config.json says is honoured as Transformers does, or refused by name."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from helpers.random_pair import EXPERTS, SHAPE
from mlx_gemma_mtp.errors import CheckpointError
from mlx_gemma_mtp.model.config import DrafterConfig, TargetConfig
from mlx_gemma_mtp.model.rope import Rope

CONFIG = SHAPE | EXPERTS
SLIDING = {"rope_type": "default", "rope_theta": 10_000.0}
FULL = {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1_000_000.0}


def ropes(sliding: Any = SLIDING, full: Any = FULL, **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"sliding_attention": sliding, "full_attention": full}} | more


# Spellings, and whether they are read; the others are refused with this word.
SPELLINGS: dict[str, tuple[dict[str, Any], str | None]] = {
    "missing": ({}, None),
    "null": ({"rope_parameters": None}, None),
    "as published": (ropes(), None),
    "other numbers": (ropes(SLIDING | {"rope_theta": 5e5}, FULL | {"rope_theta": 77}), None),
    "another share": (ropes(full=FULL | {"partial_rotary_factor": 0.6}), None),
    "the whole head": (ropes(full={"rope_type": "proportional", "rope_theta": 1e6}), None),
    "factor": (ropes(full=FULL | {"factor": 8.0}), None),
    "an integer factor": (ropes(full=FULL | {"factor": 8}), None),
    "type": (ropes({"type": "default", "rope_theta": 1e4}, FULL | {"type": "x"}), None),
    "no type": (ropes({"rope_theta": 1e4}), None),
    "default in full layers": (ropes(full=SLIDING), None),
    "the original length": (ropes(full=FULL | {"original_max_position_embeddings": 64}), None),
    "more keys next to the kinds": (
        {"rope_parameters": ropes()["rope_parameters"] | {"rope_theta": None, "rope_type": "x"}},
        None,
    ),
    "older keys that agree": (ropes(rope_theta=1e6, rope_local_base_freq=1e4), None),
    "empty": ({"rope_parameters": {}}, "rope_parameters.sliding_attention"),
    "flat": ({"rope_parameters": FULL}, "rope_parameters.sliding_attention"),
    "one kind": ({"rope_parameters": {"sliding_attention": SLIDING}}, "full_attention"),
    "one kind null": (ropes(full=None), "full_attention"),
    "no theta": (ropes(full={"rope_type": "proportional"}), "full_attention.rope_theta"),
    "linear": (ropes(full=FULL | {"rope_type": "linear", "factor": 8.0}), "linear"),
    "yarn": (ropes(full=FULL | {"rope_type": "yarn", "factor": 8.0}), "yarn"),
    "type yarn": (ropes({"type": "yarn", "rope_theta": 1e4}), "yarn"),
    "a factor of default": (ropes(SLIDING | {"factor": 4.0}), "factor"),
    "a share of default": (ropes(SLIDING | {"partial_rotary_factor": 0.5}), "partial_rotary"),
    "factor 0": (ropes(full=FULL | {"factor": 0}), "factor"),
    "an unknown key": (ropes(full=FULL | {"attention_factor": 2.0}), "attention_factor"),
    "another older theta": (ropes(rope_theta=5e5), "rope_theta"),
    "an older theta alone": ({"rope_theta": 5e5}, "rope_theta"),
    "another local theta": (ropes(rope_local_base_freq=5e5), "rope_local_base_freq"),
    "older scaling": ({"rope_scaling": {"rope_type": "linear", "factor": 8.0}}, "rope_scaling"),
}


def rotated(rope: Rope, head_dim: int) -> np.ndarray:
    """Return a vector of ones at position 3, rotated: cos - sin, and then cos + sin."""
    return np.array(rope(mx.ones((1, 1, 1, head_dim)), mx.array([3])))[0, 0, 0]


def rotated_by_transformers(settings: dict[str, Any]) -> dict[str, np.ndarray]:
    import torch
    from transformers import Gemma4TextConfig
    from transformers.models.gemma4.modeling_gemma4 import Gemma4TextRotaryEmbedding

    own = {key: value for key, value in (CONFIG | settings).items() if key != "model_type"}
    module = Gemma4TextRotaryEmbedding(Gemma4TextConfig(**own))
    found = {}
    for kind in ("sliding_attention", "full_attention"):
        cos, sin = (part[0, 0].numpy() for part in module(torch.ones(1), torch.tensor([[3]]), kind))
        half = len(cos) // 2
        found[kind] = np.concatenate([(cos - sin)[:half], (cos + sin)[half:]])
    return found


@pytest.mark.torch
@pytest.mark.parametrize("case", [case for case in SPELLINGS if SPELLINGS[case][1] is None])
def test_rotary_settings_are_read_as_transformers_reads_them(case: str) -> None:
    settings = SPELLINGS[case][0]
    config, expected = TargetConfig.from_dict(CONFIG | settings), rotated_by_transformers(settings)
    for kind, rope in config.rope.items():
        head_dim = len(expected[kind])
        assert head_dim == config.layers[config.last_owner(kind)].head_dim
        np.testing.assert_allclose(rotated(Rope(head_dim, rope), head_dim), expected[kind], 1e-5)


@pytest.mark.parametrize("case", [case for case in SPELLINGS if SPELLINGS[case][1]])
def test_other_rotary_settings_are_refused_by_name(case: str) -> None:
    settings, word = SPELLINGS[case]
    with pytest.raises(CheckpointError, match=word):
        TargetConfig.from_dict(CONFIG | settings)


def test_a_factor_changes_the_rotation() -> None:
    configs = [
        TargetConfig.from_dict(CONFIG | ropes(full=FULL | {"factor": f})) for f in (1.0, 8.0)
    ]
    one, eight = (rotated(Rope(32, config.rope["full_attention"]), 32) for config in configs)
    assert np.abs(one - eight).max() > 0.1


KINDS = SHAPE["layer_types"]
REFUSED: dict[str, dict[str, Any]] = {
    "Gemma4DSparkModel": {"architectures": ["Gemma4DSparkModel"]},
    "Gemma4ForSequenceClassification": {"architectures": ["Gemma4ForSequenceClassification"]},
    "attention_bias": {"attention_bias": True},
    "hidden_activation": {"hidden_activation": "gelu"},
    "use_bidirectional_attention": {"use_bidirectional_attention": "all"},
    "is_causal": {"is_causal": False},
    "layer_types": {"layer_types": KINDS[:-1]},
    "the last of layer_types": {"layer_types": KINDS[::-1]},
    "sliding_window_pattern": {"layer_types": None, "sliding_window_pattern": 2},
    "per_layer_config.3": {"per_layer_config": {"3": {"head_dim": 32, "sliding_window": 4}}},
    "per_layer_config.4": {"per_layer_config": {"4": {"head_dim": 32}}},
    "query heads": {"num_key_value_heads": 3},
    "hidden_size": {"hidden_size": 64.5},
    "num_kv_shared_layers": {"num_kv_shared_layers": 5},
    "vocab_size_per_layer_input": {
        "hidden_size_per_layer_input": 8,
        "vocab_size": 8,
        "vocab_size_per_layer_input": 7,
    },
}


@pytest.mark.parametrize("word", REFUSED)
def test_settings_that_are_not_supported_are_refused_by_name(word: str) -> None:
    with pytest.raises(CheckpointError, match=word):
        TargetConfig.from_dict(CONFIG | REFUSED[word])


def test_a_drafter_with_keys_and_values_of_its_own_is_refused() -> None:
    def config(shared: int | None) -> dict[str, Any]:
        text = SHAPE | {"num_kv_shared_layers": shared}
        return {"model_type": "gemma4_assistant", "text_config": text}

    assert (
        len({DrafterConfig.from_dict(config(shared)).num_kv_layers for shared in (None, 0, 4)}) == 1
    )
    with pytest.raises(CheckpointError, match="num_kv_shared_layers"):
        DrafterConfig.from_dict(config(2))


@pytest.mark.parametrize("count", [1, 6, 8])
def test_without_layer_types_every_sixth_layer_and_the_last_are_full(count: int) -> None:
    text = SHAPE | {"layer_types": None, "num_hidden_layers": count, "num_kv_shared_layers": count}
    config = DrafterConfig.from_dict({"model_type": "gemma4_assistant", "text_config": text})
    full = [layer.kind == "full_attention" for layer in config.layers]
    assert full == [number % 6 == 0 or number == count for number in range(1, count + 1)]


HARMLESS: dict[str, Any] = {
    "architectures": ["Gemma4UnifiedForConditionalGeneration"],
    "attention_dropout": 0.1,
    "initializer_range": 0.5,
    "use_cache": False,
    "unsloth_version": "2026.6",
    "use_bidirectional_attention": "vision",
    "attention_bias": None,
    "sliding_window_pattern": 4,
    "_name_or_path": "x",
    "rope_scaling": None,
}


def test_keys_that_change_nothing_change_nothing() -> None:
    assert TargetConfig.from_dict(CONFIG | HARMLESS) == TargetConfig.from_dict(CONFIG)


def test_counts_may_be_written_as_floats() -> None:
    def floats(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: floats(one) for key, one in value.items()}
        return float(value) if type(value) is int else value

    plain = CONFIG | {"per_layer_config": {"03": {"head_dim": 32, "num_key_value_heads": 1}}}
    found = TargetConfig.from_dict(floats(plain))
    assert repr(found) == repr(TargetConfig.from_dict(plain))
    assert (
        TargetConfig.from_dict(CONFIG | {"final_logit_softcapping": 30}).final_logit_softcapping
        == 30
    )
