"""What runs measured about depth, kept for later runs in a small file.

`folders.depth_file`. It only saves time: it can be deleted, a damaged file counts as empty, and if
it cannot be written nothing is kept.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import mlx.core as mx

from mlx_gemma_mtp.decode.depth import Depth
from mlx_gemma_mtp.files.atomic import keep
from mlx_gemma_mtp.files.folders import depth_file

FORMAT = 2  # of the file; another one counts as empty


def depth_key(name: str, digest: str) -> str:
    """Return the key of all that a model's costs and acceptance depend on: with device and MLX.

    digest: of everything about the model, including quantization.
    """
    return f"{name} {digest}{_here()}"


def load_depth(key: str) -> Depth:
    """Return what was saved under this key, or an empty Depth."""
    return _read(_entries().get(key)) or Depth()


def depths_of(name: str) -> Iterator[Depth]:
    """Yield what was saved of a model on this device and MLX, whatever its quantization."""
    for key, saved in _entries().items():
        ours = key.startswith(f"{name} ") and key.endswith(_here())
        if ours and (depth := _read(saved)) is not None:
            yield depth


def save_depth(key: str, depth: Depth) -> bool:
    """Save what this run measured; return False if that is not possible.

    Saved costs of other batch sizes, and other keys, stay.
    """
    entries, found = _entries(), depth.to_json()
    if (earlier := _read(entries.get(key))) is not None:
        found["costs"] = earlier.to_json()["costs"] | found["costs"]
    text = json.dumps({"format": FORMAT, "entries": {**entries, key: found}}, indent=1)
    return keep(depth_file(), text.encode())


def _here() -> str:
    return f", {mx.device_info().get('device_name', '')}, mlx {version('mlx')}"


def _read(saved: Any) -> Depth | None:
    """Return an entry; None if it is missing or damaged."""
    try:
        return Depth.from_json(saved)
    except (KeyError, ValueError, TypeError, AttributeError, ArithmeticError):
        return None


def _entries() -> dict[str, Any]:
    """Return what the file holds, by key; nothing if it is missing or not one of ours."""
    try:
        saved = json.loads(depth_file().read_text(encoding="utf-8"))
        return dict(saved["entries"]) if saved["format"] == FORMAT else {}
    except (OSError, KeyError, ValueError, TypeError):  # ValueError: not JSON, not UTF-8
        return {}
