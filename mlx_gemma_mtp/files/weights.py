"""From a checkpoint's folder to a model with its weights.

A model is first opened: MLX reads an array when it is used, so bytes can be counted before any are
read. Then it is loaded, slice by slice. Every parameter must be there in the right shape; other
tensors stay in the files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlx_gemma_mtp.command_buffers import Shape, choose_limits
from mlx_gemma_mtp.decode.params import is_count
from mlx_gemma_mtp.device import backend
from mlx_gemma_mtp.errors import CheckpointError, UsageError
from mlx_gemma_mtp.files.arrays import Arrays, open_arrays, refuse_unknown, sources_of
from mlx_gemma_mtp.files.checkpoint import read_drafter_config, read_target_config
from mlx_gemma_mtp.files.quantization import HasShape, is_quantized, stored_bits
from mlx_gemma_mtp.files.slices import plan_slices, read_slices
from mlx_gemma_mtp.files.sources import Source
from mlx_gemma_mtp.files.tensors import read_tensors
from mlx_gemma_mtp.model.config import TargetConfig, check_pair
from mlx_gemma_mtp.model.drafter import Drafter
from mlx_gemma_mtp.model.target import Target

Model = TypeVar("Model", Target, Drafter)
Stored = TypeVar("Stored", bound=HasShape)

GROUP_SIZE = 64
CONVERTED_ONLY = (2, 3, 5, 6)  # bits that MLX has, and `mgm convert` writes
# The modules that low precision hurts most keep 8 bits, whatever the others get.
EIGHT_BIT = (
    *("router.proj", "embed_tokens", "embed_tokens_per_layer", "masked_embedding.centroids"),
    "lm_head",
)


def load_target(folder: Path, *, bits: int | None = None, dtype: mx.Dtype | None = None) -> Target:
    """Return the target in a folder, with its weights in memory.

    bits: 4 or 8 quantizes while loading. dtype: the type of everything that is not quantized; by
    default `default_dtype`. Raises CheckpointError, UsageError.
    """
    target = open_target(folder, bits=bits, dtype=dtype or default_dtype())
    _load(target, folder)
    return target


def load_drafter(
    folder: Path, target: TargetConfig, *, bits: int | None = None, dtype: mx.Dtype | None = None
) -> Drafter:
    """Return the drafter in a folder, for this target; arguments and errors as `load_target`."""
    drafter = open_drafter(folder, target, bits=bits, dtype=dtype or default_dtype())
    _load(drafter, folder)
    check_loaded(drafter, folder)
    return drafter


def open_target(folder: Path, *, bits: int | None = None, dtype: mx.Dtype | None = None) -> Target:
    """Return the target in a folder, with weights that MLX reads when they are used.

    Arguments and errors as `load_target`, but dtype is the checkpoint's own by default; bfloat16
    for float16, in which Gemma 4 overflows.
    """
    config = read_target_config(folder)
    choose_limits(Shape.of(config))  # the first array starts the GPU
    return _open(Target(config), folder, bits, dtype)


def open_drafter(
    folder: Path, target: TargetConfig, *, bits: int | None = None, dtype: mx.Dtype | None = None
) -> Drafter:
    """Return the drafter in a folder, for this target; otherwise as `open_target`."""
    config = read_drafter_config(folder)
    check_pair(target, config)
    return _open(Drafter(config), folder, bits, dtype)


def open_pair(
    folder: Path, beside: Path | None, *, bits: int | None = None, dtype: mx.Dtype | None = None
) -> tuple[Target, Drafter | None]:
    """Return the models in a target's and a drafter's folder, otherwise as `open_target`."""
    target = open_target(folder, bits=bits, dtype=dtype)
    if beside is None:
        return target, None
    bits = drafter_bits(folder, beside, bits)
    return target, open_drafter(beside, target.config, bits=bits, dtype=dtype)


def find_sources(model: Target | Drafter, folder: Path) -> dict[str, Source]:
    """Return what the parameters of an opened model are made of, for `plan_slices`."""
    wanted = dict(tree_flatten(model.parameters()))
    found = sources_of(model, read_tensors(folder))
    return {name: source for name, source in found.items() if name in wanted}


def check_loaded(model: Target | Drafter, folder: Path) -> None:
    """Raise CheckpointError if a loaded model has numbers with which MLX would read past arrays."""
    if isinstance(model, Drafter) and model.config.use_ordered_embeddings:
        ids = model.masked_embedding.token_ordering
        if mx.any((ids < 0) | (ids >= ids.size)).item():
            raise CheckpointError(
                f"{folder}: masked_embedding.token_ordering holds numbers that are no token ids: "
                "the checkpoint is damaged, use another copy"
            )


def default_dtype() -> mx.Dtype | None:
    """Return the type that weights are loaded in here; None for the checkpoint's own.

    MLX's CPU backend multiplies experts in float32 only, and is slower in bfloat16.
    """
    return mx.float32 if backend() == "cpu" else None


def drafter_bits(target: Path, drafter: Path, bits: int | None) -> int | None:
    """Return the bits to load a drafter with: these, or 4 or 8 like a target that is quantized.

    None leaves it as it is. Its tied head keeps 8 bits. With the demo pair, whose drafts are
    accepted 95.7% of the time, 8 bits cost nothing and 4 bits 0.1 points.
    """
    if bits is not None or not is_quantized(read_tensors(target)):
        return bits
    if is_quantized(read_tensors(drafter)) or read_drafter_config(drafter).hidden_size % GROUP_SIZE:
        return None
    return 4 if (stored_bits(target) or 8) <= 4 else 8


def check_bits(bits: int) -> None:
    """Raise UsageError unless `bits=` takes this."""
    if not is_count(bits) or bits not in (4, 8):
        other = is_count(bits) and bits in CONVERTED_ONLY
        way = f": mgm convert --bits {bits} writes such a model" if other else ""
        raise UsageError(f"bits must be 4 or 8, not {bits!r}{way}")


def quantize(model: Target | Drafter, bits: int) -> None:
    """Quantize as `bits=` does, sensitive modules to 8 bits. Computes nothing yet.

    Raises UsageError, and CheckpointError for a width that can't be quantized.
    """
    check_bits(bits)

    def format_of(path: str, module: nn.Module) -> dict[str, Any] | bool:
        if not hasattr(module, "to_quantized"):
            return False
        width = module.weight.shape[-1]
        if width % GROUP_SIZE:
            raise CheckpointError(
                f"cannot quantize {path}: its width {width} is not a multiple of the group size "
                f"{GROUP_SIZE}; load it without bits"
            )
        return {"group_size": GROUP_SIZE, "bits": 8 if path.endswith(EIGHT_BIT) else bits}

    nn.quantize(model, class_predicate=format_of)


def num_bytes(model: nn.Module) -> int:
    """Return the bytes of all its parameters. Reads none of them."""
    return sum(array.nbytes for array in dict(tree_flatten(model.parameters())).values())


def loading_bytes(model: Target | Drafter, folder: Path) -> int:
    """Return the most bytes held at once while this opened model is loaded. Reads no weights.

    Tensors that are cast or quantized are held together with the result, a slice at a time.
    """
    plan = plan_slices(model, find_sources(model, folder))
    return num_bytes(model) + max(sum(piece.held for piece in pieces) for pieces in plan)


def dtype_name(dtype: mx.Dtype) -> str:
    """Return `bfloat16` and the like."""
    return str(dtype).rpartition(".")[2]


def type_for(name: str, array: mx.array, dtype: mx.Dtype) -> mx.Dtype:
    """Return the type that a stored array is used in, if floating-point ones are in `dtype`."""
    if mx.issubdtype(array.dtype, mx.floating):
        return dtype
    return mx.int32 if name.endswith("token_ordering") else array.dtype


def fill(
    model: Target | Drafter, arrays: Arrays, folder: Path, dtype: mx.Dtype | None = None
) -> None:
    """Make the arrays that `open_arrays` returned the model's parameters. Computes nothing yet.

    dtype: as for `open_target`. Raises CheckpointError for a missing, unfit or unknown one.
    """
    wanted = dict(tree_flatten(model.parameters()))
    for name, parameter in wanted.items():
        checked(folder, name, arrays.get(name), parameter.shape, parameter.dtype)
    refuse_unknown(model, arrays, folder)
    dtype = dtype or arrays["norm.weight"].dtype
    if dtype == mx.float16:  # Gemma 4's activations exceed its largest number, 65504
        dtype = mx.bfloat16
    typed = {name: arrays[name].astype(type_for(name, arrays[name], dtype)) for name in wanted}
    model.load_weights(list(typed.items()))


def checked(
    folder: Path, name: str, found: Stored | None, shape: tuple[int, ...], dtype: mx.Dtype
) -> Stored:
    """Return a tensor, or raise CheckpointError if it is missing or isn't what a model needs."""
    if found is None:
        raise CheckpointError(
            f"{folder}: tensor {name} is missing: the checkpoint is incomplete, use another copy"
        )
    real = mx.issubdtype(found.dtype, mx.floating)
    if mx.issubdtype(dtype, mx.floating) and not real:
        raise CheckpointError(
            f"{folder}: tensor {name} holds {found.dtype}, not floating-point numbers: "
            "quantized by another tool? Use the original checkpoint"
        )
    if real and not mx.issubdtype(dtype, mx.floating):
        raise CheckpointError(f"{folder}: tensor {name} holds {found.dtype}, not integers")
    if found.shape != shape:
        raise CheckpointError(
            f"{folder}: tensor {name} has shape {list(found.shape)}, but config.json asks "
            f"for {list(shape)}: weights and config are of different models"
        )
    return found


def _load(model: Target | Drafter, folder: Path) -> None:
    """Put the weights of an opened model into memory."""
    for each in read_slices(plan_slices(model, find_sources(model, folder))):
        each.place()


def _open(model: Model, folder: Path, bits: int | None, dtype: mx.Dtype | None) -> Model:
    if bits is not None:
        check_bits(bits)
    arrays = open_arrays(model, folder)
    if bits is not None and is_quantized(arrays):
        raise UsageError(f"{folder} is quantized already: leave bits (--bits) out")
    fill(model, arrays, folder, dtype)
    if bits is not None:
        quantize(model, bits)
    model.eval()
    return model
