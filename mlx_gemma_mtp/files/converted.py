"""The folders that `mgm convert` wrote, in a small file, so that they can be listed.

`folders.converted_file`. It can be deleted; folders that were moved or deleted are skipped.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from mlx_gemma_mtp.files.atomic import write_whole
from mlx_gemma_mtp.files.folders import converted_file


def remember(folder: Path) -> None:
    """Add a folder; do nothing if the file cannot be written."""
    path, kept = converted_file(), [str(one) for one in remembered()]
    names = [*dict.fromkeys([*kept, str(folder.resolve())])]
    with suppress(OSError):  # a full disk must not fail a conversion that is done
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(names, indent=1).encode())


def remembered() -> list[Path]:
    """Return the folders that still hold a model, in the order in which they were written."""
    try:
        found = json.loads(converted_file().read_text(encoding="utf-8"))
        folders = [Path(one) for one in found]
    except (OSError, ValueError, TypeError):  # none yet; not JSON, or not a list of paths
        return []
    return [one for one in folders if (one / "config.json").is_file()]
