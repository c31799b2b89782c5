"""A checkpoint's tensors in their files: headers are read at once, values in slices on request.

Knows safetensors files; doesn't know what the tensors are for.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from mlx_gemma_mtp.errors import CheckpointError
from mlx_gemma_mtp.files.checkpoint import canonical_name, read_header, weight_files

from .manifest import Origin

# The names that safetensors has for MLX's types.
DTYPES = {
    "BF16": mx.bfloat16,
    "F16": mx.float16,
    "F32": mx.float32,
    "I64": mx.int64,
    "I32": mx.int32,
    "I16": mx.int16,
    "I8": mx.int8,
    "U64": mx.uint64,
    "U32": mx.uint32,
    "U16": mx.uint16,
    "U8": mx.uint8,
    "BOOL": mx.bool_,
}
CODES = {dtype: code for code, dtype in DTYPES.items()}


class SourceTensor(NamedTuple):
    """A tensor in a file; `name` is the file's, `code` its type as safetensors names it."""

    name: str
    code: str
    shape: tuple[int, ...]
    path: Path
    start: int  # byte in the file
    nbytes: int

    @property
    def dtype(self) -> mx.Dtype:
        """Raises CheckpointError for a type that MLX lacks."""
        if self.code not in DTYPES:
            raise CheckpointError(
                f"{self.path}: tensor {self.name} has type {self.code}, which is not supported: "
                "give the original checkpoint"
            )
        return DTYPES[self.code]

    @property
    def width(self) -> int:
        """Elements per row; a vector is one row."""
        return self.shape[-1] if self.shape else 1

    @property
    def row_bytes(self) -> int:
        return self.width * self.dtype.size

    @property
    def num_rows(self) -> int:
        return math.prod(self.shape[:-1])


class Source(NamedTuple):
    """A checkpoint, known by its config.json and its headers."""

    origin: Origin
    folder: Path
    config: dict[str, Any]
    tensors: dict[str, SourceTensor]


def read_tensors(folder: Path) -> dict[str, SourceTensor]:
    """Return a checkpoint's tensors by this package's names; reads headers only.

    Raises CheckpointError for files that are missing, incomplete or inconsistent.
    """
    found = {}
    for path in weight_files(folder):
        header, start = read_header(path)
        for name, entry in header.items():
            found[canonical_name(name)] = parse_entry(name, entry, path, start)
    return found


def parse_entry(name: str, entry: Any, path: Path, start: int) -> SourceTensor:
    """Parse a header's entry; data start at byte `start`. Raises CheckpointError."""
    try:
        code, shape, (first, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        whole = isinstance(code, str)
        whole &= all(type(number) is int and number >= 0 for number in (*shape, first, end))
        if whole and code in DTYPES:
            whole = math.prod(shape) * DTYPES[code].size == end - first
    except (KeyError, TypeError, ValueError):
        whole = False
    if not whole:
        raise CheckpointError(f"{path} has a damaged header: download it again")
    return SourceTensor(name, code, shape, path, start + first, end - first)


def read_rows(tensor: SourceTensor, first: int, count: int) -> mx.array:
    """Read rows first .. first + count - 1 as [count, width]. Raises CheckpointError, OSError."""
    dtype, size = tensor.dtype, count * tensor.row_bytes
    raw = np.fromfile(
        tensor.path, np.uint8, count=size, offset=tensor.start + first * tensor.row_bytes
    )
    if raw.size < size:
        raise CheckpointError(f"{tensor.path} was cut short while it was read: download it again")
    unsigned = raw.view(f"u{dtype.size}").reshape(count, tensor.width)
    return mx.array(unsigned).view(dtype)
