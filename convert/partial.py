"""The folder next to the output in which a conversion is made: started, resumed, or refused.

`OUT.partial` holds `model`, the output in the making, and a journal of what it was started with and
what is on the disk. It can't be loaded; publishing is one rename. Knows nothing of weights.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from rich.filesize import decimal

from mlx_gemma_mtp.errors import MgmError, UsageError
from mlx_gemma_mtp.files.folders import free_bytes
from mlx_gemma_mtp.files.journal import Journal

FORMAT = "mgm conversion 1"
JOURNAL, MODEL, REPLACED = "journal", "model", "replaced"
PARTS = {JOURNAL, MODEL, REPLACED}  # of a conversion in the making


def check_place(out: Path, *, resume: bool, force: bool) -> None:
    """Raise UsageError unless OUT may be made now."""
    if not out.name:
        raise UsageError(f"{out} cannot be an output: name a folder")
    if out.exists():
        if not force:
            raise UsageError(f"{out} exists: --force replaces it, --out names another folder")
        if not out.is_dir() or (any(out.iterdir()) and not (out / "config.json").exists()):
            raise UsageError(f"{out} is not a model's folder: --force replaces only those")
    partial = partial_of(out)
    if not partial.exists():
        return
    if not partial.is_dir() or {path.name for path in partial.iterdir()} - PARTS:
        raise UsageError(f"{partial} is not an unfinished conversion: move it, or change --out")
    if not resume and not force:
        raise UsageError(
            f"{partial} is an unfinished conversion: --resume continues it, --force starts over"
        )


def partial_of(out: Path) -> Path:
    """Return the folder where OUT is made."""
    return out.with_name(out.name + ".partial")


class Partial:
    """A conversion in the making, held by this process until `close`."""

    def __init__(self, out: Path, started_with: dict[str, Any], *, resume: bool) -> None:
        """Continue with what is there if `resume`, otherwise start over.

        started_with: whatever the output depends on. Raises UsageError if the conversion was
        started with something else, or another process works on it; OSError.
        """
        self._out = out
        self._folder = partial_of(out)
        self._replaced = self._folder / REPLACED
        self.model = self._folder / MODEL  # the output in the making
        self.finished: dict[str, dict[str, int]] = {}  # rows on the disk, by model and weight
        self._folder.mkdir(parents=True, exist_ok=True)
        self._journal = Journal(self._folder / JOURNAL, str(self._folder))
        try:
            if self._replaced.exists():  # killed in `publish`
                if out.exists():
                    shutil.rmtree(self._replaced)
                else:
                    self._replaced.rename(out)
            header = {"format": FORMAT, "with": started_with}
            option = "--force, without --resume"
            _, *events = self._journal.resume(header, restart=not resume, option=option)
            for event in events:
                self.finished.setdefault(event["model"], {}).update(event["rows"])
            if not events and self.model.exists():
                shutil.rmtree(self.model)
            self.model.mkdir(exist_ok=True)
        except BaseException:
            self.close()
            raise

    def on_disk(self, kind: str, rows: dict[str, int]) -> None:
        """Note how many rows of weights are on the disk. Raises OSError."""
        self._journal.write({"model": kind, "rows": rows})

    def publish(self) -> None:
        """Rename it to OUT, which it replaces. Raises OSError."""
        if self._out.exists():
            self._out.rename(self._replaced)
        self.model.rename(self._out)
        shutil.rmtree(self._folder)

    def close(self) -> None:
        """Release it, and leave it for --resume."""
        self._journal.close()


def check_room(out: Path, needed: int) -> None:
    """Raise MgmError unless the disk has room for the bytes that are missing."""
    partial = partial_of(out)
    there = sum(path.stat().st_blocks * 512 for path in partial.rglob("*.safetensors"))
    free = free_bytes(out)
    if needed - there > free:
        raise MgmError(
            f"{out} needs {decimal(needed - there)}, but the disk has {decimal(free)} "
            "left: make room, or choose another place with --out"
        )
