"""Where mgm keeps conversations, the chat's history and timings, and how much room is there.

In the user's data, state and cache folders of the system (XDG, Library). MGM_DATA_DIR replaces the
first two, MGM_CACHE_DIR the last.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from platformdirs import user_cache_dir, user_data_dir, user_state_dir

NAME = "mlx-gemma-mtp"


def sessions_folder() -> Path:
    """Return the folder of conversations and their saved KV caches."""
    return _folder(user_data_dir, "MGM_DATA_DIR") / "sessions"


def history_file() -> Path:
    """Return the file of lines typed in the chat."""
    return _folder(user_state_dir, "MGM_DATA_DIR") / "history"


def converted_file() -> Path:
    """Return the file of `converted`. It may not exist."""
    return _folder(user_data_dir, "MGM_DATA_DIR") / "converted.json"


def raw_file() -> Path:
    """Return the file that is there if the user wants answers without Markdown layout."""
    return _folder(user_state_dir, "MGM_DATA_DIR") / "raw"


def depth_file() -> Path:
    """Return the file of `remembered`. It may not exist."""
    return _folder(user_cache_dir, "MGM_CACHE_DIR") / "depth.json"


def nearest(path: Path) -> Path:
    """Return the path, or the closest folder above it that exists."""
    path = path.expanduser().resolve()
    return next(one for one in (path, *path.parents) if one.exists())


def shown(path: Path) -> str:
    """Return a path for people: from the current folder with ./, or with ~ for the home folder."""
    for start, folder in ((".", Path.cwd), ("~", Path.home)):
        with suppress(ValueError, OSError, RuntimeError):  # not in it; there is no such folder
            return f"{start}/{path.relative_to(folder())}"
    return str(path)


def free_bytes(path: Path) -> int:
    """Return the free bytes of the disk that the path is on, or will be."""
    return shutil.disk_usage(nearest(path)).free


def _folder(system: Callable[..., str], variable: str) -> Path:
    own = os.environ.get(variable)
    return Path(own or system(NAME, appauthor=False)).expanduser()
