"""A checkpoint's folder: its configs, and which files hold its weights.

Reads Transformers checkpoints and MLX ones, single files or shards. Opens no weight file: see
`tensors`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from mlx_gemma_mtp.errors import CheckpointError
from mlx_gemma_mtp.files.published import SIZES, size_within
from mlx_gemma_mtp.model.config import DRAFTER_TYPES, DrafterConfig, TargetConfig

Config = TypeVar("Config", TargetConfig, DrafterConfig)

WHOLE = "model.safetensors"
INDEX = f"{WHOLE}.index.json"
# Checkpoints of Google for other runtimes.
_GOOGLES_QAT = re.compile(r"(gemma-4-[\w.-]+?-it-qat)-(w4a16|mobile|q4_0-gguf)", re.IGNORECASE)
LFS_POINTER = "version https://git-lfs"  # how the file starts that Git has in place of a large one
ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin", "adapters.safetensors")


def read_config(folder: Path) -> dict[str, Any]:
    """Return the folder's config.json. Raises CheckpointError."""
    return read_json(folder / "config.json", _instead(folder) or "is this a model folder?")


def is_drafter(folder: Path) -> bool:
    """Return True if the folder's config.json is a drafter's. Raises CheckpointError."""
    return read_config(folder).get("model_type") in DRAFTER_TYPES


def read_target_config(folder: Path) -> TargetConfig:
    """Return what the folder's config.json says of a target. Raises CheckpointError."""
    return parse_config(TargetConfig.from_dict, read_config(folder), folder)


def read_drafter_config(folder: Path) -> DrafterConfig:
    """Return what the folder's config.json says of a drafter. Raises CheckpointError."""
    return parse_config(DrafterConfig.from_dict, read_config(folder), folder)


def read_model_config(folder: Path) -> TargetConfig | DrafterConfig:
    """Return what the folder's config.json says, whichever it is of. Raises CheckpointError."""
    return read_drafter_config(folder) if is_drafter(folder) else read_target_config(folder)


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
    """Return the folder's generation_config.json; empty if there is no such file.

    Numbers such as 64.0 are integers: some tools write `top_k` so. Raises CheckpointError.
    """
    path = folder / "generation_config.json"
    found = read_json(path) if path.exists() else {}
    return {key: whole(value) for key, value in found.items()}


def whole(value: Any) -> Any:
    """Return a value with 64.0 as 64: some tools write every number with a point."""
    if isinstance(value, list):
        return [whole(one) for one in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a checkpoint, all of them present. Raises CheckpointError.

    An index whose files are gone is ignored if there is one whole model.safetensors.
    """
    files = [folder / name for name in sorted({*read_index(folder).values()})]
    if not files:
        files = sorted(folder.glob("model*.safetensors"))
        parts = [re.search(r"-of-(\d+)\.safetensors$", path.name) for path in files]
        if parts and parts[-1] and len(files) != int(parts[-1][1]) and all(parts):
            raise CheckpointError(f"{folder} lacks parts of its weights: download it again")
    elif folder / WHOLE not in files and (folder / WHOLE).exists():
        raise CheckpointError(
            f"{folder} has both {WHOLE} and the files that {INDEX} names: remove the older ones"
        )
    if not files:
        why = _instead(folder) or "other formats are not supported"
        raise CheckpointError(f"{folder} has no model*.safetensors; {why}")
    for path in files:
        if not path.is_file():
            raise CheckpointError(f"{path.name} is missing from {folder}: download it again")
    return files


def read_index(folder: Path) -> dict[str, str]:
    """Return which file each tensor is in, by the names in the files; empty without an index.

    Also empty if the files of the index are missing and model.safetensors is there instead, which
    other tools write without removing the index. Raises CheckpointError.
    """
    path = folder / INDEX
    if not path.exists():
        return {}
    listed = read_json(path).get("weight_map") or {}
    names = listed.values() if isinstance(listed, dict) else []
    if not names or not all(isinstance(name, str) for name in names):
        raise CheckpointError(f"{path}: weight_map does not name files: download it again")
    stale = not all((folder / name).exists() for name in names)
    return {} if stale and (folder / WHOLE).is_file() else dict(listed)


def original_of(folder: Path) -> str:
    """Return what to use instead of a checkpoint in a format that is not supported.

    Google's own for other runtimes are known by the folder's path.
    """
    if found := _GOOGLES_QAT.search(str(folder)):
        return f"google/{found[1]}-q4_0-unquantized"
    size = size_within(folder.resolve().name) or SIZES[1]
    return f"the original checkpoint, such as {size.original}, or one in MLX's format"


def _instead(folder: Path) -> str:
    """Return what a folder without safetensors of a model holds instead, and what to do."""
    if adapter := next((name for name in ADAPTERS if (folder / name).exists()), None):
        tool = "mlx_lm.fuse" if adapter.startswith("adapters") else "PEFT's merge_and_unload"
        return f"{adapter} is an adapter: merge it into its model with {tool}, and use the result"
    for pattern, kind in (("*.gguf", "GGUF"), ("*.bin", "PyTorch"), ("*.npz", "older MLX")):
        if any(folder.glob(pattern)):
            return f"{kind} files are not supported: use {original_of(folder)}"
    return ""


def lfs_pointer(path: Path) -> CheckpointError:
    """Return the error for a file that Git LFS has not downloaded yet."""
    return CheckpointError(
        f"{path} is only a Git LFS pointer: run git lfs pull in {path.parent}, or download the "
        "model again"
    )


def read_json(path: Path, hint: str = "") -> dict[str, Any]:
    """Return the object in a JSON file. Raises CheckpointError."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        if text.startswith(LFS_POINTER):
            raise lfs_pointer(path)
        found = json.loads(text)
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing; {hint}") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} cannot be read as JSON ({error}): download it again"
        ) from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} is not a JSON object")
    return found
