"""From a checkpoint's folder to a model with its weights.

Reads Transformers checkpoints (single or sharded safetensors, multimodal or text-only names) and
MLX ones (with their `quantization` block). Every parameter must be there in the right shape;
what the text model does not need is left in the file.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlx_gemma_mtp.decode.params import is_count
from mlx_gemma_mtp.device import backend
from mlx_gemma_mtp.errors import CheckpointError, UsageError, one_line
from mlx_gemma_mtp.model.config import DrafterConfig, TargetConfig, check_pair
from mlx_gemma_mtp.model.drafter import Drafter
from mlx_gemma_mtp.model.target import Target

Model = TypeVar("Model", Target, Drafter)
Config = TypeVar("Config", TargetConfig, DrafterConfig)
Arrays = dict[str, mx.array]
Format = Callable[[str, nn.Module], dict[str, Any] | bool]  # of a module, by its path

GROUP_SIZE = 64
# Modules that low precision hurts most: they keep 8 bits whatever the others get.
EIGHT_BIT = ("router.proj", "embed_tokens", "embed_tokens_per_layer", "masked_embedding.centroids")

_PREFIXES = ("model.language_model.", "language_model.model.", "language_model.", "model.")


def load_target(folder: Path, *, bits: int | None = None, dtype: mx.Dtype | None = None) -> Target:
    """The target in a folder.

    bits: 4 or 8 quantizes while loading. dtype: type of everything that is not quantized; by
    default the checkpoint's own, and float32 on the CPU backend, which multiplies experts in no
    other and is slower in bfloat16. Raises CheckpointError, UsageError.
    """
    model = Target(read_target_config(folder))
    return _load(model, folder, bits, dtype)


def load_drafter(
    folder: Path, target: TargetConfig, *, bits: int | None = None, dtype: mx.Dtype | None = None
) -> Drafter:
    """The drafter in a folder, for this target; arguments and errors as `load_target`."""
    config = read_drafter_config(folder)
    check_pair(target, config)
    return _load(Drafter(config), folder, bits, dtype)


def drafter_bits(target: Path, drafter: Path) -> int | None:
    """The bits to load a drafter with, so that it is quantized where its target is on disk.

    Like the target's, 4 or 8; None where it is to stay as it is. Its tied head keeps 8 bits. On the
    demo pair, of whose drafts 95.7 % come true, 8 bits cost nothing and 4 bits 0.1 points or less.
    """
    stored, own = read_config(target), read_config(drafter)
    quantization = stored.get("quantization")
    width = own.get("text_config", {}).get("hidden_size", 0)
    if not quantization or own.get("quantization") or width % GROUP_SIZE:
        return None
    return 4 if quantization.get("bits", 8) <= 4 else 8


def read_target_config(folder: Path) -> TargetConfig:
    """Return what the folder's config.json says of a target. Raises CheckpointError."""
    return parse_config(TargetConfig.from_dict, read_config(folder), folder)


def read_drafter_config(folder: Path) -> DrafterConfig:
    """Return what the folder's config.json says of a drafter. Raises CheckpointError."""
    return parse_config(DrafterConfig.from_dict, read_config(folder), folder)


