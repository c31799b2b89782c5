"""The folder beside the output in which a conversion is made: begun, gone on with, or refused.

`OUT.partial` holds `model` (the output in the making), a journal for each of its models and what
it was begun with. It is never loadable itself. Publishing is one rename. Knows nothing of weights.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from pathlib import Path
from typing import Any

from rich.filesize import decimal

from mlx_gemma_mtp.errors import MgmError, UsageError
from mlx_gemma_mtp.files.folders import free_bytes

SUFFIX = ".partial"


def check_place(out: Path, *, resume: bool, force: bool) -> None:
    """Raise UsageError unless OUT may be made now."""
    if not out.name:
        raise UsageError(f"{out} cannot be an output: name a folder")
    if out.exists():
        if not force:
            raise UsageError(f"{out} is there already: --force replaces it, --out names another")
        if not out.is_dir() or (any(out.iterdir()) and not (out / "config.json").exists()):
            raise UsageError(f"{out} is not a model's folder, and --force replaces nothing else")
    if partial_of(out).exists() and not resume and not force:
        raise UsageError(
            f"{partial_of(out)} is a conversion that was begun: --resume goes on with it, "
            "--force begins anew"
        )


def partial_of(out: Path) -> Path:
    """Where OUT is made."""
    return out.with_name(out.name + SUFFIX)


class Partial:
    """A conversion in the making, held by this process until `close`."""

    def __init__(self, out: Path, begun_with: dict[str, Any], *, resume: bool) -> None:
        """Go on with what is there, where `resume`; otherwise begin anew.

        begun_with: what the output is made of. Raises UsageError where what is there was begun with
        something else, or is being worked on; OSError.
        """
        self._out = out
        self._folder = partial_of(out)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            self._claim(begun_with, resume)
        except BaseException:
            self.close()
            raise

    def _claim(self, begun_with: dict[str, Any], resume: bool) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # gone with its process
        except OSError:
            raise UsageError(f"another mgm convert works on {self._folder}: wait for it") from None
        if self._replaced.exists():  # killed in `publish`
            if self._out.exists():
                shutil.rmtree(self._replaced)
            else:
                self._replaced.rename(self._out)
        record = self._folder / "begun.json"
        begun = _read(record)
        if resume and begun is not None:
            differing = [key for key in begun_with if begun.get(key) != begun_with[key]]
            if differing:
                raise UsageError(
                    f"{self._folder} was begun with other {' and '.join(differing)}: "
                    "resume with the same, or begin anew with --force alone"
                )
        else:
            for path in self._folder.iterdir():
                if path.is_dir():
                    shutil.rmtree(path)
                elif path.name != "lock":
                    path.unlink()
            write_text(record, json.dumps(begun_with))
        self.model.mkdir(exist_ok=True)

    @property
    def model(self) -> Path:
        """The output in the making."""
        return self._folder / "model"

    @property
    def _replaced(self) -> Path:
        return self._folder / "replaced"

    def journal(self, kind: str) -> Path:
        return self._folder / f"{kind}.journal"

    def publish(self) -> None:
        """Make it OUT, in the place of what may be there. Raises OSError."""
        if self._out.exists():
            self._out.rename(self._replaced)
        self.model.rename(self._out)
        self.close()
        shutil.rmtree(self._folder)

    def close(self) -> None:
        """Let go of it, and leave it for --resume."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):  # killed before or while it was written: nothing is begun
        return None
    return found if isinstance(found, dict) else None


def write_text(path: Path, text: str) -> None:
    """Write a file and wait until it is on the disk. Raises OSError."""
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def check_room(out: Path, needed: int) -> None:
    """Raise MgmError unless the disk takes the bytes that are not there yet."""
    partial = partial_of(out)
    there = sum(path.stat().st_blocks * 512 for path in partial.rglob("*.safetensors"))
    free = free_bytes(out)
    if needed - there > free:
        raise MgmError(
            f"{out} takes {decimal(needed - there)}, and the disk has {decimal(free)} "
            "left: make room, or name another place with --out"
        )
