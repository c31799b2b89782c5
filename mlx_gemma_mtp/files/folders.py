"""Where mgm keeps conversations, the lines typed and what it learned, and how much room is there.

In the user's data, state and cache folders as the system has them (XDG, Library). MGM_DATA_DIR
stands for the first two, MGM_CACHE_DIR for the last.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from platformdirs import user_cache_dir, user_data_dir, user_state_dir

NAME = "mlx-gemma-mtp"


def sessions_folder() -> Path:
    """Conversations, and what `--keep-cache` keeps of them."""
    return _folder(user_data_dir, "MGM_DATA_DIR") / "sessions"


def history_file() -> Path:
    """The lines typed at the chat's prompt."""
    return _folder(user_state_dir, "MGM_DATA_DIR") / "history"


def depth_file() -> Path:
    """What runs found out about depth, see `remembered`; it need not be there."""
    return _folder(user_cache_dir, "MGM_CACHE_DIR") / "depth.json"


def nearest(path: Path) -> Path:
    """The path, or the folder in which it would be made that is there."""
    path = path.expanduser().resolve()
    return next(one for one in (path, *path.parents) if one.exists())


def free_bytes(path: Path) -> int:
    """Room on the disk that it is on, or will be."""
    return shutil.disk_usage(nearest(path)).free


def _folder(system: Callable[..., str], variable: str) -> Path:
    own = os.environ.get(variable)
    return Path(own or system(NAME, appauthor=False)).expanduser()
