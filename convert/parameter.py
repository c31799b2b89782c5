"""One parameter of the output: its name, where its rows lie in the source, how it is stored.

Knows that the experts' gate and up maps are one tensor here and two in MLX's tools.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import mlx.core as mx

from mlx_gemma_mtp.errors import UsageError
from mlx_gemma_mtp.files.tensors import StoredTensor
from mlx_gemma_mtp.files.weights import checked

from .formats import AFFINE_GROUPS, Format, quantize
from .shards import Part
from .source import Source


class Rows(NamedTuple):
    """Where a parameter's rows lie in its source: in blocks, one every `stride` rows.

    The experts' gate and up rows alternate in one source tensor; all others are a single block.
    """

    tensor: StoredTensor
    block: int
    stride: int
    first: int

    def slices(self, start: int, max_bytes: int) -> Iterator[tuple[int, int, int]]:
        """Yield output row, source row and number of rows of slices, from output row `start` on."""
        step = max(1, max_bytes // self.tensor.row_bytes)
        for index in range(start // self.block, self.tensor.num_rows // self.stride):
            for row in range(max(0, start - index * self.block), self.block, step):
                source = index * self.stride + self.first + row
                yield index * self.block + row, source, min(step, self.block - row)


@dataclass(frozen=True)
class Parameter:
    """One parameter; `path` is what rules call it, `dtype` its type before quantizing."""

    path: str
    name: str
    shape: tuple[int, ...]
    dtype: mx.Dtype
    quantizable: bool
    format: Format | None
    rows: Rows
    parts: tuple[Part, ...]

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts)


def locate(
    name: str, array: mx.array, source: Source
) -> Iterator[tuple[str, tuple[int, ...], Rows]]:
    """Yield name, shape and rows of the tensors that a parameter is written as: one, or two halves.

    array: the parameter as the model has it. MLX's tools keep the experts' gate and up maps apart,
    and call all three `switch_glu`. Raises CheckpointError for missing or unfit tensors.
    """

    def rows_of(wanted: str, shape: tuple[int, ...]) -> Rows:
        found = source.tensors.get(wanted)
        tensor = checked(source.folder, wanted, found, shape, array.dtype)
        return Rows(tensor, tensor.num_rows, tensor.num_rows, 0)

    own_name = name.replace(".experts.", ".experts.switch_glu.")
    if not name.endswith(".experts.gate_up_proj.weight"):
        yield own_name, array.shape, rows_of(name, array.shape)
        return
    experts, rows, width = array.shape
    half = (experts, rows // 2, width)
    for index, part in enumerate(("gate_proj", "up_proj")):
        if name in source.tensors:
            both = rows_of(name, array.shape)
            found = both._replace(block=rows // 2, stride=rows, first=index * rows // 2)
        else:
            found = rows_of(name.replace("gate_up_proj", part), half)
        yield own_name.replace("gate_up_proj", part), half, found


def stored_parts(
    path: str, name: str, shape: tuple[int, ...], dtype: mx.Dtype, chosen: Format | None
) -> tuple[Part, ...]:
    """Return the arrays that a parameter is stored as. Raises UsageError for an unfit width."""
    if chosen is None:
        return (Part(name, dtype, shape),)
    width = shape[-1]
    if width % chosen.group_size:
        fitting = [str(size) for size in AFFINE_GROUPS if width % size == 0]
        choose = f"choose group size {' or '.join(fitting)}, or " if fitting else ""
        raise UsageError(
            f"{path} cannot be quantized to {chosen.name}: its width {width} is not a multiple of "
            f"{chosen.group_size}; {choose}keep it unquantized with --rule '{path}=none'"
        )
    row = quantize(mx.zeros((1, width), dtype), chosen)
    stem = name.removesuffix("weight")
    return tuple(
        Part(stem + suffix, array.dtype, (*shape[:-1], array.shape[-1]))
        for suffix, array in zip(("weight", "scales", "biases"), row, strict=False)
    )
