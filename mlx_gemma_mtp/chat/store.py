"""The conversations on this disk, by name: a journal each, and a cache beside it if one was kept.

Knows nothing of what is in a cache.
"""

from __future__ import annotations

import re
import secrets
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from mlx_gemma_mtp.chat import transcript
from mlx_gemma_mtp.chat.transcript import Conversation
from mlx_gemma_mtp.errors import MgmError, UsageError
from mlx_gemma_mtp.files.folders import sessions_folder

ENDING = ".jsonl"
_NAME = re.compile(r"\w[\w.-]{0,99}(?<!\.jsonl)")


class Kept(NamedTuple):
    """A conversation on the disk.

    said: None for a file that cannot be read, with the reason in problem. last_used: seconds since
    1970. size_bytes, cache_bytes: of its files.
    """

    name: str
    said: Conversation | None
    problem: str | None
    last_used: float
    size_bytes: int
    cache_bytes: int


def path_of(name: str) -> Path:
    """The journal of this name, there or not. Raises UsageError for what cannot be a name."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name[:200]!r} is no name for a conversation: letters, digits, dots and dashes"
        )
    return sessions_folder() / f"{name}{ENDING}"


def cache_of(path: Path) -> Path:
    """Where the keys and values of the conversation in this file are kept."""
    return path.with_suffix(".safetensors")


def new_path() -> Path:
    """The file of a conversation that begins now."""
    now = datetime.now().astimezone()
    return path_of(f"{now:%Y%m%d-%H%M%S}-{secrets.token_hex(2)}")


def paths() -> list[Path]:
    """The journals of all conversations, the one used last in front; what has no name is none."""
    used = {}
    for path in sessions_folder().glob(f"*{ENDING}"):
        if _NAME.fullmatch(path.stem):
            with suppress(FileNotFoundError):  # removed just now
                used[path] = path.stat().st_mtime
    return sorted(used, key=used.__getitem__, reverse=True)


def kept() -> list[Kept]:
    """All conversations, the one used last in front."""
    found = []
    for path in paths():
        said, problem = None, None
        try:
            about, cache = path.stat(), cache_of(path)
            cache_bytes = cache.stat().st_size if cache.exists() else 0
            said = transcript.load(path)
        except FileNotFoundError:  # removed just now
            continue
        except (MgmError, OSError) as error:
            problem = str(error)
        found.append(Kept(path.stem, said, problem, about.st_mtime, about.st_size, cache_bytes))
    return found


def last() -> Path:
    """The conversation used last. Raises UsageError where there is none."""
    for path in paths():
        with suppress(MgmError, OSError):  # it cannot be read
            transcript.load(path)
            return path
    raise UsageError(
        f"there is no conversation to continue in {sessions_folder()}: mgm chat begins one"
    )


def remove(name: str) -> None:
    """Remove a conversation and its cache. Raises UsageError where there is none, OSError."""
    path = path_of(name)
    try:
        path.unlink()
    except FileNotFoundError:
        raise UsageError(f"no conversation {name!r}: mgm sessions lists them") from None
    cache_of(path).unlink(missing_ok=True)
