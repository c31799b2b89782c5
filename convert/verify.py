"""Is a folder what it says it is: its files, its tensors, its pair?

Reads every byte of what a manifest lists, to compare hashes, and of weights otherwise the headers.
Collects what is wrong instead of stopping at the first; knows nothing of what weights are worth.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mlx.utils import tree_flatten

from mlx_gemma_mtp.engine.worker import mlx_worker
from mlx_gemma_mtp.errors import CheckpointError, ModelNotFoundError, UsageError
from mlx_gemma_mtp.files import hub
from mlx_gemma_mtp.files.checkpoint import (
    canonical_name,
    dtype_name,
    read_config,
    read_drafter_config,
    read_target_config,
)
from mlx_gemma_mtp.model.config import check_pair

from .formats import Format, layout
from .manifest import (
    MANIFEST,
    UNLISTED,
    FileRecord,
    Manifest,
    TensorRecord,
    read_manifest,
)
from .output import DRAFTER_FOLDER
from .shards import INDEX
from .source import CODES, SourceTensor, read_tensors
from .streamed import opened

OnBytes = Callable[[str, int, int], None]  # the file's name, bytes read, bytes in all

CHUNK = 8 << 20  # bytes
_DTYPES = {dtype_name(dtype): dtype for dtype in CODES}


@dataclass(frozen=True)
class Verdict:
    """What was found in a folder. Each fault is one line that names the file or the tensor."""

    folder: Path
    manifest: Manifest | None  # None: there is none, so neither hashes nor bits were compared
    tensors: int  # stored ones
    faults: tuple[str, ...]
    drafter: Verdict | None = None

    @property
    def all_faults(self) -> tuple[str, ...]:
        """The drafter's too."""
        return self.faults + (self.drafter.all_faults if self.drafter else ())


def verify(folder: Path, on_bytes: OnBytes = lambda *_: None) -> Verdict:
    """Check a model folder, and the drafter in it or beside it, or a drafter's folder alone.

    A folder without manifest.json, someone else's checkpoint, is checked for complete tensors of
    the right shapes and for a pair that fits. Raises ModelNotFoundError if there is no folder.
    """
    if not hub.is_folder(folder):
        raise ModelNotFoundError(f"no folder {str(folder)!r}; mgm verify checks one on the disk")
    target, drafter = hub.find_pair(folder, "auto")
    verdict = _check_folder(target, on_bytes)
    if drafter is None:
        return verdict
    beside = _check_folder(drafter, on_bytes)
    faults = (*verdict.faults, *_pair_faults(target, drafter))
    return Verdict(target, verdict.manifest, verdict.tensors, faults, beside)


def source_of(verdict: Verdict) -> str | Path:
    """What a verified target was made of, where it can be found without the network.

    Raises UsageError, ModelNotFoundError, with the way out.
    """
    if verdict.manifest is None:
        raise UsageError(f"{verdict.folder} has no {MANIFEST}: --source says what it was made of")
    name, revision = verdict.manifest.source.name, verdict.manifest.source.revision
    if name == hub.DEMO.name:
        return "demo"
    if revision is None:
        raise UsageError(f"it was made of a folder called {name}: --source says where that is")
    if hub.from_cache(f"{name}@{revision}") is None:
        raise ModelNotFoundError(
            f"it was made of {name}, which is not in the cache: mgm pull {name} "
            f"--revision {revision}, or say with --source where it is"
        )
    return f"{name}@{revision}"


def _check_folder(folder: Path, on_bytes: OnBytes) -> Verdict:
    manifest, stored = None, {}
    of_files: dict[str, str] = {}
    of_tensors: list[str] = []
    if (folder / MANIFEST).exists():
        try:
            manifest = read_manifest(folder)
            of_files = dict(_file_faults(folder, manifest.files, on_bytes))
        except CheckpointError as error:
            of_files = {MANIFEST: str(error)}
    try:
        stored = read_tensors(folder)
        of_tensors = mlx_worker().run(partial(_tensor_faults, folder, stored, manifest))
    except (CheckpointError, OSError) as error:
        if not any(name in str(error) for name in of_files):
            of_tensors = [str(error)]
    return Verdict(folder, manifest, len(stored), (*of_files.values(), *of_tensors))


# Files


def _file_faults(
    folder: Path, records: dict[str, FileRecord], on_bytes: OnBytes
) -> Iterator[tuple[str, str]]:
    """Names of files that are missing, changed, cut short or not in the manifest, and what is so.

    Hidden files may be there.
    """
    present = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    for name in sorted(present - records.keys() - set(UNLISTED)):
        if not name.startswith((".", f"{DRAFTER_FOLDER}/")):
            yield name, f"{folder / name}: the manifest does not list it"
    for name, record in records.items():
        fault = _file_fault(folder / name, record, on_bytes) if name in present else "is missing"
        if fault:
            yield name, f"{folder / name} {fault}"


