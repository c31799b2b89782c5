"""The folders that `mgm convert` wrote, in a small file, so that they can be listed.

`folders.converted_file`. It can be deleted; folders that were moved or deleted are skipped.
"""

from __future__ import annotations

import json
from pathlib import Path

from mlx_gemma_mtp.files.atomic import keep
from mlx_gemma_mtp.files.folders import converted_file


def remember(folder: Path) -> None:
    """Add a folder; do nothing if the file cannot be written."""
    names = dict.fromkeys(map(str, [*remembered(), folder.resolve()]))
    keep(converted_file(), json.dumps([*names], indent=1).encode())


def remembered() -> list[Path]:
    """Return the folders that still hold a model, in the order in which they were written."""
    try:
        found = json.loads(converted_file().read_text(encoding="utf-8"))
        folders = [Path(one) for one in found]
    except (OSError, ValueError, TypeError):  # none yet; not JSON, or not a list of paths
        return []
    return [one for one in folders if (one / "config.json").is_file()]