def parse_config(
    parse: Callable[[dict[str, Any]], Config], raw: dict[str, Any], folder: Path
) -> Config:
    """Run a configuration's own reader; a value of a wrong kind becomes a CheckpointError."""
    try:
        return parse(raw)
    except (AttributeError, KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise CheckpointError(
            f"{folder / 'config.json'} is damaged ({type(error).__name__}: {error})"
        ) from None


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's config.json. Raises CheckpointError."""
    return _read_json(folder / "config.json", "is this a model folder?")


def read_generation_config(folder: Path) -> dict[str, Any]:
    """The folder's generation_config.json; empty where there is none."""
    path = folder / "generation_config.json"
    return _read_json(path, "") if path.exists() else {}


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint, all of them present. Raises CheckpointError."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        shards = _read_json(index, "").get("weight_map")
        if not isinstance(shards, dict) or not all(isinstance(v, str) for v in shards.values()):
            raise CheckpointError(f"{index}: weight_map does not name files: download it again")
        files = [folder / name for name in sorted(set(shards.values()))]
    else:
        files = sorted(folder.glob("model*.safetensors"))
        part = re.search(r"-of-(\d+)\.safetensors$", files[-1].name) if files else None
        if part and len(files) != int(part[1]):
            raise CheckpointError(f"{folder} lacks parts of its weights: download it again")
    if not files:
        raise CheckpointError(f"{folder}: no model*.safetensors; only safetensors are read")
    for path in files:
        if not path.is_file():
            raise CheckpointError(f"{path.name} is missing from {folder}: download it again")
    return files


def _load(model: Model, folder: Path, bits: int | None, dtype: mx.Dtype | None) -> Model:
    raw = read_config(folder)
    if bits is not None and raw.get("quantization") is not None:
        raise UsageError(f"{folder} is quantized already: leave bits out")
    if bits is not None:
        check_bits(bits)
    arrays = open_arrays(model, folder, raw)
    fill(model, arrays, folder, dtype)
    del arrays  # held on to, the arrays in the files would stay beside their copies
    if bits is not None:
        quantize(model, bits)
    model.eval()
    for layer in model.layers:
        mx.eval(layer.parameters())
    mx.eval(model.parameters())
    return model


def open_arrays(model: Target | Drafter, folder: Path, raw: dict[str, Any]) -> Arrays:
    """The arrays of a folder's files by our names for them; MLX reads them when first used.

    Modules that are quantized there become so in the model. raw: the folder's config.json. Raises
    CheckpointError.
    """
    quantization = raw.get("quantization")
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
    """Make these arrays, which `open_arrays` gave, the model's parameters; computes nothing yet.

    dtype: as `load_target` takes it. Raises CheckpointError unless each is there as it must be.
    """
    _check(model, arrays, folder)
    if dtype is None:
        on_cpu = backend() == "cpu"
        dtype = mx.float32 if on_cpu else arrays["norm.weight"].dtype
    wanted = dict(tree_flatten(model.parameters()))
    typed = {name: arrays[name].astype(type_for(name, arrays[name], dtype)) for name in wanted}
    model.load_weights(list(typed.items()))


def dtype_name(dtype: mx.Dtype) -> str:
    """`bfloat16` and the like."""
    return str(dtype).rpartition(".")[2]


def num_bytes(model: nn.Module) -> int:
    """Bytes of all its parameters."""
    return sum(array.nbytes for array in dict(tree_flatten(model.parameters())).values())


def type_for(name: str, array: mx.array, dtype: mx.Dtype) -> mx.Dtype:
    """The type that a stored array of this name is used in, where floating ones are in dtype."""
    if mx.issubdtype(array.dtype, mx.floating):
        return dtype
    return mx.int32 if name.endswith("token_ordering") else array.dtype


def _read_json(path: Path, hint: str) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing; {hint}") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} is not a JSON object")
    return found


def _read_arrays(folder: Path) -> Arrays:
    """All arrays of a checkpoint, under this package's names; MLX reads them when first used."""
    arrays: Arrays = {}
    for path in weight_files(folder):
        read_header(path)
        try:
            stored = mx.load(str(path))
        except RuntimeError as error:
            raise CheckpointError(f"{path} cannot be read: {error}") from None
        assert isinstance(stored, dict)  # which safetensors always give
        arrays |= {canonical_name(name): array for name, array in stored.items()}
    return _join_gate_up(arrays)


def read_header(path: Path) -> tuple[dict[str, Any], int]:
    """A safetensors file's entries by tensor name, unchecked, and the byte where its data start.

    Raises CheckpointError unless the file is as long as its header says.
    """
    with path.open("rb") as file:
        start = file.read(8)
        size = struct.unpack("<Q", start)[0] if len(start) == 8 else path.stat().st_size
        try:
            header = json.loads(file.read(size)) if size < path.stat().st_size else None
        except (ValueError, RecursionError):
            header = None
    if not isinstance(header, dict):
        raise CheckpointError(f"{path} is not a whole safetensors file: download it again")
    header.pop("__metadata__", None)
    try:
        ends = [entry["data_offsets"][1] for entry in header.values()]
        missing = 8 + size + max(ends, default=0) - path.stat().st_size
    except (KeyError, TypeError, IndexError):
        raise CheckpointError(f"{path} has a damaged header: download it again") from None
    if missing:
        what = f"cut short by {missing}" if missing > 0 else f"too long by {-missing}"
        raise CheckpointError(f"{path} is {what} bytes: download it again")
    return header, 8 + size


