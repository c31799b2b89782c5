"""What one run found out about depth, kept for the next in a small file.

`depth.json` in the user's cache folder, or in MGM_CACHE_DIR. It only saves time: it can be
deleted, a damaged one counts as none, and where it cannot be written nothing is kept.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from platformdirs import user_cache_dir

from mlx_gemma_mtp.atomic import write_whole
from mlx_gemma_mtp.depth import Depth

FORMAT = 1  # of the file; another one counts as none


def load_depth(key: str) -> Depth:
    """Go on with what was saved under this key, or begin with nothing.

    key: whatever costs and acceptance depend on: machine, model, quantization, versions.
    """
    # ArithmeticError: a number too large for a float. The others: not ours, or damaged.
    with contextlib.suppress(KeyError, ValueError, TypeError, AttributeError, ArithmeticError):
        return Depth.from_json(remembered_depths()[key])
    return Depth()


def save_depth(key: str, depth: Depth) -> None:
    """Keep what this run found out, and what is there under other keys."""
    path = depth_file()
    entries = {**remembered_depths(), key: depth.to_json()}
    text = json.dumps({"format": FORMAT, "entries": entries}, indent=1)
    # A full disk or a folder that is not ours must not end a run: the next one learns anew.
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text.encode())


def depth_file() -> Path:
    """Where it is kept; it need not be there."""
    folder = os.environ.get("MGM_CACHE_DIR") or user_cache_dir("mlx-gemma-mtp", appauthor=False)
    return Path(folder) / "depth.json"


def remembered_depths() -> dict[str, Any]:
    """What the file holds, by key; nothing if there is none, or not one of ours."""
    try:
        saved = json.loads(depth_file().read_text(encoding="utf-8"))
        return dict(saved["entries"]) if saved["format"] == FORMAT else {}
    except (OSError, KeyError, ValueError, TypeError):  # ValueError: not JSON, not UTF-8
        return {}
