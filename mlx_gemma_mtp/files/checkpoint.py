"""A checkpoint's folder: its configs, its weight files, their headers and the names in them.

Reads Transformers checkpoints (single or sharded safetensors, multimodal or text-only names) and
MLX ones. Knows nothing of models with weights: see `weights`.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from mlx_gemma_mtp.errors import CheckpointError
from mlx_gemma_mtp.model.config import DrafterConfig, TargetConfig

Config = TypeVar("Config", TargetConfig, DrafterConfig)

_PREFIXES = ("model.language_model.", "language_model.model.", "language_model.", "model.")


def read_config(folder: Path) -> dict[str, Any]:
    """Return the folder's config.json. Raises CheckpointError."""
    return read_json(folder / "config.json", "is this a model folder?")


def read_target_config(folder: Path) -> TargetConfig:
    """Return what the folder's config.json says of a target. Raises CheckpointError."""
    return parse_config(TargetConfig.from_dict, read_config(folder), folder)


def read_drafter_config(folder: Path) -> DrafterConfig:
    """Return what the folder's config.json says of a drafter. Raises CheckpointError."""
    return parse_config(DrafterConfig.from_dict, read_config(folder), folder)


def parse_config(
    parse: Callable[[dict[str, Any]], Config], raw: dict[str, Any], folder: Path
) -> Config:
    """Run a config's own reader. Raises CheckpointError if a value is of the wrong kind."""
    try:
        return parse(raw)
    except (AttributeError, KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise CheckpointError(
            f"{folder / 'config.json'} is damaged ({type(error).__name__}: {error})"
        ) from None


def read_generation_config(folder: Path) -> dict[str, Any]:
    """Return the folder's generation_config.json; empty if there is no such file."""
    path = folder / "generation_config.json"
    return read_json(path, "") if path.exists() else {}


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a checkpoint, all of them present. Raises CheckpointError."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        shards = read_json(index, "").get("weight_map")
        if not isinstance(shards, dict) or not all(isinstance(v, str) for v in shards.values()):
            raise CheckpointError(f"{index}: weight_map does not name files: download it again")
        files = [folder / name for name in sorted(set(shards.values()))]
    else:
        files = sorted(folder.glob("model*.safetensors"))
        part = re.search(r"-of-(\d+)\.safetensors$", files[-1].name) if files else None
        if part and len(files) != int(part[1]):
            raise CheckpointError(f"{folder} lacks parts of its weights: download it again")
    if not files:
        raise CheckpointError(f"{folder}: no model*.safetensors; other formats are not supported")
    for path in files:
        if not path.is_file():
            raise CheckpointError(f"{path.name} is missing from {folder}: download it again")
    return files


def read_header(path: Path) -> tuple[dict[str, Any], int]:
    """Return a safetensors file's entries by tensor name, unchecked, and where its data start.

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
    """Return our name for an array: the text-only checkpoint's, without its `model.`."""
    for prefix in _PREFIXES:
        if name.startswith(prefix):
            name = name.removeprefix(prefix)
            break
    name = name.replace(".experts.switch_glu.", ".experts.")
    whole = name.endswith((".experts.gate_up_proj", ".experts.down_proj"))
    return f"{name}.weight" if whole else name


def read_json(path: Path, hint: str = "") -> dict[str, Any]:
    """Return the object in a JSON file. Raises CheckpointError."""
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing; {hint}") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} is not a JSON object")
    return found