def canonical_name(name: str) -> str:
    """A checkpoint's name for an array -> ours: the text-only checkpoint's, less its `model.`."""
    for prefix in _PREFIXES:
        if name.startswith(prefix):
            name = name.removeprefix(prefix)
            break
    name = name.replace(".experts.switch_glu.", ".experts.")
    whole = name.endswith((".experts.gate_up_proj", ".experts.down_proj"))
    return f"{name}.weight" if whole else name


def _join_gate_up(arrays: Arrays) -> Arrays:
    """MLX checkpoints keep the experts' gate and up maps apart; one product computes both here.

    The rows of a quantized map are independent, so joining keeps every bit.
    """
    joined: Arrays = {}
    for name, array in arrays.items():
        if ".experts.gate_proj." in name:
            up = arrays.get(name.replace(".gate_proj.", ".up_proj."))
            if up is None or up.shape != array.shape:
                raise CheckpointError(f"tensor {name} has no up_proj of its shape beside it")
            name, array = (
                name.replace(".gate_proj.", ".gate_up_proj."),
                mx.concatenate([array, up], axis=1),
            )
        elif ".experts.up_proj." in name:
            continue
        joined[name] = array
    return joined


def _check(model: Target | Drafter, arrays: Arrays, folder: Path) -> None:
    """Raise CheckpointError, naming the tensor, unless each parameter is there as it must be."""
    for name, parameter in dict(tree_flatten(model.parameters())).items():
        found = arrays.get(name)
        if found is None:
            raise CheckpointError(f"{folder}: tensor {name} is missing: download it again")
        real = mx.issubdtype(found.dtype, mx.floating)
        if mx.issubdtype(parameter.dtype, mx.floating) and not real:
            raise CheckpointError(
                f"{folder}: tensor {name} holds {found.dtype}, not floating-point numbers: "
                "quantized by another tool? Give the original checkpoint"
            )
        if found.shape != parameter.shape:
            raise CheckpointError(
                f"{folder}: tensor {name} has shape {list(found.shape)}, but config.json asks "
                f"for {list(parameter.shape)}: weights and config are of different models"
            )


def _quantize(model: nn.Module, format_of: Format) -> None:
    def checked(path: str, module: nn.Module) -> dict[str, Any] | bool:
        if not hasattr(module, "to_quantized"):
            return False
        chosen = format_of(path, module)
        width = module.weight.shape[-1]
        if isinstance(chosen, dict) and width % chosen["group_size"]:
            raise CheckpointError(
                f"cannot quantize {path}: its width {width} does not divide by the group size "
                f"{chosen['group_size']}; load it without bits"
            )
        return chosen

    nn.quantize(model, class_predicate=checked)


def check_bits(bits: int) -> None:
    """Raise UsageError for what `bits=` does not take."""
    if not is_count(bits) or bits not in (4, 8):
        raise UsageError(f"bits must be 4 or 8, not {bits!r}")


def quantize(model: Target | Drafter, bits: int) -> None:
    """Quantize as `bits=` does, sensitive modules to 8 bits; computes nothing yet.

    Raises UsageError.
    """
    check_bits(bits)

    def format_of(path: str, _: nn.Module) -> dict[str, Any]:
        return {"group_size": GROUP_SIZE, "bits": 8 if path.endswith(EIGHT_BIT) else bits}

    _quantize(model, format_of)


def _stored_format(quantization: dict[str, Any], arrays: Arrays) -> Format:
    """What an MLX checkpoint says of itself: a common format, and exceptions by module."""
    common = {
        key: quantization[key] for key in ("group_size", "bits", "mode") if key in quantization
    }
    own = {}
    for path, entry in quantization.items():
        if isinstance(entry, dict):
            mine = canonical_name(f"{path}.weight")
            own[
                mine.removesuffix(".weight").replace(".experts.gate_proj", ".experts.gate_up_proj")
            ] = entry

    def format_of(path: str, _: nn.Module) -> dict[str, Any] | bool:
        if f"{path}.scales" not in arrays:
            return False
        entry = own.get(path, {})
        return common | {key: entry[key] for key in ("group_size", "bits", "mode") if key in entry}

    return format_of
