"""The saved conversations, by name: a journal each, and next to it a KV cache if one was saved.

Doesn't know what is in a cache.
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
from mlx_gemma_mtp.files.journal import Journal

ENDING = ".jsonl"
_NAME = re.compile(r"\w[\w.-]{0,99}(?<!\.jsonl)")


class Kept(NamedTuple):
    """A saved conversation; without `conversation`, `problem` says why it cannot be read."""

    name: str
    conversation: Conversation | None
    problem: str | None
    last_used: float  # seconds since 1970
    size_bytes: int
    cache_bytes: int


def path_of(name: str) -> Path:
    """Return the journal of this name, which may not exist. Raises UsageError."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"invalid session name {name[:200]!r}: start with a letter or digit, then use up to 99 "
            f"letters, digits, '.', '_' or '-', and don't end in {ENDING}"
        )
    return sessions_folder() / f"{name}{ENDING}"


def cache_of(path: Path) -> Path:
    """Return the file for the KV cache of a conversation."""
    return path.with_suffix(".safetensors")


def new_path() -> Path:
    """Return the file of a conversation that starts now."""
    return path_of(f"{datetime.now().astimezone():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}")


def paths() -> list[Path]:
    """Return the journals, most recently used first; files with invalid names are skipped."""
    used = {}
    for path in sessions_folder().glob(f"*{ENDING}"):
        if _NAME.fullmatch(path.stem):
            with suppress(FileNotFoundError):  # removed just now
                used[path] = path.stat().st_mtime
    return sorted(used, key=used.__getitem__, reverse=True)


def kept() -> list[Kept]:
    """Return all saved conversations, most recently used first."""
    found = []
    for path in paths():
        conversation, problem = None, None
        try:
            file, cache = path.stat(), cache_of(path)
            cache_bytes = cache.stat().st_size if cache.exists() else 0
            conversation = transcript.load(path)
        except FileNotFoundError:  # removed just now
            continue
        except (MgmError, OSError) as error:
            problem = str(error)
        sizes = file.st_mtime, file.st_size, cache_bytes
        found.append(Kept(path.stem, conversation, problem, *sizes))
    return found


def last() -> Path:
    """Return the most recently used conversation that can be read. Raises UsageError."""
    for path in paths():
        with suppress(MgmError, OSError):
            transcript.load(path)
            return path
    raise UsageError(f"no conversation to continue in {sessions_folder()}: mgm chat starts one")


def remove(name: str) -> None:
    """Remove a conversation and its cache.

    Raises UsageError if there is none, or if another process has it open; OSError.
    """
    path = path_of(name)
    try:
        journal = Journal(path, name, 0)
    except FileNotFoundError:
        raise UsageError(f"no conversation {name!r}: mgm sessions lists them") from None
    try:
        path.unlink()
        cache_of(path).unlink(missing_ok=True)
    finally:
        journal.close()