def _file_fault(path: Path, record: FileRecord, on_bytes: OnBytes) -> str | None:
    try:
        excess = path.stat().st_size - record.bytes
        if excess:
            return f"is {'cut short' if excess < 0 else 'too long'} by {abs(excess)} bytes"
        if _sha256(path, on_bytes) != record.sha256:
            return "has changed: its SHA-256 is not the manifest's"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return None


def _sha256(path: Path, on_bytes: OnBytes) -> str:
    digest, done, size = hashlib.sha256(), 0, path.stat().st_size
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            done += len(chunk)
            on_bytes(path.name, done, size)
    return digest.hexdigest()


# Tensors


def _tensor_faults(
    folder: Path, stored: dict[str, SourceTensor], manifest: Manifest | None
) -> list[str]:
    """What loading would refuse, what the manifest says otherwise, and a wrong index."""
    by_file_name = {tensor.name: tensor for tensor in stored.values()}
    faults: list[str] = []
    if manifest is not None:
        faults += _manifest_faults(folder, by_file_name, manifest)
        faults += _format_faults(folder, manifest)
    faults += _index_faults(folder, by_file_name)
    model, arrays = opened(folder)
    for name, parameter in dict(tree_flatten(model.parameters())).items():
        found = arrays.get(name)
        if found is None:
            faults.append(f"{folder}: tensor {name} is missing")
        elif found.shape != parameter.shape:
            faults.append(
                f"{folder}: tensor {name} has shape {list(found.shape)}, but config.json asks for "
                f"{list(parameter.shape)}"
            )
    return list(dict.fromkeys(faults))


def _manifest_faults(
    folder: Path, stored: dict[str, SourceTensor], manifest: Manifest
) -> Iterator[str]:
    expected: dict[str, tuple[str, tuple[int, ...]]] = {}
    for name, record in manifest.tensors.items():
        expected |= _stored_as(name, record)
    for name in sorted(stored.keys() - expected.keys()):
        yield f"{stored[name].path}: tensor {name} is not in the manifest"
    for name, (code, shape) in expected.items():
        if name not in stored:
            yield f"{folder}: tensor {canonical_name(name)} is missing"
        elif (stored[name].code, stored[name].shape) != (code, shape):
            found = stored[name]
            yield (
                f"{found.path}: tensor {name} is {found.code} {list(found.shape)}; with the "
                f"manifest's bits it would be {code} {list(shape)}"
            )


def _stored_as(name: str, record: TensorRecord) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The arrays that a parameter of the manifest is stored as, with their types and shapes."""
    try:
        dtype = _DTYPES[record.dtype]
        if record.bits is None:
            return {name: (CODES[dtype], record.shape)}
        chosen = Format(str(record.mode), record.bits, record.group_size or 0)
        parts = layout(chosen, record.shape[-1], dtype)
    except (IndexError, KeyError, TypeError, ValueError):
        raise CheckpointError(
            f"{MANIFEST}: tensor {name} cannot be {record.dtype}, {record.shape}, with "
            f"{_in_words((record.bits, record.group_size, record.mode))}"
        ) from None
    module = name.removesuffix("weight")
    return {
        module + part.suffix: (CODES[part.dtype], (*record.shape[:-1], part.width))
        for part in parts
    }


def _format_faults(folder: Path, manifest: Manifest) -> Iterator[str]:
    """Where config.json, by which a loader goes, says otherwise than the manifest."""
    stated = read_config(folder).get("quantization")
    if not isinstance(stated, dict):
        stated = {}
    for name, record in manifest.tensors.items():
        if record.bits is None:
            continue
        own = stated.get(name.removesuffix(".weight"))
        entry = stated | (own if isinstance(own, dict) else {})
        of_config = (entry.get("bits"), entry.get("group_size"), entry.get("mode", "affine"))
        of_manifest = (record.bits, record.group_size, record.mode)
        if of_config != of_manifest:
            yield (
                f"{folder / 'config.json'}: {name} has {_in_words(of_config)}; the manifest says "
                f"{_in_words(of_manifest)}"
            )


def _in_words(quantization: tuple[Any, Any, Any]) -> str:
    bits, group_size, mode = quantization
    return f"{bits} bits in groups of {group_size}, {mode}"


def _index_faults(folder: Path, stored: dict[str, SourceTensor]) -> Iterator[str]:
    path = folder / INDEX
    if not path.exists():
        return
    named = json.loads(path.read_text())["weight_map"]  # as read_tensors has found it
    for name in sorted(named.keys() | stored.keys()):
        found = stored[name].path.name if name in stored else None
        if named.get(name) != found:
            yield f"{path}: tensor {name} is in {found or 'no file'}, not in {named.get(name)}"


# The pair


def _pair_faults(target: Path, drafter: Path) -> list[str]:
    try:
        configs = (
            read_target_config(target),
            read_drafter_config(drafter),
        )
    except CheckpointError:  # a fault of its folder
        return []
    try:
        check_pair(*configs)
    except CheckpointError as error:
        return [f"{drafter}: {error}"]
    return []
