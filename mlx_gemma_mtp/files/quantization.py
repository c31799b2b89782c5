"""How the weights of a checkpoint are stored: in MLX's formats, or packed by another tool.

The tensors decide. A `quantization` block in config.json can be missing, be left over from before
the weights were dequantized, or not list every exception; shapes and types can't be wrong. Works on
shapes and types alone; reads no weights.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import mlx.core as mx

from mlx_gemma_mtp.errors import CheckpointError
from mlx_gemma_mtp.files.checkpoint import ADAPTERS, original_of, read_model_config
from mlx_gemma_mtp.files.tensors import FLOATS, StoredTensor, is_text, read_tensors


class HasShape(Protocol):
    """An array, or a tensor that is still in its file."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> mx.Dtype: ...


class StoredFormat(NamedTuple):
    """How the weight of one module is quantized; as `mx.quantize` takes it."""

    group_size: int
    bits: int
    mode: str = "affine"


# What other tools call what they pack: patterns of the last part of a name.
_BY_NAME = {
    r"(weight|\w+_proj)_packed": "compressed-tensors",
    r"(weight|\w+_proj)_scale_inv": "fp8",
    r"(weight|\w+_proj)_scale_2": "ModelOpt",
    r"((weight|\w+_proj|input|output|k|v)_scale|weight_(shape|zero_point))": "fp8 or int8",
    r"(weight|\w+_proj)_blocks": "MXFP4 as OpenAI packs it",
    r"qweight|qzeros": "AWQ or GPTQ",
    r"g_idx": "GPTQ",
    r"absmax|quant_map|SCB|bitsandbytes__\w+": "bitsandbytes",
    r"_data": "Quanto",
}
_ADAPTED = re.compile(r"lora_|modules_to_save|base_layer|original_module")
_AFFINE_BITS, _AFFINE_GROUPS = (1, 2, 3, 4, 5, 6, 8), (32, 64, 128)
_BY_SHAPE = {(32, 4): "mxfp4", (32, 8): "mxfp8", (16, 4): "nvfp4"}  # by group size and bits
# Modules whose rows are as wide as a hidden state.
_FROM_HIDDEN = (".q_proj", ".gate_proj", ".up_proj", ".gate_up_proj")
MODES = ("affine", *_BY_SHAPE.values())


def is_quantized(tensors: Mapping[str, HasShape]) -> bool:
    """Return True if any of these tensors, by our names, is quantized in one of MLX's formats."""
    return any(name.endswith(".scales") for name in tensors)


def format_of(path: str, width: int, tensors: Mapping[str, HasShape]) -> StoredFormat | None:
    """Return how the module at this path is stored; None if it is not quantized.

    width: of the weight's rows, as config.json has it. Raises CheckpointError for shapes
    that belong to no format of MLX.
    """
    weight, scales = (tensors.get(f"{path}.{part}") for part in ("weight", "scales"))
    if weight is None or scales is None:
        return None
    if f"{path}.global_scale" in tensors:
        raise CheckpointError(
            f"{path} is in nvfp4 with a global scale, which is not supported: quantize the model "
            "again without it, or in another mode"
        )
    affine = mx.issubdtype(scales.dtype, mx.floating)
    num_groups, packed = scales.shape[-1], 32 * weight.shape[-1]
    if weight.dtype == mx.uint32 and num_groups and not width % num_groups and not packed % width:
        group_size, bits = width // num_groups, packed // width
        mode = "affine" if affine else _BY_SHAPE.get((group_size, bits))
        if mode and (not affine or (bits in _AFFINE_BITS and group_size in _AFFINE_GROUPS)):
            return StoredFormat(group_size, bits, mode)
    raise CheckpointError(
        f"tensor {path}.weight has shape {list(weight.shape)} and scales {list(scales.shape)}, "
        f"which is not one of MLX's formats for rows of {width}"
    )


def stored_bits(folder: Path) -> int | None:
    """Return the bits of most weights of a model; None if it is damaged or incomplete.

    By the headers of its files: a config.json can't be trusted.
    """
    sizes: Counter[int] = Counter()
    try:
        width, tensors = read_model_config(folder).hidden_size, read_tensors(folder)
        for name, tensor in tensors.items():
            path, _, part = name.rpartition(".")
            if part == "weight" and path.endswith(_FROM_HIDDEN):
                chosen = format_of(path, width, tensors)
                bits = 8 * tensor.dtype.size if chosen is None else chosen.bits
                sizes[bits] += tensor.nbytes * 8 // bits
    except CheckpointError:
        return None
    return max(sizes, key=sizes.__getitem__, default=None)


def check_readable(
    folder: Path, config: Mapping[str, Any], tensors: Mapping[str, StoredTensor]
) -> None:
    """Raise CheckpointError if another tool packed the weights, or if they hold an adapter.

    config: the parsed config.json. tensors: by our names. A quantization block alone is no sign:
    tools leave it behind when they dequantize.
    """
    for adapter in ADAPTERS:
        if (folder / adapter).exists():
            raise CheckpointError(
                f"{folder} has an adapter next to its weights ({adapter}): merge it into them, or "
                "move it away"
            )
    for name, tensor in tensors.items():
        if not is_text(name):
            continue
        if _ADAPTED.search(name):
            raise CheckpointError(
                f"{folder} holds an adapter that is not merged (tensor {tensor.name}): merge it "
                "into its model first, for example with PEFT's merge_and_unload"
            )
        last = name.rpartition(".")[2]
        by_name = next((who for key, who in _BY_NAME.items() if re.fullmatch(key, last)), None)
        packed = last == "weight" and len(tensor.shape) > 1 and tensor.code not in FLOATS
        packed &= name.removesuffix("weight") + "scales" not in tensors or tensor.code != "U32"
        if packed or by_name:
            by_type = "fp8" if tensor.code.startswith("F8") else "another tool"
            who = _method(config) or by_name or by_type
            raise CheckpointError(
                f"{folder} is quantized with {who} (tensor {tensor.name}, {tensor.code}), which is "
                f"not supported: use {original_of(folder)}"
            )
    _check_block(config)


def _method(config: Mapping[str, Any]) -> str | None:
    """Return the tool that config.json names."""
    for block in _blocks(config):
        if method := block.get("quant_method") or block.get("quant_type"):
            return str(method)
    return None


def _check_block(config: Mapping[str, Any]) -> None:
    """Raise CheckpointError for settings of MLX's blocks that change the output unseen."""
    if config.get("quantize_activations"):
        raise CheckpointError("config.json: quantize_activations is not supported")
    for block in _blocks(config):
        for path, entry in {"all": block, **block}.items():
            mode = entry.get("mode", "affine") if isinstance(entry, dict) else "affine"
            if mode not in MODES:
                raise CheckpointError(
                    f"config.json: the quantization mode of {path} is {mode!r}; it must be one of "
                    f"{', '.join(MODES)}"
                )


def _blocks(config: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the blocks about quantization in a config.json. Raises CheckpointError."""
    for section in (config, config.get("text_config")):
        for key in ("quantization", "quantization_config"):
            block = section.get(key) if isinstance(section, dict) else None
            if isinstance(block, dict):
                yield block
            elif block is not None:
                raise CheckpointError(f"config.json: {key} is not a mapping")
