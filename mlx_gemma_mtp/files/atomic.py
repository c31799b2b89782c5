"""Files that are replaced whole or not at all, whoever reads or writes them meanwhile."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from errno import EDQUOT, ENOSPC
from pathlib import Path


@contextmanager
def replacing(path: Path, suffix: str = "") -> Iterator[Path]:
    """Yield a temporary path; what is written there replaces the file if nothing was raised.

    Follows symlinks. suffix: ending of the temporary file's (unique) name. Raises OSError.
    """
    path = path.resolve()
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}{suffix}")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def more_room(error: OSError) -> str:
    """Return `free some space, or ` if that would help against an error of writing, else ``."""
    return "free some space, or " if error.errno in (ENOSPC, EDQUOT) else ""


def keep(path: Path, content: bytes) -> bool:
    """Create or replace a file that mgm can do without; return False if that is not possible.

    Its folder is made. A full disk, or a folder of somebody else, must not end what is being done.
    """
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content)
        return True
    return False


def write_whole(path: Path, content: bytes) -> None:
    """Create or replace the file, on the disk on return. If it raises OSError, it is unchanged.

    Anything that is not a regular file (a pipe, /dev/null) is written in place.
    """
    if path.exists() and not path.is_file():
        path.write_bytes(content)
        return
    with replacing(path) as partial, partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
