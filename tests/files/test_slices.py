"""A model that is loaded in slices, however small, is the same; no slice is larger than it may be.

The tiny models would fit into one slice, so these have a few kilobytes.
"""

from pathlib import Path

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from helpers.arrays import (
    AFFINE,
    assert_same_bits,
    cast,
    quantize_arrays,
    to_mlx_names,
    write,
)
from helpers.checkpoints import PairPaths
from mlx_gemma_mtp.errors import CheckpointError
from mlx_gemma_mtp.files.checkpoint import read_config
from mlx_gemma_mtp.files.slices import empty, plan_slices, read_slices
from mlx_gemma_mtp.files.sources import num_rows
from mlx_gemma_mtp.files.weights import find_sources, open_target
from mlx_gemma_mtp.model.layers import fuse_projections
from mlx_gemma_mtp.model.target import Target

MOST = 4096  # bytes


def load_in_slices(folder: Path, bits: int | None, most: int) -> Target:
    target = open_target(folder, bits=bits)
    sources = find_sources(target, folder)
    fuse_projections(target)
    plan = plan_slices(target, sources, most)
    for pieces in plan:
        sizes = [max(piece.nbytes, piece.typed) for piece in pieces]
        a_row = len(pieces) == 1 and pieces[0].end - pieces[0].first == 1
        assert sum(sizes) <= most or a_row
    assert len(plan) > 50
    for each in read_slices(plan):
        each.place()
    return target


def as_a_whole(folder: Path, bits: int | None) -> Target:
    target = fuse_projections(open_target(folder, bits=bits))
    mx.eval(target.parameters())
    return target


@pytest.mark.parametrize("bits", [None, 4])
def test_slices_give_the_bits_of_a_load_in_one_piece(pair: PairPaths, bits: int | None) -> None:
    assert_same_bits(load_in_slices(pair.target, bits, MOST), as_a_whole(pair.target, bits))


def test_so_do_slices_of_what_is_stored_quantized_and_cast(
    pairs: dict[str, PairPaths], tmp_path: Path
) -> None:
    half = cast(pairs["31B"].target, tmp_path / "half", mx.bfloat16)
    arrays = quantize_arrays(to_mlx_names(half), lambda _: AFFINE)
    config = read_config(half) | {"quantization": AFFINE}
    stored = write(tmp_path / "stored", config, arrays)
    for folder in (half, stored):
        assert_same_bits(load_in_slices(folder, None, MOST), as_a_whole(folder, None))


def test_every_row_of_every_parameter_comes_once(pair: PairPaths) -> None:
    target = open_target(pair.target)
    plan = plan_slices(target, find_sources(target, pair.target), MOST)
    pieces = [piece for one in plan for piece in one]
    rows = sum(piece.end - piece.first for piece in pieces)
    sources = {id(piece.source): num_rows(piece.source) for piece in pieces}
    assert rows == sum(sources.values())
    parameters = dict(tree_flatten(target.parameters()))
    assert sum(piece.nbytes for piece in pieces) == sum(one.nbytes for one in parameters.values())


def test_a_file_that_becomes_shorter_is_refused(
    pairs: dict[str, PairPaths], tmp_path: Path
) -> None:
    folder = cast(pairs["31B"].target, tmp_path / "model", mx.float32)
    target = open_target(folder)
    plan = plan_slices(target, find_sources(target, folder), MOST)
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="shorter"):
        list(read_slices(plan))
    path.unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        list(read_slices(plan))


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.uint32, mx.float32])
def test_an_empty_array_is_allocated_once_and_filled_in_place(dtype: mx.Dtype) -> None:
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    array = empty((64, 3, 4096), dtype)
    for first in range(0, 64, 4):
        array[first : first + 4] = mx.full((4, 3, 4096), first, dtype)
        mx.eval(array)
    assert mx.get_peak_memory() - before < 1.2 * array.nbytes
    assert array.dtype == dtype
    assert array[:, 0, 0].tolist() == [4 * (row // 4) for row in range(64)]
