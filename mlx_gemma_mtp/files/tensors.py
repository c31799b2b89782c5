"""The tensors of a checkpoint: which file each is in, its type, shape and place.

Reads headers only. The index of a sharded checkpoint decides which file a tensor comes from. Knows
the names that Transformers and MLX's tools give to the same tensor, not what a model needs.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx

from mlx_gemma_mtp.errors import CheckpointError
from mlx_gemma_mtp.files.checkpoint import LFS_POINTER, lfs_pointer, read_index, weight_files

# The names that safetensors has for MLX's types.
DTYPES = {
    "BF16": mx.bfloat16,
    "F16": mx.float16,
    "F32": mx.float32,
    "BOOL": mx.bool_,
    **{f"I{8 * dtype.size}": dtype for dtype in (mx.int8, mx.int16, mx.int32, mx.int64)},
    **{f"U{8 * dtype.size}": dtype for dtype in (mx.uint8, mx.uint16, mx.uint32, mx.uint64)},
}
FLOATS = ("BF16", "F16", "F32")
CODES = {dtype: code for code, dtype in DTYPES.items()}

# How the names of a text model's tensors start; others belong to towers or to heads for training.
_TEXT = (
    *("layers.", "norm.", "embed_tokens", "per_layer_", "lm_head."),
    *("masked_embedding.", "pre_projection.", "post_projection.", "language_model."),
)
_WRAPPERS = ("base_model.model.", "_orig_mod.", "module.")  # PEFT, torch.compile, DataParallel
_PREFIX = re.compile(r"((model|language_model)\.)*")


class StoredTensor(NamedTuple):
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
                "use the original checkpoint"
            )
        return DTYPES[self.code]

    @property
    def row_bytes(self) -> int:
        """Bytes of a row; a vector is one row."""
        return self.dtype.size * (self.shape[-1] if self.shape else 1)

    @property
    def num_rows(self) -> int:
        return math.prod(self.shape[:-1])


def read_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Return a checkpoint's tensors by our names; reads headers only.

    A tensor that the index names comes from that file, wherever else the name occurs. Raises
    CheckpointError for files that are missing, incomplete or inconsistent, for a tensor that is
    stored twice, and if all names are another model's.
    """
    listed = read_index(folder)
    found: dict[str, StoredTensor] = {}
    for path in weight_files(folder):
        header, start = read_header(path)
        for name, entry in header.items():
            tensor, own_name = parse_entry(name, entry, path, start), canonical_name(name)
            if (other := found.get(own_name)) is not None:
                mine, theirs = (listed.get(one.name) == one.path.name for one in (tensor, other))
                if mine == theirs:
                    places = " and ".join(f"{one.path.name}: {one.name}" for one in (other, tensor))
                    raise CheckpointError(
                        f"{folder} has tensor {own_name} twice ({places}): remove the file that "
                        "doesn't belong"
                    )
                if theirs:
                    continue
            found[own_name] = tensor
    if not found:
        raise CheckpointError(f"{folder} has no tensors in its weight files: download it again")
    if not any(map(is_text, found)):
        raise CheckpointError(
            f"{folder} has no tensor with a name of Gemma 4's text model, only such as "
            f"{min(found)}: save it under the names that Transformers gives them"
        )
    return found


def read_header(path: Path) -> tuple[dict[str, Any], int]:
    """Return a safetensors file's entries by tensor name, unchecked, and where its data start.

    Raises CheckpointError unless the file is as long as its header says.
    """
    with path.open("rb") as file:
        start = file.read(8)
        if LFS_POINTER.startswith(start.decode(errors="replace") or "-"):
            raise lfs_pointer(path)
        size = struct.unpack("<Q", start)[0] if len(start) == 8 else path.stat().st_size
        try:
            header = json.loads(file.read(size)) if size < path.stat().st_size else None
        except (ValueError, RecursionError):
            header = None
    if not isinstance(header, dict):
        raise CheckpointError(f"{path} is not a whole safetensors file: download it again")
    header.pop("__metadata__", None)
    try:
        ends = [entry["data_offsets"][1] for entry in header.values()]
        missing = 8 + size + max(ends, default=0) - path.stat().st_size
    except (KeyError, TypeError, IndexError):
        raise CheckpointError(f"{path} has a damaged header: download it again") from None
    if missing:
        what = f"cut short by {missing}" if missing > 0 else f"too long by {-missing}"
        raise CheckpointError(f"{path} is {what} bytes: download it again")
    return header, 8 + size


def parse_entry(name: str, entry: Any, path: Path, start: int) -> StoredTensor:
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
    return StoredTensor(name, code, shape, path, start + first, end - first)


def canonical_name(name: str) -> str:
    """Return our name for a tensor: the text-only checkpoint's, without its `model.`.

    An unknown one within a `language_model.` keeps that, since it belongs to the text model.
    """
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "", 1) if name.startswith(wrapper) else name
    whole_name = name.replace("._orig_mod.", ".")
    name = _PREFIX.sub("", whole_name, count=1).replace(".experts.switch_glu.", ".experts.")
    if not name.startswith(_TEXT) and "language_model." in whole_name:
        return f"language_model.{name}"
    whole = name.endswith((".experts.gate_up_proj", ".experts.down_proj"))
    return f"{name}.weight" if whole else name


def is_text(name: str) -> bool:
    """Return True if a tensor, by our name, belongs to the text model."""
    return name.startswith(_TEXT)


def blocks(tensor: StoredTensor, size: int = 2**24) -> Iterator[bytes]:
    """Yield a tensor's bytes as stored, at most `size` at a time."""
    with tensor.path.open("rb") as file:
        file.seek(tensor.start)
        for done in range(0, tensor.nbytes, size):
            yield file.read(min(size, tensor.nbytes - done))
