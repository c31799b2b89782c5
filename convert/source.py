"""A checkpoint to convert: where it comes from, its config, and its tensors in their files.

Headers are read at once, values in slices on request. Of a checkpoint on the Hub the config and the
headers can be fetched alone. Knows safetensors files; doesn't know what the tensors are for.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from mlx_gemma_mtp.errors import CheckpointError, ModelNotFoundError
from mlx_gemma_mtp.files import hub
from mlx_gemma_mtp.files.checkpoint import read_config
from mlx_gemma_mtp.files.drafters import Target, to_pull
from mlx_gemma_mtp.files.find import find_pair
from mlx_gemma_mtp.files.names import drafter_called, is_local
from mlx_gemma_mtp.files.plan import look_up
from mlx_gemma_mtp.files.preview import previews
from mlx_gemma_mtp.files.tensors import StoredTensor, read_tensors

from .manifest import Origin


class Source(NamedTuple):
    """A checkpoint, known by its config.json and its headers."""

    origin: Origin
    folder: Path
    config: dict[str, Any]
    tensors: dict[str, StoredTensor]  # by this package's names


def find_sources(
    model: str | Path, drafter: str | Path | None, *, headers_only: bool = False
) -> list[Source]:
    """Return the target's checkpoint and, if there is one, the drafter's.

    Arguments and errors are those of `find_pair`. headers_only: download no weights.
    """
    drafter = drafter_called(drafter)
    here = _is_here(model) and (drafter in (None, "auto") or _is_here(drafter))
    if here or not headers_only:
        return [_local(folder) for folder in find_pair(model, drafter) if folder is not None]
    target = _headers(model)
    if drafter != "auto":
        return [target] if drafter is None else [target, _headers(drafter)]
    for name in to_pull(Target(target.origin.name, target.config)):
        with suppress(ModelNotFoundError, CheckpointError):
            return [target, _headers(name)]
    return [target]


def _is_here(name: str | Path | None) -> bool:
    return isinstance(name, Path) or is_local(str(name)) or hub.from_cache(str(name)) is not None


def _local(folder: Path) -> Source:
    """Read a folder; in the Hub's cache, its origin is the repository and the commit."""
    origin = Origin(folder.resolve().name, None)
    if folder.parent.name == "snapshots":
        origin = Origin(hub.repository_of(folder.parents[1]), folder.name)
    return Source(origin, folder, read_config(folder), read_tensors(folder))


def _headers(name: str | Path) -> Source:
    if _is_here(name):
        return _local(find_pair(name, None)[0])
    found = look_up(str(name))
    with previews([found]) as [folder]:
        origin = Origin(found.repository, found.commit)
        return Source(origin, Path(found.name), read_config(folder), read_tensors(folder))


def read_rows(tensor: StoredTensor, first: int, count: int) -> mx.array:
    """Read rows first .. first + count - 1 as [count, width]. Raises CheckpointError, OSError."""
    dtype, size = tensor.dtype, count * tensor.row_bytes
    raw = np.fromfile(
        tensor.path, np.uint8, count=size, offset=tensor.start + first * tensor.row_bytes
    )
    if raw.size < size:
        raise CheckpointError(f"{tensor.path} was cut short while it was read: download it again")
    return mx.array(raw.view(f"u{dtype.size}").reshape(count, -1)).view(dtype)
