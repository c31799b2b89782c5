"""Safetensors files in which every byte has its place before the first one is written.

So tensors can be written in any order and in slices. Knows nothing of models.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from .source import CODES

INDEX = "model.safetensors.index.json"


class Part(NamedTuple):
    """One stored array."""

    name: str
    dtype: mx.Dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return self.dtype.size * math.prod(self.shape)

    @property
    def row_bytes(self) -> int:
        return self.dtype.size * (self.shape[-1] if self.shape else 1)


class Shard(NamedTuple):
    """A file: its header, and the byte where each part starts."""

    name: str
    header: bytes
    places: dict[str, int]
    nbytes: int


def lay_out(groups: Iterable[Sequence[Part]], shard_bytes: int) -> list[Shard]:
    """Divide parts among files of at most `shard_bytes`; a group stays together.

    In a file, types of more bytes come first, so that each array starts at a multiple of its type's
    size, as readers that map files into memory want.
    """
    files: list[list[Part]] = []
    filled = 0
    for group in groups:
        size = sum(part.nbytes for part in group)
        if not files or filled + size > shard_bytes:
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
    data = 8 + len(text)
    places = {part: data + start for part, start in starts.items()}
    return Shard(name, len(text).to_bytes(8, "little") + text, places, data + end)


def index_json(shards: Sequence[Shard], total_bytes: int, num_weights: int) -> str:
    """Return the content of model.safetensors.index.json: which file holds which array."""
    files = {part: shard.name for shard in shards for part in shard.places}
    metadata = {"total_size": total_bytes, "total_parameters": num_weights}
    return json.dumps({"metadata": metadata, "weight_map": dict(sorted(files.items()))}, indent=1)


class ShardWriter:
    """Open files of a folder, written at known places.

    on_disk: called after every `sync_bytes`, with the rows by group that are on the disk now. Every
    method raises OSError.
    """

    def __init__(
        self,
        folder: Path,
        shards: Sequence[Shard],
        *,
        sync_bytes: int,
        on_disk: Callable[[dict[str, int]], None],
    ) -> None:
        self._sync_bytes = sync_bytes
        self._on_disk = on_disk
        self._pending: dict[str, int] = {}
        self._unsynced = 0
        self._files: list[int] = []
        self._places: dict[str, tuple[int, int]] = {}
        folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            for shard in shards:
                file = os.open(folder / shard.name, os.O_RDWR | os.O_CREAT, 0o644)
                stack.callback(os.close, file)
                self._files.append(file)
                os.ftruncate(file, shard.nbytes)
                _write_at(file, memoryview(shard.header), 0)
                self._places |= {part: (file, place) for part, place in shard.places.items()}
            self._opened = stack.pop_all()

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        with self._opened:
            if kind is None:
                self._sync()

    def write(self, part: Part, row: int, values: mx.array) -> None:
        """Write rows [N, width] of a part, from this row on."""
        file, place = self._places[part.name]
        data = np.asarray(values.view(mx.uint8)).data.cast("B")
        _write_at(file, data, place + row * part.row_bytes)
        self._unsynced += values.nbytes

    def finish(self, group: str, rows: int) -> None:
        """Note that all rows before this one are written, of all parts of a group."""
        self._pending[group] = rows
        if self._unsynced >= self._sync_bytes:
            self._sync()

    def _sync(self) -> None:
        for file in self._files:
            os.fsync(file)
        self._on_disk(self._pending)
        self._pending, self._unsynced = {}, 0


def _write_at(file: int, data: memoryview, place: int) -> None:
    while data:
        written = os.pwrite(file, data, place)
        data, place = data[written:], place + written
