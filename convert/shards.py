"""Safetensors files whose every byte has its place before the first one is written.

Tensors can then be written in any order and in slices, and a run that was killed goes on: a journal
lists what is on the disk for good. Knows nothing of models.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from .source import CODES

SHARD_BYTES = 5_000_000_000  # a file's most; a tensor larger than this gets a file of its own
INDEX = "model.safetensors.index.json"


class Part(NamedTuple):
    """One stored array."""

    name: str
    dtype: mx.Dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        size = self.dtype.size
        for length in self.shape:
            size *= length
        return size

    @property
    def row_bytes(self) -> int:
        return self.dtype.size * (self.shape[-1] if self.shape else 1)


class Shard(NamedTuple):
    """A file: its header, and for each part the byte where it begins."""

    name: str
    header: bytes
    places: dict[str, int]
    nbytes: int


def lay_out(groups: Iterable[Sequence[Part]]) -> list[Shard]:
    """Divide parts among files of at most SHARD_BYTES; a group stays together.

    In a file, types of more bytes come first, so that each array begins at a multiple of its type's
    size, which readers that map files into memory want.
    """
    files: list[list[Part]] = []
    filled = 0
    for group in groups:
        size = sum(part.nbytes for part in group)
        if not files or filled + size > SHARD_BYTES:
            files.append([])
            filled = 0
        files[-1].extend(group)
        filled += size
    count = len(files)
    return [
        _shard(
            "model.safetensors" if count == 1 else f"model-{n:05d}-of-{count:05d}.safetensors",
            sorted(parts, key=lambda part: -part.dtype.size),
        )
        for n, parts in enumerate(files, 1)
    ]


def _shard(name: str, parts: Sequence[Part]) -> Shard:
    header: dict[str, object] = {"__metadata__": {"format": "mlx"}}
    starts: dict[str, int] = {}
    end = 0
    for part in parts:
        starts[part.name] = end
        end += part.nbytes
        header[part.name] = {
            "dtype": CODES[part.dtype],
            "shape": list(part.shape),
            "data_offsets": [starts[part.name], end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    begin = 8 + len(text)
    places = {part: begin + start for part, start in starts.items()}
    return Shard(name, len(text).to_bytes(8, "little") + text, places, begin + end)


def index_json(shards: Sequence[Shard], total_bytes: int, parameters: int) -> str:
    """model.safetensors.index.json: which file holds which array."""
    where = {part: shard.name for shard in shards for part in shard.places}
    metadata = {"total_size": total_bytes, "total_parameters": parameters}
    return json.dumps({"metadata": metadata, "weight_map": dict(sorted(where.items()))}, indent=1)


class ShardWriter:
    """Open files of a folder, written at known places.

    `finished` says how many rows of a group an earlier run had put on the disk: the journal's
    lines, of which the last for a group counts. One is written when the rows have reached the disk,
    every `sync_bytes`. Every method raises OSError.
    """

    def __init__(
        self, folder: Path, journal: Path, shards: Sequence[Shard], *, sync_bytes: int
    ) -> None:
        self._sync_bytes = sync_bytes
        self._pending: dict[str, int] = {}
        self._unsynced = 0
        self._files: list[int] = []
        self._places: dict[str, tuple[int, int]] = {}
        folder.mkdir(parents=True, exist_ok=True)
        self._journal = os.open(journal, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            if not all(_has_size(folder / shard.name, shard.nbytes) for shard in shards):
                os.ftruncate(self._journal, 0)
            self.finished = _read_journal(self._journal)
            for shard in shards:
                file = self._open(folder / shard.name, shard)
                self._places |= {part: (file, place) for part, place in shard.places.items()}
        except OSError:
            self._close()
            raise

    def _open(self, path: Path, shard: Shard) -> int:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        self._files.append(file)
        os.ftruncate(file, shard.nbytes)
        _write_at(file, memoryview(shard.header), 0)
        return file

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._sync()
        finally:
            self._close()

    def write(self, part: Part, row: int, values: mx.array) -> None:
        """Put rows [N, width] of a part, from this row on."""
        file, place = self._places[part.name]
        data = np.asarray(values.view(mx.uint8)).data.cast("B")
        _write_at(file, data, place + row * part.row_bytes)
        self._unsynced += values.nbytes

    def finish(self, name: str, rows: int) -> None:
        """All rows before this one are written, of all parts of a group."""
        self._pending[name] = rows
        if self._unsynced >= self._sync_bytes:
            self._sync()

    def _sync(self) -> None:
        for file in self._files:
            os.fsync(file)
        lines = "".join(f"{rows} {name}\n" for name, rows in self._pending.items())
        os.write(self._journal, lines.encode())
        self._pending, self._unsynced = {}, 0

    def _close(self) -> None:
        for file in [*self._files, self._journal]:
            os.close(file)


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _read_journal(file: int) -> dict[str, int]:
    """Rows by group, of the journal's whole lines; what a kill left of another is cut off."""
    text = os.pread(file, os.fstat(file).st_size, 0)
    whole = text[: text.rfind(b"\n") + 1]
    os.ftruncate(file, len(whole))
    lines = (line.split(" ", 1) for line in whole.decode().splitlines())
    return {name: int(rows) for rows, name in lines}


def _write_at(file: int, data: memoryview, place: int) -> None:
    while data:
        written = os.pwrite(file, data, place)
        data, place = data[written:], place + written
