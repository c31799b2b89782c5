"""The tensors decide how weights are stored; what other tools packed is named, never guessed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from helpers.arrays import AFFINE, Arrays, assert_same_bits, quantize_arrays, to_mlx_names, write
from helpers.broken import load_refusal
from helpers.logits import assert_logits_agree, logits
from helpers.stored import CONFIG, WIDTH, quantized, rewritten
from mlx_gemma_mtp.errors import CheckpointError, UsageError
from mlx_gemma_mtp.files.quantization import is_quantized, stored_bits
from mlx_gemma_mtp.files.tensors import read_tensors
from mlx_gemma_mtp.files.weights import load_target, open_target

MXFP4 = {"group_size": 32, "bits": 4, "mode": "mxfp4"}
NVFP4 = {"group_size": 16, "bits": 4, "mode": "nvfp4"}
EIGHT = {"group_size": 64, "bits": 8}
EXPERTS = "model.layers.0.experts"
ROUTER, DOWN = "router.proj", "mlp.down_proj"

# What the block says besides the common format, and where. All describe the same tensors: routers
# in affine 8 bits, everything else in the common format.
BLOCKS: dict[str, tuple[dict[str, Any], Callable[[dict[str, Any]], dict[str, Any]]]] = {
    "an exception without a mode": (MXFP4, lambda block: {"quantization": block}),
    "the other name alone": (AFFINE, lambda block: {"quantization_config": block}),
    "both names": (NVFP4, lambda block: {"quantization": block, "quantization_config": block}),
    "in the text config": (
        MXFP4,
        lambda block: {"text_config": CONFIG | {"quantization_config": block}},
    ),
    "group sizes of null": (
        AFFINE,
        lambda block: {
            "quantization": {
                key: one | {"group_size": None} if isinstance(one, dict) else one
                for key, one in block.items()
            }
        },
    ),
    "exceptions not listed": (AFFINE, lambda block: {"quantization": AFFINE}),
    "other bits than the tensors": (AFFINE, lambda block: {"quantization": AFFINE | {"bits": 3}}),
    "no block": (NVFP4, lambda block: {}),
}


@pytest.mark.parametrize("case", BLOCKS)
def test_quantized_weights_load_whatever_the_block_says(
    mixture: Path, tmp_path: Path, case: str
) -> None:
    common, settings = BLOCKS[case]

    def format_of(path: str) -> dict[str, Any]:
        return EIGHT if path.endswith(ROUTER) else common

    arrays = quantize_arrays(to_mlx_names(mixture), format_of)
    block = common | {f"language_model.model.layers.{i}.{ROUTER}": EIGHT for i in range(4)}
    config = {"model_type": "gemma4", "text_config": CONFIG} | settings(block)
    folder = write(tmp_path / "stored", config, arrays)
    expected = load_target(mixture)
    nn.quantize(
        expected,
        class_predicate=lambda path, module: hasattr(module, "to_quantized") and format_of(path),
    )
    assert_same_bits(load_target(folder), expected)
    assert stored_bits(folder) == 4


@pytest.mark.parametrize("up", [None, EIGHT, MXFP4], ids=["unquantized", "8 bits", "mxfp4"])
def test_gate_and_up_maps_of_experts_may_be_in_different_formats(
    mixture: Path, tmp_path: Path, up: dict[str, Any] | None
) -> None:
    expert_names = ("experts.switch_glu.gate_proj", "experts.switch_glu.up_proj")

    def format_of(path: str) -> dict[str, Any] | None:
        if not path.endswith(expert_names) or ".layers.1." not in path:
            return None
        return AFFINE if path.endswith("gate_proj") else up

    plain = to_mlx_names(mixture)
    stored = write(tmp_path / "stored", CONFIG, quantize_arrays(plain, format_of))
    rounded = {
        name: mx.dequantize(*mx.quantize(array, **chosen), **chosen)
        if (chosen := format_of(name.removesuffix(".weight")))
        else array
        for name, array in plain.items()
    }
    expected = load_target(write(tmp_path / "rounded", CONFIG, rounded))
    found = load_target(stored)
    assert "up_proj" in found.layers[1].experts
    assert "gate_up_proj" in found.layers[0].experts
    assert_logits_agree(logits(found), logits(expected))
    experts, x = found.layers[1].experts, mx.random.normal((5, WIDTH))
    chosen = mx.array([[0, 1], [2, 3], [4, 5], [6, 7], [0, 7]], mx.uint32), mx.ones((5, 2))
    both = experts(x, *chosen, "all"), experts(x, *chosen, "chosen")
    np.testing.assert_allclose(*map(np.array, both), atol=1e-4)


@pytest.mark.parametrize("chosen", [None, AFFINE], ids=["unquantized", "quantized"])
def test_experts_stored_one_by_one_are_the_same_experts(
    mixture: Path, tmp_path: Path, chosen: dict[str, Any] | None
) -> None:
    together = quantize_arrays(to_mlx_names(mixture), lambda _: chosen)
    apart: Arrays = {}
    for name, array in together.items():
        stem, experts, rest = name.partition(".experts.switch_glu.")
        parts = enumerate(array) if experts else ()
        apart |= {f"{stem}.experts.{n}.{rest}": part for n, part in parts} or {name: array}
    assert len(apart) > len(together)
    found = load_target(write(tmp_path / "apart", CONFIG, apart))
    assert_same_bits(found, load_target(write(tmp_path / "together", CONFIG, together)))


def test_a_block_that_is_left_over_counts_for_nothing(mixture: Path, tmp_path: Path) -> None:
    folder = rewritten(mixture, tmp_path / "left", quantization=AFFINE | {"bits": 4})
    assert_same_bits(load_target(folder), load_target(mixture))
    assert not is_quantized(read_tensors(folder))
    assert stored_bits(folder) == 32
    assert_same_bits(load_target(folder, bits=4), load_target(mixture, bits=4))


def test_bits_for_quantized_weights_are_refused_without_any_block(
    mixture: Path, tmp_path: Path
) -> None:
    def change(arrays: Arrays) -> None:
        arrays |= quantized(arrays, "model.layers.0.mlp.up_proj.weight", **AFFINE)

    folder = rewritten(mixture, tmp_path / "one", change)
    with pytest.raises(UsageError, match="quantized already"):
        load_target(folder, bits=4)
    load_target(folder)


def packed(suffix: str, dtype: mx.Dtype, *more: str) -> Callable[[Arrays], None]:
    """Store the down maps as another tool does; their values don't matter."""

    def change(arrays: Arrays) -> None:
        for name in [name for name in arrays if name.endswith(f"{DOWN}.weight")]:
            stem, array = name.removesuffix("weight"), arrays.pop(name)
            arrays[stem + suffix] = mx.zeros((array.shape[0], array.shape[1] // 4), dtype)
            arrays |= {stem + part: mx.ones((array.shape[0], 1)) for part in more}

    return change


PACKED: dict[str, tuple[Callable[[Arrays], None], str | None, str]] = {
    "compressed-tensors": (
        packed("weight_packed", mx.int32, "weight_scale", "weight_shape"),
        "compressed-tensors",
        "compressed-tensors",
    ),
    "int8": (packed("weight", mx.int8, "weight_scale"), "compressed-tensors", "compressed-tensors"),
    "fp8": (packed("weight", mx.uint8, "weight_scale_inv"), "fp8", "fp8"),
    "fp8 without a config": (packed("weight", mx.uint8, "weight_scale_inv"), None, "another tool"),
    "AWQ": (packed("qweight", mx.int32, "qzeros", "scales"), "awq", "awq"),
    "GPTQ": (packed("qweight", mx.int32, "qzeros", "scales", "g_idx"), "gptq", "gptq"),
    "AWQ without a config": (packed("qweight", mx.int32, "scales"), None, "AWQ or GPTQ"),
    "bitsandbytes": (packed("weight", mx.uint8, "weight.absmax"), "bitsandbytes", "bitsandbytes"),
    "integers": (packed("weight", mx.uint32), None, "another tool"),
    "experts": (
        lambda arrays: arrays.update({f"{EXPERTS}.down_proj_packed": mx.ones((8, 64), mx.int32)}),
        None,
        "compressed-tensors",
    ),
    "experts as in gpt-oss": (
        lambda arrays: arrays.update({f"{EXPERTS}.down_proj_blocks": mx.ones((8, 64), mx.uint8)}),
        None,
        "MXFP4 as OpenAI packs it",
    ),
    "activations": (
        lambda arrays: arrays.update({"model.layers.0.self_attn.q_proj.input_scale": mx.ones(1)}),
        "modelopt",
        "modelopt",
    ),
}


@pytest.mark.parametrize("case", PACKED)
def test_weights_that_another_tool_packed_are_refused_with_its_name(
    mixture: Path, tmp_path: Path, case: str
) -> None:
    change, method, named = PACKED[case]
    block = {"quantization_config": {"quant_method": method}} if method else {}
    message = load_refusal(rewritten(mixture, tmp_path / "packed", change, **block), None)
    assert f"is quantized with {named} " in message
    assert "download" not in message
    assert "use the original checkpoint" in message


def test_what_to_use_instead_of_a_checkpoint_of_google_s_is_named(
    mixture: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "models--google--gemma-4-E4B-it-qat-w4a16-ct" / "snapshots" / "x"
    change, method, _ = PACKED["compressed-tensors"]
    rewritten(mixture, folder, change, quantization_config={"quant_method": method})
    message = load_refusal(folder, None)
    assert message.endswith("use google/gemma-4-E4B-it-qat-q4_0-unquantized")


@pytest.mark.parametrize("method", ["bitsandbytes", "compressed-tensors", None])
def test_full_precision_weights_load_whatever_tool_the_config_names(
    mixture: Path, tmp_path: Path, method: str | None
) -> None:
    block = {"quant_method": method, "config_groups": {"group_0": {"weights": {"num_bits": 4}}}}
    folder = rewritten(mixture, tmp_path / "full", quantization_config=block)
    assert_same_bits(load_target(folder), load_target(mixture))


NOT_MLX: dict[str, Callable[[Arrays], object]] = {
    "a global scale": lambda arrays: arrays.update({f"{UP}.global_scale": mx.ones((1,))}),
    "scales of another width": lambda arrays: arrays.update({f"{UP}.scales": mx.ones((64, 3))}),
    "16-bit packing": lambda arrays: arrays.update({f"{UP}.weight": mx.zeros((64, 32), mx.uint32)}),
    "biases alone": lambda arrays: arrays.pop(f"{UP}.scales"),
}
UP = "model.layers.0.mlp.up_proj"


@pytest.mark.parametrize("case", NOT_MLX)
def test_what_is_none_of_the_formats_is_refused_with_its_tensor(
    mixture: Path, tmp_path: Path, case: str
) -> None:
    def change(arrays: Arrays) -> None:
        arrays |= quantized(arrays, f"{UP}.weight", **AFFINE)
        NOT_MLX[case](arrays)

    with pytest.raises(CheckpointError, match=r"layers\.0\.mlp\.up_proj"):
        load_target(rewritten(mixture, tmp_path / "odd", change))


@pytest.mark.parametrize(
    "block",
    [
        {"quantization": AFFINE | {"mode": "x"}},
        {"quantization": AFFINE | {"layers.0.mlp.up_proj": {"bits": 4, "mode": "x"}}},
        {"quantization": "x"},
        {"quantization_config": [4]},
        {"quantize_activations": True},
    ],
    ids=str,
)
def test_settings_of_a_block_that_are_not_understood_are_refused(
    mixture: Path, tmp_path: Path, block: dict[str, Any]
) -> None:
    message = load_refusal(rewritten(mixture, tmp_path / "odd", **block), None)
    assert "quant" in message


def test_a_float16_checkpoint_is_used_in_bfloat16_where_weights_are_not_float32(
    mixture: Path, tmp_path: Path
) -> None:
    def halve(arrays: Arrays) -> None:
        arrays |= {name: array.astype(mx.float16) for name, array in arrays.items()}

    folder = rewritten(mixture, tmp_path / "half", halve)
    assert open_target(folder).dtype == mx.bfloat16
    assert open_target(folder, dtype=mx.float32).dtype == mx.float32
    assert open_target(mixture).dtype == mx.float32
