"""The files of a converted folder: weights in slices, then all that goes with them, then hashes.

Peak memory is that of a few slices of rows, whatever the size of the model.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from itertools import cycle
from pathlib import Path
from typing import Literal, NamedTuple

import mlx.core as mx

from mlx_gemma_mtp import __version__
from mlx_gemma_mtp.errors import CheckpointError
from mlx_gemma_mtp.files.weights import dtype_name

from . import card, settings, shards
from .formats import quantize
from .manifest import MANIFEST, FileRecord, Manifest, Origin, TensorRecord
from .outputs import Output
from .partial import Partial, write_text
from .plan import Plan
from .shards import ShardWriter
from .source import read_rows

SLICE_BYTES = 16 * 2**20  # of the source that are read and quantized at a time
SYNC_BYTES = 256 * 2**20  # of the output: what a kill may cost
LANES = min(4, os.cpu_count() or 1)  # slices at a time where the CPU quantizes: one thread each
# Beside the weights; a drafter is used with its target's tokenizer.
_EXTRAS = {
    "target": ("*.json", "*.jinja", "tokenizer.model"),
    "drafter": ("generation_config.json",),
}
_OWN = ("config.json", MANIFEST, shards.INDEX)
DRAFTER_FOLDER = "drafter"  # where `hub.find_pair` looks first


class Model(NamedTuple):
    """One of a pair: which, where it comes from, and what will be written."""

    kind: Literal["target", "drafter"]
    origin: Origin
    plan: Plan


class Progress(NamedTuple):
    """Bytes of the sources that are converted, or of the output that are hashed."""

    stage: Literal["convert", "hash"]
    file: str  # within the output
    tensor: str  # none where a file is hashed
    done: int
    total: int


OnProgress = Callable[[Progress], None]


def peak_bytes(models: Sequence[Model]) -> int:
    """Memory that converting takes at most, for the whole process.

    Each slice under way is there as read, as an array, perhaps in another type, and quantized.
    Measured with 26B-A4B's shapes, 11.3 GB of them in bfloat16 on four CPU cores: 277 MB.
    """
    slices = [
        max(SLICE_BYTES, output.rows.tensor.row_bytes)
        for model in models
        for output in model.plan.outputs
    ]
    return 200_000_000 + 5 * LANES * max(slices)


def needs(model: Model) -> int:
    """Bytes that the output takes on the disk, within a megabyte."""
    extras = sum(path.stat().st_size for path in _extras(model))
    return sum(shard.nbytes for shard in model.plan.shards) + extras + 2**20


def write(models: Sequence[Model], partial: Partial, name: str, on_progress: OnProgress) -> None:
    """Fill `partial.model` with the output that will be called `name`. Raises as `write_weights`.

    Configurations come last, the target's after all: before that, nothing there can be loaded.
    """
    total = sum(_source_bytes(output) for model in models for output in model.plan.outputs)
    folders = {
        model.kind: partial.model / (DRAFTER_FOLDER if model.kind == "drafter" else "")
        for model in models
    }
    done = 0
    for model in models:
        journal = partial.journal(model.kind)
        files = {part: shard.name for shard in model.plan.shards for part in shard.places}
        for output, count in write_weights(model.plan, folders[model.kind], journal):
            done += count
            file = folders[model.kind] / files[output.parts[0].name]
            within = str(file.relative_to(partial.model))
            on_progress(Progress("convert", within, output.name, done, total))
    hashed = _Hashes(sum(shard.nbytes for model in models for shard in model.plan.shards))
    for model in reversed(models):
        _write_rest(model, folders[model.kind], name, hashed, on_progress)


def write_weights(plan: Plan, folder: Path, journal: Path) -> Iterator[tuple[Output, int]]:
    """Write all shards; yields the parameter and the bytes of the source that are done of it.

    What the journal lists is there already. Raises CheckpointError for weights that are not
    numbers, or were cut off; OSError.
    """
    with ShardWriter(folder, journal, plan.shards, sync_bytes=SYNC_BYTES) as writer:
        lanes = _Lanes()
        for output in plan.outputs:
            finished = writer.finished.get(output.name, 0)
            yield output, finished * output.rows.tensor.row_bytes
            for row, count, arrays in lanes.convert(output, finished):
                for part, array in zip(output.parts, arrays, strict=True):
                    writer.write(part, row, array)
                writer.finish(output.name, row + count)
                yield output, count * output.rows.tensor.row_bytes
    mx.clear_cache()


class _Lanes:
    """Slices under way at a time: while one is quantized, the next is read and the last written.

    MLX's CPU backend quantizes on one thread for each stream; a GPU needs no more than one stream.
    """

    def __init__(self) -> None:
        streams: Sequence[mx.Stream | mx.ThreadLocalStream]
        on_cpu = mx.default_device() == mx.Device(mx.cpu)
        streams = _cpu_streams() if on_cpu else [mx.default_stream(mx.default_device())]
        self._streams = cycle(streams)
        self._most = max(2, len(streams))

    def convert(self, output: Output, finished: int) -> Iterator[tuple[int, int, list[mx.array]]]:
        """First row, number of rows and stored arrays [rows, …] of each slice of an output.

        Without the first rows, which are finished.
        """
        under_way: deque[tuple[int, int, list[mx.array], mx.array]] = deque()
        for row, source_row, count in output.rows.slices(finished, SLICE_BYTES):
            with mx.stream(next(self._streams)):
                values = read_rows(output.rows.tensor, source_row, count).astype(output.dtype)
                arrays = [values] if output.format is None else quantize(values, output.format)
                sound = mx.all(mx.isfinite(values))
                mx.async_eval(*arrays, sound)
            under_way.append((row, count, arrays, sound))
            if len(under_way) == self._most:
                yield _done(output, *under_way.popleft())
        while under_way:
            yield _done(output, *under_way.popleft())


@cache
def _cpu_streams() -> Sequence[mx.ThreadLocalStream]:
    """Made once: MLX keeps the thread of a stream as long as the process lives."""
    return [mx.new_thread_local_stream(mx.cpu) for _ in range(LANES)]


def _done(
    output: Output, row: int, count: int, arrays: list[mx.array], sound: mx.array
) -> tuple[int, int, list[mx.array]]:
    if not sound.item():
        tensor = output.rows.tensor
        raise CheckpointError(
            f"{tensor.path}: tensor {tensor.name} holds what is no finite number in "
            f"{dtype_name(output.dtype)}: the file is damaged, or the type too small"
        )
    return row, count, arrays


def _source_bytes(output: Output) -> int:
    size = output.rows.tensor.dtype.size
    for length in output.shape:
        size *= length
    return size


class _Hashes:
    """SHA-256 of files, with progress over all of them."""

    def __init__(self, total: int) -> None:
        self._done, self._total = 0, total

    def record(self, path: Path, on_progress: OnProgress) -> FileRecord:
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while chunk := file.read(2**23):
                digest.update(chunk)
                self._done += len(chunk)
                on_progress(Progress("hash", path.name, "", self._done, self._total))
        return FileRecord(path.stat().st_size, digest.hexdigest())


def _write_rest(
    model: Model, folder: Path, name: str, hashes: _Hashes, on_progress: OnProgress
) -> None:
    plan = model.plan
    index = shards.index_json(plan.shards, plan.nbytes, plan.parameters)
    write_text(folder / shards.INDEX, index)
    extras = [Path(shutil.copyfile(path, folder / path.name)) for path in _extras(model)]
    files = [*(folder / shard.name for shard in plan.shards), folder / shards.INDEX, *extras]
    records = {path.name: hashes.record(path, on_progress) for path in files}
    config = settings.config_json(plan)
    digest = hashlib.sha256(config.encode()).hexdigest()
    records["config.json"] = FileRecord(len(config.encode()), digest)
    manifest = Manifest(
        kind=model.kind,
        source=model.origin,
        created=datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        tools={
            "mlx_gemma_mtp": __version__,
            "mlx": version("mlx"),
            "huggingface_hub": version("huggingface_hub"),
        },
        recipe=plan.recipe,
        bits_per_weight=round(plan.bits_per_weight, 4),
        parameters=plan.parameters,
        files=dict(sorted(records.items())),
        tensors={output.name: _record(output) for output in plan.outputs},
    )
    write_text(folder / "README.md", card.card(model.kind, name, plan, manifest))
    write_text(folder / MANIFEST, manifest.to_json())
    write_text(folder / "config.json", config)


def _record(output: Output) -> TensorRecord:
    shape, dtype, chosen = output.shape, dtype_name(output.dtype), output.format
    if chosen is None:
        return TensorRecord(shape, dtype)
    return TensorRecord(shape, dtype, chosen.bits, chosen.group_size, chosen.mode)


def _extras(model: Model) -> list[Path]:
    found = {path for pattern in _EXTRAS[model.kind] for path in model.plan.folder.glob(pattern)}
    return sorted(path for path in found if path.name not in _OWN and path.is_file())
