"""Loading in slices: the weights of an opened model, a few megabytes at a time.

So a load can stop at any moment, and other models work in between. A large tensor is allocated
whole and filled row by row. Knows nothing of threads: who iterates reads files, and the slices
themselves call MLX.
"""

from __future__ import annotations

import io
import json
import math
import struct
from collections.abc import Generator, Iterator, Mapping
from itertools import starmap
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn

from mlx_gemma_mtp.device import backend
from mlx_gemma_mtp.files.sources import Joined, Made, Source, num_rows, read_rows
from mlx_gemma_mtp.files.tensors import CODES
from mlx_gemma_mtp.model.layers import FUSED

# Bytes of a slice as stored or as used, whichever is more. On two slow CPU cores 16 MiB take about
# 50 ms if they are cast and quantized.
SLICE = 16 << 20


class Piece(NamedTuple):
    """Rows of the parameters of a module that come from one source.

    quantized: the module is quantized, and its source is not.
    """

    module: nn.Module
    names: tuple[str, ...]
    source: Source
    quantized: bool
    first: int
    end: int

    @property
    def nbytes(self) -> int:
        """Bytes as stored."""
        return self.source.nbytes * (self.end - self.first) // max(1, num_rows(self.source))

    @property
    def typed(self) -> int:
        """Bytes before it is quantized."""
        return self.nbytes * self._type.size // self.source.dtype.size

    @property
    def held(self) -> int:
        """Bytes in memory besides the result, until it is there."""
        cast, apart = self._type != self.source.dtype, self.quantized or not self._is_whole
        return self.nbytes * (cast or apart) + self.typed * (cast and apart)

    @property
    def _type(self) -> mx.Dtype:
        """The type before it is quantized."""
        dtype: mx.Dtype = self.module["scales" if self.quantized else self.names[0]].dtype
        return dtype

    @property
    def _is_whole(self) -> bool:
        return self.end - self.first == num_rows(self.source)

    def place(self, make: Made) -> list[mx.array]:
        """Put these rows where they belong; returns what MLX must compute for it."""
        module, rows = self.module, [make().astype(self._type)]
        if self.quantized:
            how = {"group_size": module.group_size, "bits": module.bits, "mode": module.mode}
            rows = [*mx.quantize(rows[0], **how)]
        for name, part in zip(self.names, rows, strict=True):
            if self._is_whole:
                module[name] = part
                continue
            if self.first == 0:
                module[name] = empty((num_rows(self.source), *part.shape[1:]), part.dtype)
            module[name][self.first : self.end] = part
        return [module[name] for name in self.names]


Plan = list[list[Piece]]  # each list is a slice


class Slice(NamedTuple):
    """Pieces whose bytes are read. Place the slices in their order."""

    pieces: list[Piece]
    made: list[Made]

    @property
    def nbytes(self) -> int:
        """Bytes as stored."""
        return sum(piece.nbytes for piece in self.pieces)

    def place(self) -> None:
        """Put all pieces where they belong."""
        mx.eval(*starmap(Piece.place, zip(self.pieces, self.made, strict=True)))


def read_slices(plan: Plan) -> Generator[Slice]:
    """Read a plan, slice by slice. Errors as `read_rows`."""
    for pieces in plan:
        yield Slice(pieces, [read_rows(one.source, one.first, one.end) for one in pieces])


def plan_slices(model: nn.Module, sources: Mapping[str, Source], most: int = SLICE) -> Plan:
    """Divide the loading of an opened model, whose projections may be fused. Computes nothing.

    sources: of its parameters, by the names that they had before. most: bytes of a slice; a row
    may have more.
    """
    plan, room = Plan(), 0
    for piece in (part for one in _pieces(model, sources) for part in _divided(one, most)):
        size = max(piece.nbytes, piece.typed)
        if size > room:
            plan.append([])
            room = most
        plan[-1].append(piece)
        room -= size
    return plan


def _pieces(model: nn.Module, sources: Mapping[str, Source]) -> Iterator[Piece]:
    for path, module in model.named_modules():
        own = [name for name, value in module.items() if isinstance(value, mx.array)]
        own = [name for name in own if not name.startswith("_")]
        stored = _find(sources, path, "weight")
        quantized: tuple[str, ...] = ()
        if "scales" in own and stored and _find(sources, path, "scales") is None:
            quantized = tuple(name for name in ("weight", "scales", "biases") if name in own)
            yield Piece(module, quantized, stored, True, 0, num_rows(stored))
        for name in own:
            if name not in quantized:
                source = _find(sources, path, name)
                assert source is not None  # `fill` has checked it
                yield Piece(module, (name,), source, False, 0, num_rows(source))


def _find(sources: Mapping[str, Source], path: str, name: str) -> Source | None:
    """Return the source of a module's parameter, joined from several if the module was fused."""
    if found := sources.get(f"{path}.{name}" if path else name):
        return found
    parent, _, last = path.rpartition(".")
    names = [f"{parent}.{part}.{name}" for part in FUSED.get(last, ())]
    parts = [sources[one] for one in names if one in sources]
    return Joined(tuple(parts), axis=0) if parts else None


def _divided(piece: Piece, most: int) -> Iterator[Piece]:
    """Cut a piece into pieces of at most this many bytes, or of one row."""
    total = num_rows(piece.source)
    size = max(piece.nbytes, piece.typed)
    step = max(1, min(total, most * total // max(1, size)))
    for first in range(0, total, step):
        yield piece._replace(first=first, end=min(first + step, total))


class _Unread(io.BytesIO):
    """A file that starts with a header; what follows leaves a reader's buffer as it is."""

    def __init__(self, header: bytes, more: int) -> None:
        super().__init__(header)
        self._size = len(header) + more

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return super().seek(self._size + offset if whence == io.SEEK_END else offset)

    def readinto(self, buffer: Any) -> int:
        return super().readinto(buffer) or memoryview(buffer).nbytes


def empty(shape: tuple[int, ...], dtype: mx.Dtype) -> mx.array:
    """Return an array of undefined numbers.

    MLX itself has zeros only, and writing them takes a second per gigabyte on a slow CPU. With CUDA
    it takes less than this, because a file's numbers pass through the host.
    """
    if backend() == "cuda":
        zeros = mx.zeros(shape, dtype)
        mx.eval(zeros)
        return zeros
    size = math.prod(shape) * dtype.size
    entry = {"dtype": CODES[dtype], "shape": shape, "data_offsets": [0, size]}
    header = json.dumps({"": entry}).encode()
    file = _Unread(struct.pack("<Q", len(header)) + header, size)
    found = mx.load(file, format="safetensors")
    assert isinstance(found, dict)
    mx.eval(found)
    return found[""]
