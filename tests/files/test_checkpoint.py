"""The same model from every layout of files: names, shards, spellings, MLX's own checkpoints."""

import json
from pathlib import Path
from typing import Any

import mlx.nn as nn
import numpy as np
import pytest
from mlx_lm import utils as mlx_lm

from helpers.arrays import (
    AFFINE,
    assert_same_bits,
    parameters,
    quantize_arrays,
    read_arrays,
    to_mlx_names,
    write,
)
from helpers.checkpoints import VOCAB, PairPaths, make_pair, to_global_spelling
from helpers.logits import assert_logits_agree, capped_logits, logits, logits_of_mlx_lm
from mlx_gemma_mtp.files.checkpoint import read_config
from mlx_gemma_mtp.files.weights import load_drafter, load_target

pytestmark = pytest.mark.torch

MOE = "26B-A4B"
LAYOUTS: dict[str, dict[str, bool]] = {
    "text-only, sharded": {"sharded": True},
    "text-only, older spelling": {"older_spelling": True},
    "with towers": {"multimodal": True},
    "with towers, sharded": {"multimodal": True, "sharded": True},
    "with towers, older spelling": {"multimodal": True, "older_spelling": True},
}


@pytest.fixture(scope="module")
def plain(kind: str, tmp_path_factory: pytest.TempPathFactory, seed: int) -> PairPaths:
    """This kind's pair in the simplest layout: text-only names, one file each."""
    return make_pair(kind, tmp_path_factory.mktemp("plain"), seed)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_logits_bit_for_bit(
    plain: PairPaths, kind: str, layout: str, tmp_path: Path, seed: int
) -> None:
    options = dict(LAYOUTS[layout])
    older_spelling = options.pop("older_spelling", False)
    other = make_pair(kind, tmp_path, seed, **options)
    if older_spelling:
        for folder in other:
            to_global_spelling(folder)
            assert "per_layer_config" not in (folder / "config.json").read_text()
    names = read_arrays(other.target)
    num_files = len(list(other.target.glob("*.safetensors")))
    assert (num_files > 1) == options.get("sharded", False)
    assert any("vision" in name for name in names) == options.get("multimodal", False)
    assert "model.language_model.norm.weight" in names or not options.get("multimodal")

    targets = [load_target(pair.target) for pair in (plain, other)]
    np.testing.assert_array_equal(logits(targets[0]), logits(targets[1]))
    drafters = [
        load_drafter(pair.drafter, target.config)
        for pair, target in zip((plain, other), targets, strict=True)
    ]
    assert drafters[0].config == drafters[1].config
    assert_same_bits(*drafters)


@pytest.mark.parametrize("kind", ["E2B", "E4B"])
def test_key_value_weights_of_layers_that_share_them_are_not_read(
    kind: str, tmp_path: Path, seed: int
) -> None:
    pair = make_pair(kind, tmp_path, seed, multimodal=True)
    target = load_target(pair.target)
    shared = [i for i, layer in enumerate(target.config.layers) if not layer.owns_kv]
    assert shared
    for index in shared:
        stem = f"layers.{index}.self_attn."
        assert f"model.language_model.{stem}k_proj.weight" in read_arrays(pair.target)
        assert {name for name in parameters(target) if name.startswith(stem)} == {
            f"{stem}{part}.weight" for part in ("q_proj", "q_norm", "o_proj")
        }


OVERRIDES: dict[str, dict[str, Any] | None] = {
    "router.proj": {"group_size": 64, "bits": 8},
    "layers.1.mlp.down_proj": {"group_size": 32, "bits": 8},
    "layers.2.experts.switch_glu.gate_proj": {"group_size": 32, "bits": 8},
    "layers.2.experts.switch_glu.up_proj": {"group_size": 32, "bits": 8},
    "layers.2.self_attn.q_proj": {"group_size": 32, "bits": 4, "mode": "mxfp4"},
    "layers.0.mlp.gate_proj": None,  # not quantized
}


def override(path: str) -> dict[str, Any] | None:
    """Return the format of the module with this name in an MLX checkpoint."""
    for suffix, own in OVERRIDES.items():
        if path.endswith(suffix):
            return None if own is None else AFFINE | own
    return AFFINE


@pytest.mark.parametrize("kind", ["E2B", MOE])
@pytest.mark.parametrize("common_mode", ["affine", None])  # older converters leave it out
def test_an_mlx_checkpoint_equals_quantizing_in_memory_as_its_block_says(
    kind: str, common_mode: str | None, tmp_path: Path, seed: int
) -> None:
    plain = make_pair(kind, tmp_path, seed).target
    arrays = quantize_arrays(to_mlx_names(plain), override)
    modules = {name.removesuffix(".weight") for name in to_mlx_names(plain)}
    block: dict[str, Any] = dict(AFFINE)
    if common_mode is None:
        del block["mode"]
    for module in modules:
        if (own := override(module)) != AFFINE:
            block[module] = False if own is None else own
    config = {"model_type": "gemma4", "text_config": read_config(plain), "quantization": block}
    found = load_target(write(tmp_path / "mlx", config, arrays))

    def in_memory(path: str, module: nn.Module) -> dict[str, Any] | bool:
        if not hasattr(module, "to_quantized"):
            return False
        theirs = path.replace("experts.gate_up_proj", "experts.switch_glu.gate_proj")
        return override(theirs) or False

    expected = load_target(plain)
    nn.quantize(expected, class_predicate=in_memory)
    assert_same_bits(found, expected)
    np.testing.assert_array_equal(logits(found), logits(expected))
    assert found.layers[1].mlp.down_proj.bits == 8
    assert isinstance(found.layers[0].mlp.gate_proj, nn.Linear)
    if kind == MOE:
        assert found.layers[0].router.proj.bits == 8
        assert found.layers[2].experts.gate_up_proj.group_size == 32


@pytest.mark.parametrize(
    ("kind", "wrapped", "bits"),
    [
        ("E2B", False, None),
        ("E2B", True, 4),
        ("12B", True, None),
        ("12B", True, 8),
        (MOE, True, None),
        (MOE, False, 4),
        (MOE, True, 8),
        ("31B", False, None),
        ("31B", True, 4),
    ],
)
def test_a_checkpoint_of_mlx_lm_gives_the_same_logits_as_in_mlx_lm(
    kind: str, wrapped: bool, bits: int | None, tmp_path: Path, seed: int
) -> None:
    source, folder = make_pair(kind, tmp_path, seed, multimodal=wrapped).target, tmp_path / "saved"
    to_global_spelling(source)  # mlx-lm does not read per_layer_config
    config = read_config(source)
    # Transformers omits values that equal its defaults; mlx-lm's defaults are E2B's.
    text = config.get("text_config", config)
    text |= {
        key: text.get(key, 0) for key in ("hidden_size_per_layer_input", "use_double_wide_mlp")
    }
    (source / "config.json").write_text(json.dumps(config))
    model, config = mlx_lm.load_model(source, model_config={"vocab_size": VOCAB})
    if bits is not None:
        model, config = mlx_lm.quantize_model(model, config, 64, bits)
    mlx_lm.save_model(folder, model)
    mlx_lm.save_config(config, folder / "config.json")

    assert any(name.startswith("language_model.") for name in read_arrays(folder)) == wrapped
    assert ("quantization" in read_config(folder)) == (bits is not None)
    assert_logits_agree(capped_logits(load_target(folder)), logits_of_mlx_lm(model))
