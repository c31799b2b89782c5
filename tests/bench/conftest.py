"""A size that a CPU can run, with experts, as `--synthetic` takes it."""

import json
from typing import Any

import mlx.core as mx
import pytest
from mlx_gemma_mtp.bench import synthetic

from mlx_gemma_mtp.model.drafter import Drafter
from mlx_gemma_mtp.model.target import Target

SHAPE: dict[str, Any] = {
    "model_type": "gemma4_text",
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_global_key_value_heads": 1,
    "head_dim": 32,
    "global_head_dim": 64,
    "attention_k_eq_v": True,
    "sliding_window": 64,
    "hidden_size_per_layer_input": 0,
}
EXPERTS = {
    "enable_moe_block": True,
    "num_experts": 16,
    "top_k_experts": 4,
    "moe_intermediate_size": 64,
}
DRAFTER = {
    "model_type": "gemma4_assistant",
    "text_config": SHAPE
    | {"num_hidden_layers": 4, "layer_types": ["sliding_attention"] * 3 + ["full_attention"]},
    "backbone_hidden_size": 64,
    "use_ordered_embeddings": False,
}


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("sizes") / "tiny.json"
    target = SHAPE | EXPERTS | {"num_hidden_layers": 6}
    path.write_text(json.dumps({"target": target, "drafter": DRAFTER}))
    return str(path)


@pytest.fixture
def pair(tiny: str) -> tuple[Target, Drafter]:
    target, drafter = synthetic.random_pair(tiny, mx.float32)
    return synthetic.draw(target), synthetic.draw(drafter)
