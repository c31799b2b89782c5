"""Weights on their way from the source to the output, a slice of rows at a time.

Peak memory is that of a few slices, whatever the size of the model.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from mlx_gemma_mtp.device import backend
from mlx_gemma_mtp.errors import CheckpointError
from mlx_gemma_mtp.files.tensors import StoredTensor
from mlx_gemma_mtp.files.weights import dtype_name

from .formats import quantize
from .parameter import Parameter
from .plan import Options, Plan
from .source import read_rows

LANES = min(4, os.cpu_count() or 1)  # slices at a time on a CPU: one thread each


class Slice(NamedTuple):
    """Some rows of a parameter: where they go, where they are from, and as they are stored."""

    row: int
    tensor: StoredTensor
    num_rows: int
    arrays: list[mx.array]
    finite: mx.array  # True if all of its numbers are finite


def peak_bytes(plans: Sequence[Plan], options: Options) -> int:
    """Return the most memory that converting takes, for the whole process.

    Each slice in progress exists as read, as an array, perhaps in another type, and quantized.
    Measured with 26B-A4B's shapes, 11.3 GB of them in bfloat16 on four CPU cores: 277 MB.
    """
    rows = [one.rows.row_bytes for plan in plans for one in plan.parameters]
    return 200_000_000 + 5 * LANES * max(options.slice_bytes, *rows)


def write_weights(
    plan: Plan,
    folder: Path,
    options: Options,
    finished: Mapping[str, int],
    on_disk: Callable[[dict[str, int]], None],
) -> Iterator[tuple[Parameter, int]]:
    """Write all shards; yield the parameter and the number of its bytes that were written.

    finished: rows by parameter that an earlier run wrote. on_disk: called with the rows on the disk
    after every `options.sync_bytes`. Raises CheckpointError for NaN and infinity; OSError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    if finished and any(sizes.get(shard.name) != shard.nbytes for shard in plan.shards):
        on_disk(dict.fromkeys(finished, 0))
        finished = {}
    places: dict[str, tuple[int, int]] = {}  # of each part: file and byte
    unsynced, written = 0, dict[str, int]()
    with ExitStack() as stack:

        def sync() -> None:
            for file in {file for file, _ in places.values()}:
                os.fsync(file)
            on_disk(written)

        for shard in plan.shards:
            file = os.open(folder / shard.name, os.O_RDWR | os.O_CREAT, 0o644)
            stack.callback(os.close, file)
            os.ftruncate(file, shard.nbytes)
            _write_at(file, memoryview(shard.header), 0)
            places |= {part: (file, place) for part, place in shard.places.items()}
        for parameter in plan.parameters:
            start = finished.get(parameter.name, 0)
            yield parameter, start * sum(part.row_bytes for part in parameter.parts)
            slices = _convert(parameter, start, options.slice_bytes)
            for row, tensor, count, arrays, finite in slices:
                if not finite.item():
                    raise CheckpointError(
                        f"{tensor.path}: tensor {tensor.name} has numbers that are not finite in "
                        f"{dtype_name(parameter.dtype)}: the file is damaged, or the type too small"
                    )
                for part, array in zip(parameter.parts, arrays, strict=True):
                    file, place = places[part.name]
                    data = np.asarray(array.view(mx.uint8)).data.cast("B")
                    _write_at(file, data, place + row * part.row_bytes)
                nbytes = sum(array.nbytes for array in arrays)
                unsynced += nbytes
                written[parameter.name] = row + count
                if unsynced >= options.sync_bytes:
                    sync()
                    unsynced, written = 0, {}
                yield parameter, nbytes
        sync()
    mx.clear_cache()


def _write_at(file: int, data: memoryview, place: int) -> None:
    while data:
        written = os.pwrite(file, data, place)
        data, place = data[written:], place + written


def _convert(parameter: Parameter, start: int, slice_bytes: int) -> Iterator[Slice]:
    """Yield the slices of a parameter from this row on.

    While one slice is quantized, the next is read and the last one written.
    """
    streams = _streams()
    in_progress: deque[Slice] = deque()
    slices = parameter.rows.slices(start, slice_bytes)
    for number, (row, tensor, source_row, count) in enumerate(slices):
        with mx.stream(streams[number % len(streams)]):
            values = read_rows(tensor, source_row, count).astype(parameter.dtype)
            arrays = [values] if parameter.format is None else quantize(values, parameter.format)
            finite = mx.all(mx.isfinite(values))
            mx.async_eval(*arrays, finite)
        in_progress.append(Slice(row, tensor, count, arrays, finite))
        if len(in_progress) == max(2, len(streams)):
            yield in_progress.popleft()
    yield from in_progress


@cache
def _streams() -> Sequence[mx.Stream | mx.ThreadLocalStream]:
    """MLX's CPU backend quantizes on one thread for each stream; a GPU needs only one stream.

    Made once, because MLX keeps the thread of a stream while the process lives.
    """
    if backend() == "cpu":
        return [mx.new_thread_local_stream(mx.cpu) for _ in range(LANES)]
    return [mx.default_stream(mx.default_device())]
