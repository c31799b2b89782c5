"""A file replaced whole or not at all, whoever reads or writes it meanwhile."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path, suffix: str = "") -> Iterator[Path]:
    """Where to write what becomes the file at the end, unless something is raised before.

    A link stays, and what it names is replaced. suffix: of that place's name, which is another
    every time. Raises OSError.
    """
    path = path.resolve()
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}{suffix}")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes) -> None:
    """Make or replace the file. Raises OSError; then it is as it was.

    What is there and no file, a pipe or /dev/null, is written to and stays.
    """
    if path.exists() and not path.is_file():
        path.write_bytes(content)
        return
    with replacing(path) as partial:
        partial.write_bytes(content)
