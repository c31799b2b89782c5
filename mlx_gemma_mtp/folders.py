"""Where mgm keeps what is a person's own: conversations, and the lines typed.

In the user's data and state folders as the system has them (XDG, Library); MGM_DATA_DIR stands for
both.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from platformdirs import user_data_dir, user_state_dir

NAME = "mlx-gemma-mtp"


def sessions_folder() -> Path:
    """Conversations, and what `--keep-cache` keeps of them."""
    return _folder(user_data_dir) / "sessions"


def history_file() -> Path:
    """The lines typed at the chat's prompt."""
    return _folder(user_state_dir) / "history"


def _folder(system: Callable[..., str]) -> Path:
    own = os.environ.get("MGM_DATA_DIR")
    return Path(own or system(NAME, appauthor=False)).expanduser()
