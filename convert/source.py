"""A checkpoint to convert: where it comes from, its config, and its tensors in their files.

Headers are read at once, values in slices on request. Of a checkpoint on the Hub the config and the
headers can be fetched alone. Knows safetensors files; doesn't know what the tensors are for.
"""

from __future__ import annotations

import math
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from mlx_gemma_mtp.errors import CheckpointError, ModelNotFoundError
from mlx_gemma_mtp.files import hub
from mlx_gemma_mtp.files.checkpoint import canonical_name, read_config, read_header, weight_files
from mlx_gemma_mtp.files.drafters import Target, to_pull
from mlx_gemma_mtp.files.find import find_pair
from mlx_gemma_mtp.files.names import is_folder, split_name

from .manifest import Origin

# The names that safetensors has for MLX's types.
DTYPES = {
    "BF16": mx.bfloat16,
    "F16": mx.float16,
    "F32": mx.float32,
    "BOOL": mx.bool_,
    **{f"I{8 * dtype.size}": dtype for dtype in (mx.int8, mx.int16, mx.int32, mx.int64)},
    **{f"U{8 * dtype.size}": dtype for dtype in (mx.uint8, mx.uint16, mx.uint32, mx.uint64)},
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
    def row_bytes(self) -> int:
        """Bytes of a row; a vector is one row."""
        return self.dtype.size * (self.shape[-1] if self.shape else 1)

    @property
    def num_rows(self) -> int:
        return math.prod(self.shape[:-1])


class Source(NamedTuple):
    """A checkpoint, known by its config.json and its headers."""

    origin: Origin
    folder: Path
    config: dict[str, Any]
    tensors: dict[str, SourceTensor]  # by this package's names


def find_sources(
    model: str | Path, drafter: str | Path | None, *, headers_only: bool = False
) -> list[Source]:
    """Return the target's checkpoint and, if there is one, the drafter's.

    Arguments and errors are those of `find_pair`. headers_only: download no weights.
    """
    here = _is_here(model) and (drafter in (None, "auto") or _is_here(drafter))
    if here or not headers_only:
        return [_local(folder) for folder in find_pair(model, drafter) if folder is not None]
    target = _headers(model)
    if drafter != "auto":
        return [target] if drafter is None else [target, _headers(drafter)]
    for name in to_pull(Target(target.origin.name, target.config)):
        with suppress(ModelNotFoundError):
            return [target, _headers(name)]
    return [target]


def _is_here(name: str | Path | None) -> bool:
    local = name == "demo" or isinstance(name, Path) or is_folder(str(name))
    return local or hub.from_cache(str(name)) is not None


def _local(folder: Path) -> Source:
    """Read a folder; in the Hub's cache, its origin is the repository and the commit."""
    origin, cached = Origin(folder.resolve().name, None), folder.parent.parent.name
    if folder.parent.name == "snapshots" and cached.startswith("models--"):
        name = cached.removeprefix("models--").replace("--", "/", 1)
        origin = Origin(name, folder.name)
    return Source(origin, folder, read_config(folder), read_tensors(folder))


def _headers(name: str | Path) -> Source:
    if _is_here(name):
        return _local(find_pair(name, None)[0])
    import huggingface_hub
    from huggingface_hub import errors

    folder = Path(str(name))  # as messages name it
    repository, revision = split_name(str(name))
    with hub.hub_errors(str(name)):
        api = huggingface_hub.HfApi()
        # First, because the other calls retry for half a minute if the Hub can't be reached.
        commit = api.model_info(repository, revision=revision).sha or revision
        config = huggingface_hub.hf_hub_download(repository, "config.json", revision=commit)
        try:
            metadata = api.get_safetensors_metadata(repository, revision=commit)
        except (errors.NotASafetensorsRepoError, errors.SafetensorsParsingError):
            raise CheckpointError(
                f"{name} has no complete safetensors files; other formats are not supported"
            ) from None
    tensors = {
        canonical_name(tensor): _parse_entry(tensor, vars(entry), folder / file, 0)
        for file, header in metadata.files_metadata.items()
        for tensor, entry in header.tensors.items()
    }
    return Source(Origin(repository, commit), folder, read_config(Path(config).parent), tensors)


def read_tensors(folder: Path) -> dict[str, SourceTensor]:
    """Return a checkpoint's tensors by this package's names; reads headers only.

    Raises CheckpointError for files that are missing, incomplete or inconsistent.
    """
    found = {}
    for path in weight_files(folder):
        header, start = read_header(path)
        for name, entry in header.items():
            found[canonical_name(name)] = _parse_entry(name, entry, path, start)
    return found


def _parse_entry(name: str, entry: Any, path: Path, start: int) -> SourceTensor:
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
    return mx.array(raw.view(f"u{dtype.size}").reshape(count, -1)).view(dtype)
