"""What a checkpoint's weights take in memory, from the headers of its files alone.

Follows `weights`: which tensors a text model uses, in which type, quantized how. Reads no weights
and uses no device.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx

from mlx_gemma_mtp.device import backend
from mlx_gemma_mtp.errors import CheckpointError
from mlx_gemma_mtp.files.checkpoint import (
    EIGHT_BIT,
    GROUP_SIZE,
    canonical_name,
    read_config,
    read_drafter_config,
    read_header,
    read_target_config,
    weight_files,
)
from mlx_gemma_mtp.model.config import DRAFTER_TYPES, DrafterConfig, LayerConfig, TargetConfig


class Size(NamedTuple):
    """Bytes of weights: once they are loaded, and at most until they are; and of a number in
    activations, keys and values of what is loaded."""

    loaded: int
    loading: int
    dtype_bytes: int


class _Stored(NamedTuple):
    """A tensor in the files that the text model uses."""

    name: str  # ours
    layer: str | None  # its number; None for one outside the layers
    elements: int
    nbytes: int
    floating: bool
    quantizable: bool

    def typed(self, dtype_bytes: int) -> int:
        """Its bytes in the type that it is loaded in."""
        if self.floating:
            return self.elements * dtype_bytes
        return self.elements * 4 if self.name.endswith("token_ordering") else self.nbytes

    def loaded(self, bits: int | None, dtype_bytes: int) -> int:
        """Its bytes in the end, as `weights` quantizes while loading."""
        if bits is None or not self.quantizable:
            return self.typed(dtype_bytes)
        own = 8 if self.name.removesuffix(".weight").endswith(EIGHT_BIT) else bits
        scales_and_biases = 2 * dtype_bytes * self.elements // GROUP_SIZE
        return self.elements * own // 8 + scales_and_biases


# The parts of a target or drafter; of a layer its number, and if it makes keys or values, which.
_PARTS = re.compile(
    r"layers\.(?P<layer>\d{1,6})\.(?:self_attn\.(?P<kv>[kv])_)?"
    r"|norm\.|embed_tokens(?:_per_layer)?\.|per_layer_|(?:pre|post)_projection\.|masked_embedding\."
)


def checkpoint_size(
    folder: Path, *, bits: int | None = None, dtype: mx.Dtype | None = None
) -> Size:
    """What the weights in a folder take once they are loaded, and on the way there at most.

    Counted from the headers of its files alone. bits, dtype: as `weights.load_target` takes them.
    Layers are read one after the other, what is outside them at last and at once; what is cast or
    quantized stands beside what it becomes. (To join projections later takes less than a text.)
    Raises CheckpointError.
    """
    dtype_bytes = _activation_bytes(folder) if dtype is None else dtype.size
    loaded: dict[str | None, int] = {None: 0}
    passing: dict[str | None, int] = {None: 0}
    for tensor in _stored(folder):
        after, layer = tensor.loaded(bits, dtype_bytes), tensor.layer
        before = {tensor.nbytes, tensor.typed(dtype_bytes)} - {after}
        loaded[layer] = loaded.get(layer, 0) + after
        passing[layer] = passing.get(layer, 0) + sum(before)
    total, outside = sum(loaded.values()), loaded[None]
    outside_passing = passing.pop(None)
    in_layers = total - outside + max(passing.values(), default=0)
    return Size(total, max(in_layers, total + outside_passing), dtype_bytes)


def _activation_bytes(folder: Path) -> int:
    """Bytes of a number in activations, keys and values of what is loaded from a folder."""
    if backend() == "cpu":
        return 4
    norm = next((tensor for tensor in _stored(folder) if tensor.name == "norm.weight"), None)
    return norm.nbytes // max(norm.elements, 1) if norm else 2


def _stored(folder: Path) -> Iterator[_Stored]:
    """The tensors of a checkpoint, without those that the text model leaves in the files."""
    raw = read_config(folder)
    config: TargetConfig | DrafterConfig
    if raw.get("model_type") in DRAFTER_TYPES:
        config = read_drafter_config(folder)
    else:
        config = read_target_config(folder)
    for path in weight_files(folder):
        header, _ = read_header(path)
        for stored_name, entry in header.items():
            name = canonical_name(stored_name)
            part = _PARTS.match(name)
            if part and _is_used(config.layers, part["layer"], part["kv"]):
                try:
                    yield _tensor(name, part["layer"], entry)
                except (AttributeError, KeyError, TypeError, ValueError):
                    raise CheckpointError(
                        f"{path} has a damaged header: download it again"
                    ) from None


def _is_used(layers: tuple[LayerConfig, ...], number: str | None, key_or_value: str | None) -> bool:
    if number is None:
        return True
    if int(number) >= len(layers):
        return False
    layer = layers[int(number)]
    return key_or_value is None or (layer.owns_kv and not (layer.k_eq_v and key_or_value == "v"))


def _tensor(name: str, layer: str | None, entry: dict[str, Any]) -> _Stored:
    (start, end), shape = entry["data_offsets"], entry["shape"]
    if any(type(number) is not int for number in (start, end, *shape)):
        raise TypeError("sizes are whole numbers")
    floating = entry["dtype"].startswith(("F", "BF"))
    is_matrix = len(shape) > 1 and name.endswith(".weight")
    return _Stored(name, layer, math.prod(shape), end - start, floating, floating and is_matrix)
