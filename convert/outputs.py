"""One parameter of the output: its name, what of the source it is made of, how it is stored.

Knows that the experts' gate and up maps are one tensor here and two for MLX's tools.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import mlx.core as mx

from mlx_gemma_mtp.errors import CheckpointError, UsageError

from .formats import AFFINE_GROUPS, Format, layout
from .shards import Part
from .source import Source, SourceTensor


class Rows(NamedTuple):
    """Where the rows of an output lie in its source: in blocks, one every `stride` rows.

    The experts' gate and up rows alternate in one source tensor; all else is a single block.
    """

    tensor: SourceTensor
    block: int
    stride: int
    first: int

    def slices(self, begin: int, most: int) -> Iterator[tuple[int, int, int]]:
        """Output row, source row and number of rows of slices of at most this many bytes.

        They begin with the output's row `begin`.
        """
        step = max(1, most // self.tensor.row_bytes)
        for index in range(begin // self.block, self.tensor.num_rows // self.stride):
            for row in range(max(0, begin - index * self.block), self.block, step):
                source = index * self.stride + self.first + row
                yield index * self.block + row, source, min(step, self.block - row)


@dataclass(frozen=True)
class Output:
    """One parameter of the output; `path` is what rules call it, `dtype` its type unquantized."""

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


def tensor_sources(
    name: str, parameter: mx.array, source: Source
) -> Iterator[tuple[str, tuple[int, ...], Rows]]:
    """Name, shape and rows of what a parameter of ours is written as: itself, or its two halves.

    MLX's tools keep the experts' gate and up maps apart, and call all three `switch_glu`.
    """

    def find(wanted: str, shape: tuple[int, ...]) -> SourceTensor:
        tensor = source.tensors.get(wanted)
        if tensor is None:
            raise CheckpointError(f"{source.folder}: tensor {wanted} is missing: download it again")
        if tensor.shape != shape:
            raise CheckpointError(
                f"{source.folder}: tensor {wanted} has shape {list(tensor.shape)}, but config.json "
                f"asks for {list(shape)}: weights and config are of different models"
            )
        real = mx.issubdtype(tensor.dtype, mx.floating)
        if mx.issubdtype(parameter.dtype, mx.floating) and not real:
            raise CheckpointError(
                f"{source.folder}: tensor {wanted} holds {tensor.code}, not floating-point "
                "numbers: quantized by another tool? Give the original checkpoint"
            )
        return tensor

    shape = parameter.shape
    own_name = name.replace(".experts.", ".experts.switch_glu.")
    if not name.endswith(".experts.gate_up_proj.weight"):
        tensor = find(name, shape)
        yield own_name, shape, Rows(tensor, tensor.num_rows, tensor.num_rows, 0)
        return
    experts, rows, width = shape
    half = rows // 2
    for index, part in enumerate(("gate_proj", "up_proj")):
        if name in source.tensors:
            found = Rows(find(name, shape), half, rows, index * half)
        else:
            tensor = find(name.replace("gate_up_proj", part), (experts, half, width))
            found = Rows(tensor, tensor.num_rows, tensor.num_rows, 0)
        yield own_name.replace("gate_up_proj", part), (experts, half, width), found


def stored_parts(
    path: str, name: str, shape: tuple[int, ...], dtype: mx.Dtype, chosen: Format | None
) -> tuple[Part, ...]:
    if chosen is None:
        return (Part(name, dtype, shape),)
    width = shape[-1]
    if width % chosen.group_size:
        fitting = [size for size in AFFINE_GROUPS if width % size == 0]
        raise UsageError(
            f"{path} cannot be quantized to {chosen.name}: its width {width} does not divide by "
            f"the group size {chosen.group_size}; "
            + (f"group sizes that fit: {', '.join(map(str, fitting))}; or " if fitting else "")
            + f"--rule '{path}=none' leaves it as it is"
        )
    stem = name.removesuffix("weight")
    return tuple(
        Part(stem + part.suffix, part.dtype, (*shape[:-1], part.width))
        for part in layout(chosen, width, dtype)
    )
