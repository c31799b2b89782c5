"""From a checkpoint's folder to a model with its weights.

A model is first opened: MLX reads an array when it is used, so bytes can be counted before any are
read. Every parameter must be there in the right shape; other tensors stay in the files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlx_gemma_mtp.decode.params import is_count
from mlx_gemma_mtp.device import backend
from mlx_gemma_mtp.errors import CheckpointError, UsageError, one_line
from mlx_gemma_mtp.files.checkpoint import (
    canonical_name,
    read_config,
    read_drafter_config,
    read_header,
    read_target_config,
    weight_files,
)
from mlx_gemma_mtp.model.config import TargetConfig, check_pair
from mlx_gemma_mtp.model.drafter import Drafter
from mlx_gemma_mtp.model.target import Target

Model = TypeVar("Model", Target, Drafter)
Arrays = dict[str, mx.array]


class HasShape(Protocol):
    """An array, or a tensor that is still in its file."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> mx.Dtype: ...


Stored = TypeVar("Stored", bound=HasShape)
Format = Callable[[str, nn.Module], dict[str, Any] | bool]  # of a module, by its path

GROUP_SIZE = 64
# The modules that low precision hurts most keep 8 bits, whatever the others get.
EIGHT_BIT = ("router.proj", "embed_tokens", "embed_tokens_per_layer", "masked_embedding.centroids")


def load_target(folder: Path, *, bits: int | None = None, dtype: mx.Dtype | None = None) -> Target:
    """Return the target in a folder, with its weights in memory.

    bits: 4 or 8 quantizes while loading. dtype: the type of everything that is not quantized; by
    default `default_dtype`. Raises CheckpointError, UsageError.
    """
    return _read(open_target(folder, bits=bits, dtype=dtype or default_dtype()))


def load_drafter(
    folder: Path, target: TargetConfig, *, bits: int | None = None, dtype: mx.Dtype | None = None
) -> Drafter:
    """Return the drafter in a folder, for this target; arguments and errors as `load_target`."""
    return _read(open_drafter(folder, target, bits=bits, dtype=dtype or default_dtype()))


def open_target(folder: Path, *, bits: int | None = None, dtype: mx.Dtype | None = None) -> Target:
    """Return the target in a folder, with weights that MLX reads when they are used.

    Arguments and errors as `load_target`, but dtype is the checkpoint's own by default.
    """
    return _open(Target(read_target_config(folder)), folder, bits, dtype)


def open_drafter(
    folder: Path, target: TargetConfig, *, bits: int | None = None, dtype: mx.Dtype | None = None
) -> Drafter:
    """Return the drafter in a folder, for this target; otherwise as `open_target`."""
    config = read_drafter_config(folder)
    check_pair(target, config)
    return _open(Drafter(config), folder, bits, dtype)


def default_dtype() -> mx.Dtype | None:
    """Return the type that weights are loaded in here; None for the checkpoint's own.

    MLX's CPU backend multiplies experts in float32 only, and is slower in bfloat16.
    """
    return mx.float32 if backend() == "cpu" else None


def drafter_bits(target: Path, drafter: Path) -> int | None:
    """Return the bits to load a drafter with, so that it is quantized if its target is on disk.

    4 or 8, like the target; None to leave it as it is. Its tied head keeps 8 bits. With the demo
    pair, whose drafts are accepted 95.7% of the time, 8 bits cost nothing and 4 bits 0.1 points.
    """
    stored, own = read_config(target), read_config(drafter)
    quantization = stored.get("quantization")
    width = own.get("text_config", {}).get("hidden_size", 0)
    if not quantization or own.get("quantization") or width % GROUP_SIZE:
        return None
    return 4 if quantization.get("bits", 8) <= 4 else 8


def check_bits(bits: int) -> None:
    """Raise UsageError unless `bits=` takes this."""
    if not is_count(bits) or bits not in (4, 8):
        raise UsageError(f"bits must be 4 or 8, not {bits!r}")


def quantize(model: Target | Drafter, bits: int) -> None:
    """Quantize as `bits=` does, sensitive modules to 8 bits. Computes nothing yet.

    Raises UsageError.
    """
    check_bits(bits)

    def format_of(path: str, _: nn.Module) -> dict[str, Any]:
        return {"group_size": GROUP_SIZE, "bits": 8 if path.endswith(EIGHT_BIT) else bits}

    _quantize(model, format_of)


def num_bytes(model: nn.Module) -> int:
    """Return the bytes of all its parameters. Reads none of them."""
    return sum(array.nbytes for array in dict(tree_flatten(model.parameters())).values())


def loading_bytes(model: Target | Drafter, folder: Path) -> int:
    """Return the most bytes held at once while this opened model is loaded. Reads no weights.

    Layers are loaded one after another, then everything else at once. A tensor that is cast or
    quantized is held together with the result.
    """
    final = dict(tree_flatten(model.parameters()))
    dtype = final["norm.weight"].dtype
    passing: Counter[str] = Counter()  # by the number of the layer
    for name, array in _read_arrays(folder).items():
        if name in final:
            typed = array.size * type_for(name, array, dtype).size
            layer = name.split(".")[1] if name.startswith("layers.") else ""
            passing[layer] += sum({array.nbytes, typed} - {final[name].nbytes})
    at_the_end = num_bytes(model) + passing.pop("", 0)
    layers = sum(num_bytes(layer) for layer in model.layers)
    return max(at_the_end, layers + max(passing.values(), default=0))


def dtype_name(dtype: mx.Dtype) -> str:
    """Return `bfloat16` and the like."""
    return str(dtype).rpartition(".")[2]


