"""`mgm paths`: where mgm keeps everything."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path

from mlx_gemma_mtp.cli import options


def paths(
    as_json: options.Json = False,
) -> None:
    """Print the folders and files that mgm uses."""
    from mlx_gemma_mtp.files import folders, hub
    from mlx_gemma_mtp.files.names import DEMO
    from mlx_gemma_mtp.show import columns

    found = {
        "sessions": folders.sessions_folder(),
        "history": folders.history_file(),
        "converted": folders.converted_file(),
        "depth": folders.depth_file(),
        "models": hub.cache_folder(),
        "demo": DEMO,
    }
    if as_json:
        shown = {"schema": 1} | {name: str(path) for name, path in found.items()}
        print(json.dumps(shown, ensure_ascii=False))
    else:
        print("\n".join(laid_out(found, columns(sys.stdout))))


def laid_out(found: Mapping[str, Path], width: int | None) -> list[str]:
    """Return names and paths; each path on a line of its own if one would not fit next to it."""
    from rich.cells import cell_len

    lines = [f"{name:<11}{path}" for name, path in found.items()]
    if width is None or max(map(cell_len, lines)) <= width:
        return lines
    return [line for name, path in found.items() for line in (name, f"{path}")]
