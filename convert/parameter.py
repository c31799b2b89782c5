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

    The experts' gate and up rows may alternate in one source tensor, and each expert may have a
    tensor of its own, all of one shape; all others are a single block.
    """

    tensors: tuple[StoredTensor, ...]
    block: int
    stride: int
    first: int

    @property
    def dtype(self) -> mx.Dtype:
        return self.tensors[0].dtype

    @property
    def row_bytes(self) -> int:
        return self.tensors[0].row_bytes

    def slices(self, start: int, max_bytes: int) -> Iterator[tuple[int, StoredTensor, int, int]]:
        """Yield output row, source tensor, its row, and number of rows, from row `start` on."""
        step = max(1, max_bytes // self.row_bytes)
        in_each = self.tensors[0].num_rows // self.stride
        for index in range(start // self.block, in_each * len(self.tensors)):
            tensor, place = self.tensors[index // in_each], index % in_each
            for row in range(max(0, start - index * self.block), self.block, step):
                source = place * self.stride + self.first + row
                yield index * self.block + row, tensor, source, min(step, self.block - row)


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
        names, one_shape = [wanted], shape
        if ".experts." in wanted and wanted not in source.tensors:
            apart = [wanted.replace(".experts.", f".experts.{n}.") for n in range(shape[0])]
            if apart[0] in source.tensors:
                names, one_shape = apart, shape[1:]
        tensors = tuple(
            checked(source.folder, one, source.tensors.get(one), one_shape, array.dtype)
            for one in names
        )
        return Rows(tensors, tensors[0].num_rows, tensors[0].num_rows, 0)

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
