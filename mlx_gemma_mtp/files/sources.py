"""Where a model's tensor comes from: one in a file, or several that are put together.

Reads rows of it, so that a large tensor is never in memory twice. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from mlx_gemma_mtp.errors import CheckpointError
from mlx_gemma_mtp.files.tensors import StoredTensor

# Calls MLX: for its thread.
Made = Callable[[], mx.array]


class Joined(NamedTuple):
    """Tensors that are one in the model. axis: where they are joined; None for a new first one."""

    parts: tuple[Source, ...]
    axis: int | None

    @property
    def shape(self) -> tuple[int, ...]:
        first = self.parts[0].shape
        if self.axis is None:
            return (len(self.parts), *first)
        total = sum(part.shape[self.axis] for part in self.parts)
        return (*first[: self.axis], total, *first[self.axis + 1 :])

    @property
    def dtype(self) -> mx.Dtype:
        return self.parts[0].dtype

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts)


Source = StoredTensor | Joined


def num_rows(source: Source) -> int:
    """Return the length of the first axis; 1 for a number."""
    return source.shape[0] if source.shape else 1


def whole(source: Source, files: Mapping[Path, Mapping[str, mx.array]]) -> mx.array:
    """Return all of it; MLX reads it when it is used. files: what `mx.load` returned."""
    if isinstance(source, StoredTensor):
        return files[source.path][source.name]
    parts = [whole(part, files) for part in source.parts]
    return mx.stack(parts) if source.axis is None else mx.concatenate(parts, axis=source.axis)


def read_rows(source: Source, first: int, end: int) -> Made:
    """Read these rows on this thread; the result makes an array of them on MLX's.

    Raises CheckpointError if a file has become shorter or has gone.
    """
    if isinstance(source, StoredTensor):
        return _read(source, first, end)
    axis, parts = source.axis, list[Made]()
    if axis is None:
        parts = [read_rows(part, 0, num_rows(part)) for part in source.parts[first:end]]
        return lambda: mx.stack([make() for make in parts])
    start = 0
    for part in source.parts:
        if axis > 0:
            parts.append(read_rows(part, first, end))
            continue
        own_first, own_end = max(first - start, 0), min(end - start, num_rows(part))
        if own_first < own_end:
            parts.append(read_rows(part, own_first, own_end))
        start += num_rows(part)
    return lambda: mx.concatenate([make() for make in parts], axis=axis)


def _read(tensor: StoredTensor, first: int, end: int) -> Made:
    size, shape = tensor.nbytes // max(1, num_rows(tensor)), tensor.shape
    shape = (end - first, *shape[1:]) if shape else shape
    try:
        data = np.fromfile(
            tensor.path, np.uint8, (end - first) * size, offset=tensor.start + first * size
        )
    except OSError as error:
        raise CheckpointError(f"{tensor.path} cannot be read: {error.strerror}") from None
    if data.size != (end - first) * size:
        raise CheckpointError(f"{tensor.path} has become shorter: download it again")
    return lambda: mx.array(data).view(tensor.dtype).reshape(shape)
