"""Safetensors files as they will be: every byte has its place before the first one is written.

So tensors can be written in any order and in slices. Knows nothing of models; writes nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import mlx.core as mx

from mlx_gemma_mtp.files.tensors import CODES


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
    """Divide parts among files of at most `shard_bytes`; a group stays together."""
    files: list[list[Part]] = []
    filled = 0
    for group in groups:
        size = sum(part.nbytes for part in group)
        if not files or filled + size > shard_bytes:
            files.append([])
            filled = 0
        files[-1].extend(group)
        filled += size
    if len(files) == 1:
        return [_shard("model.safetensors", files[0])]
    names = [f"model-{n:05d}-of-{len(files):05d}.safetensors" for n in range(1, len(files) + 1)]
    return [_shard(name, parts) for name, parts in zip(names, files, strict=True)]


def _shard(name: str, parts: Sequence[Part]) -> Shard:
    header: dict[str, object] = {"__metadata__": {"format": "mlx"}}
    starts: dict[str, int] = {}
    end = 0
    # Types of more bytes come first, so that each array starts at a multiple of its type's size, as
    # readers that map files into memory want.
    for part in sorted(parts, key=lambda part: -part.dtype.size):
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
