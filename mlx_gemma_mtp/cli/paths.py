"""`mgm paths`: where mgm keeps everything."""

from __future__ import annotations

import json

from mlx_gemma_mtp.cli import options


def paths(
    as_json: options.Json = False,
) -> None:
    """Print the folders and files that mgm uses."""
    from mlx_gemma_mtp.files import folders, hub
    from mlx_gemma_mtp.files.names import DEMO

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
        for name, path in found.items():
            print(f"{name:<11}{path}")