def type_for(name: str, array: mx.array, dtype: mx.Dtype) -> mx.Dtype:
    """Return the type that a stored array is used in, if floating-point ones are in `dtype`."""
    if mx.issubdtype(array.dtype, mx.floating):
        return dtype
    return mx.int32 if name.endswith("token_ordering") else array.dtype


def open_arrays(model: Target | Drafter, folder: Path) -> Arrays:
    """Return the arrays in a folder under our names; MLX reads them when they are used.

    Modules that are quantized there become quantized in the model. Raises CheckpointError.
    """
    quantization = read_config(folder).get("quantization")
    if not isinstance(quantization, dict | None):
        raise CheckpointError(f"{folder}: config.json: quantization is not a mapping")
    arrays = _read_arrays(folder)
    if quantization is not None:
        try:
            _quantize(model, _stored_format(quantization, arrays))
        except (TypeError, ValueError, ZeroDivisionError) as error:
            raise CheckpointError(
                f"{folder}: config.json: quantization: {one_line(error)}"
            ) from None
    return arrays


def fill(
    model: Target | Drafter, arrays: Arrays, folder: Path, dtype: mx.Dtype | None = None
) -> None:
    """Make the arrays that `open_arrays` returned the model's parameters. Computes nothing yet.

    dtype: as for `open_target`. Raises CheckpointError if one is missing or doesn't fit.
    """
    wanted = dict(tree_flatten(model.parameters()))
    for name, parameter in wanted.items():
        checked(folder, name, arrays.get(name), parameter.shape, parameter.dtype)
    dtype = dtype or arrays["norm.weight"].dtype
    typed = {name: arrays[name].astype(type_for(name, arrays[name], dtype)) for name in wanted}
    model.load_weights(list(typed.items()))


def checked(
    folder: Path, name: str, found: Stored | None, shape: tuple[int, ...], dtype: mx.Dtype
) -> Stored:
    """Return a tensor, or raise CheckpointError if it is missing or isn't what a model needs."""
    if found is None:
        raise CheckpointError(f"{folder}: tensor {name} is missing: download it again")
    real = mx.issubdtype(found.dtype, mx.floating)
    if mx.issubdtype(dtype, mx.floating) and not real:
        raise CheckpointError(
            f"{folder}: tensor {name} holds {found.dtype}, not floating-point numbers: "
            "quantized by another tool? Use the original checkpoint"
        )
    if found.shape != shape:
        raise CheckpointError(
            f"{folder}: tensor {name} has shape {list(found.shape)}, but config.json asks "
            f"for {list(shape)}: weights and config are of different models"
        )
    return found


def _open(model: Model, folder: Path, bits: int | None, dtype: mx.Dtype | None) -> Model:
    if bits is not None:
        check_bits(bits)
        if read_config(folder).get("quantization") is not None:
            raise UsageError(f"{folder} is quantized already: leave bits out")
    fill(model, open_arrays(model, folder), folder, dtype)
    if bits is not None:
        quantize(model, bits)
    model.eval()
    return model


def _read(model: Model) -> Model:
    """Read an opened model's weights, one layer after another."""
    for layer in model.layers:
        mx.eval(layer.parameters())
    mx.eval(model.parameters())
    return model


def _read_arrays(folder: Path) -> Arrays:
    """Return all arrays of a checkpoint under our names; MLX reads them when they are used."""
    arrays: Arrays = {}
    for path in weight_files(folder):
        read_header(path)
        try:
            stored = mx.load(str(path))
        except RuntimeError as error:
            raise CheckpointError(f"{path} cannot be read: {error}") from None
        assert isinstance(stored, dict)  # safetensors always are
        arrays |= {canonical_name(name): array for name, array in stored.items()}
    return _join_gate_up(arrays)


def _join_gate_up(arrays: Arrays) -> Arrays:
    """MLX checkpoints store the experts' gate and up maps apart; here they are one product.

    The rows of a quantized map are independent, so joining keeps every bit.
    """
    joined: Arrays = {}
    for name, array in arrays.items():
        if ".experts.gate_proj." in name:
            up = arrays.get(name.replace(".gate_proj.", ".up_proj."))
            if up is None or up.shape != array.shape:
                raise CheckpointError(f"tensor {name} has no up_proj of the same shape")
            name = name.replace(".gate_proj.", ".gate_up_proj.")
            joined[name] = mx.concatenate([array, up], axis=1)
        elif ".experts.up_proj." not in name:
            joined[name] = array
    return joined


def _quantize(model: nn.Module, format_of: Format) -> None:
    def checked(path: str, module: nn.Module) -> dict[str, Any] | bool:
        if not hasattr(module, "to_quantized"):
            return False
        chosen = format_of(path, module)
        width = module.weight.shape[-1]
        if isinstance(chosen, dict) and width % chosen["group_size"]:
            raise CheckpointError(
                f"cannot quantize {path}: its width {width} is not a multiple of the group size "
                f"{chosen['group_size']}; load it without bits"
            )
        return chosen

    nn.quantize(model, class_predicate=checked)


def _stored_format(quantization: dict[str, Any], arrays: Arrays) -> Format:
    """Return the format of each module, from an MLX checkpoint's common one and its exceptions."""
    keys = ("group_size", "bits", "mode")
    common = {key: quantization[key] for key in keys if key in quantization}
    own = {}
    for path, entry in quantization.items():
        if isinstance(entry, dict):
            mine = canonical_name(f"{path}.weight").removesuffix(".weight")
            own[mine.replace(".experts.gate_proj", ".experts.gate_up_proj")] = entry

    def format_of(path: str, _: nn.Module) -> dict[str, Any] | bool:
        if f"{path}.scales" not in arrays:
            return False
        entry = own.get(path, {})
        return common | {key: entry[key] for key in keys if key in entry}

    return format_of
