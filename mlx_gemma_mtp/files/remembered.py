"""What one run found out about depth, kept for the next in a small file.

`folders.depth_file`. It only saves time: it can be deleted, a damaged one counts as none, and where
it cannot be written nothing is kept.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import mlx.core as mx

from mlx_gemma_mtp.decode.depth import Depth
from mlx_gemma_mtp.files.atomic import write_whole
from mlx_gemma_mtp.files.folders import depth_file

FORMAT = 2  # of the file; any other counts as none


def depth_key(name: str, digest: str) -> str:
    """What costs and acceptance of a model depend on, with this device and MLX.

    digest: of all that is the model's, quantization too.
    """
    return f"{name} {digest}{_here()}"


def load_depth(key: str) -> Depth:
    """Go on with what was saved under this key, or begin with nothing."""
    return _read(_remembered().get(key)) or Depth()


def depths_of(name: str) -> Iterator[Depth]:
    """What was saved on this device and with this MLX of a model, whatever its quantization."""
    for key, saved in _remembered().items():
        ours = key.startswith(f"{name} ") and key.endswith(_here())
        if ours and (depth := _read(saved)) is not None:
            yield depth


def save_depth(key: str, depth: Depth) -> bool:
    """Keep what this run found out; False if that cannot be.

    What is there of other batch sizes, and under other keys, stays.
    """
    path, entries, found = depth_file(), _remembered(), depth.to_json()
    if (earlier := _read(entries.get(key))) is not None:
        found["costs"] = earlier.to_json()["costs"] | found["costs"]
    text = json.dumps({"format": FORMAT, "entries": {**entries, key: found}}, indent=1)
    # A full disk or a folder that is not ours must not end a run: the next one learns anew.
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text.encode())
        return True
    return False


def _here() -> str:
    return f", {mx.device_info().get('device_name', '')}, mlx {version('mlx')}"


def _read(saved: Any) -> Depth | None:
    """An entry; None for a damaged one, or none."""
    try:
        return Depth.from_json(saved)
    except (KeyError, ValueError, TypeError, AttributeError, ArithmeticError):
        return None


def _remembered() -> dict[str, Any]:
    """What the file holds, by key; nothing if there is none, or not one of ours."""
    try:
        saved = json.loads(depth_file().read_text(encoding="utf-8"))
        return dict(saved["entries"]) if saved["format"] == FORMAT else {}
    except (OSError, KeyError, ValueError, TypeError):  # ValueError: not JSON, not UTF-8
        return {}
