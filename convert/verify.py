"""Checks that a folder is complete: its files, its tensors, its pair.

Hashes all files that a manifest lists, and otherwise reads only the headers of weights. Collects
all faults instead of stopping at the first; doesn't judge the quality of weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

from mlx.utils import tree_flatten

from mlx_gemma_mtp.engine.worker import mlx_worker
from mlx_gemma_mtp.errors import CheckpointError, ModelNotFoundError, UsageError
from mlx_gemma_mtp.files import checkpoint, hub
from mlx_gemma_mtp.files.arrays import open_arrays, refuse_unknown
from mlx_gemma_mtp.files.checkpoint import INDEX
from mlx_gemma_mtp.files.find import find_pair
from mlx_gemma_mtp.files.names import DEMO, is_file, is_folder, no_such
from mlx_gemma_mtp.files.tensors import CODES, StoredTensor, read_tensors
from mlx_gemma_mtp.files.weights import checked, dtype_name
from mlx_gemma_mtp.model.config import check_pair
from mlx_gemma_mtp.model.drafter import Drafter
from mlx_gemma_mtp.model.target import Target
from mlx_gemma_mtp.progress import Update

from .formats import Format
from .manifest import MANIFEST, UNLISTED, FileRecord, Manifest, read_manifest
from .output import DRAFTER_FOLDER, record
from .parameter import stored_parts
from .shards import Part

_DTYPES = {dtype_name(dtype): dtype for dtype in CODES}


class Verdict(NamedTuple):
    """What was found in a folder. Each fault is one line that names the file or the tensor."""

    folder: Path
    manifest: Manifest | None  # None: there is none, so hashes and bits were not compared
    num_tensors: int  # as stored
    faults: list[str]


def verify(folder: Path, on_progress: Update = lambda *_: None) -> list[Verdict]:
    """Check a model folder and its drafter, in it or next to it; or a drafter's folder alone.

    A folder without manifest.json is checked for complete tensors of the right shapes and for a
    matching pair. Raises ModelNotFoundError if there is no folder, and as `no_such` for a file.
    """
    if is_file(folder):
        raise no_such(folder)
    if not is_folder(folder):
        raise ModelNotFoundError(f"no folder {str(folder)!r}: mgm verify checks a local folder")
    target, drafter = find_pair(folder, "auto")
    verdict = _check_folder(target, on_progress)
    if drafter is None:
        return [verdict]
    with suppress(CheckpointError):  # a config that can't be read is a fault of its folder
        configs = checkpoint.read_target_config(target), checkpoint.read_drafter_config(drafter)
        try:
            check_pair(*configs)
        except CheckpointError as error:
            verdict.faults.append(f"{drafter}: {error}")
    return [verdict, _check_folder(drafter, on_progress)]


def source_of(verdict: Verdict) -> str:
    """Return a verified target's source, no network. Raises UsageError, ModelNotFoundError."""
    if verdict.manifest is None:
        raise UsageError(f"{verdict.folder} has no {MANIFEST}: name its source with --source")
    name, revision = verdict.manifest.source.name, verdict.manifest.source.revision
    if name == DEMO.name:
        return "demo"
    if revision is None:
        raise UsageError(f"it was made from a folder called {name}: give its path with --source")
    if hub.from_cache(f"{name}@{revision}") is None:
        raise ModelNotFoundError(
            f"it was made from {name}, which is not in the cache: run mgm pull {name} "
            f"--revision {revision}, or give its path with --source"
        )
    return f"{name}@{revision}"


def _check_folder(folder: Path, on_progress: Update) -> Verdict:
    manifest, num_tensors, of_tensors = None, 0, list[str]()
    of_files: dict[str, str] = {}
    if (folder / MANIFEST).exists():
        try:
            manifest = read_manifest(folder)
            of_files = dict(_file_faults(folder, manifest.files, on_progress))
        except CheckpointError as error:
            of_files = {MANIFEST: str(error)}
    try:
        stored = read_tensors(folder)
        num_tensors = len(stored)
        of_tensors = mlx_worker().run(partial(_tensor_faults, folder, stored, manifest))
    except (CheckpointError, OSError) as error:
        if not any(name in str(error) for name in of_files):
            of_tensors = [str(error)]
    return Verdict(folder, manifest, num_tensors, [*of_files.values(), *of_tensors])


def _file_faults(
    folder: Path, records: dict[str, FileRecord], on_progress: Update
) -> Iterator[tuple[str, str]]:
    """Yield name and fault of files that differ or are unlisted; hidden ones are allowed."""
    present = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    for name in sorted(present - records.keys() - set(UNLISTED)):
        if not name.startswith((".", f"{DRAFTER_FOLDER}/")):
            yield name, f"{folder / name}: the manifest does not list it"
    done, total = 0, sum(expected.bytes for expected in records.values())
    for name, expected in records.items():
        on_progress(f"hashing {name}", done, total)
        done += expected.bytes
        path, fault = folder / name, None
        try:
            excess = path.stat().st_size - expected.bytes
            if excess:
                fault = f"is {'cut short' if excess < 0 else 'too long'} by {abs(excess)} bytes"
            elif record(path) != expected:
                fault = "has changed: its SHA-256 differs from the manifest's"
        except FileNotFoundError:
            fault = "is missing"
        except OSError as error:
            fault = f"cannot be read ({error.strerror})"
        if fault:
            yield name, f"{path} {fault}"


def _tensor_faults(
    folder: Path, stored: dict[str, StoredTensor], manifest: Manifest | None
) -> list[str]:
    """Return what loading would refuse, differences from the manifest, and a wrong index."""
    by_file_name = {tensor.name: tensor for tensor in stored.values()}
    faults = [*_index_faults(folder, by_file_name)]
    if manifest is not None:
        faults += _manifest_faults(folder, by_file_name, manifest)
    model: Target | Drafter
    if checkpoint.is_drafter(folder):
        model = Drafter(checkpoint.read_drafter_config(folder))
    else:
        model = Target(checkpoint.read_target_config(folder))
    arrays = open_arrays(model, folder)
    for name, parameter in dict(tree_flatten(model.parameters())).items():
        try:
            checked(folder, name, arrays.get(name), parameter.shape, parameter.dtype)
        except CheckpointError as error:
            faults.append(str(error))
    if not faults:  # otherwise what is left over says nothing more
        try:
            refuse_unknown(model, arrays, folder)
        except CheckpointError as error:
            faults.append(str(error))
    return list(dict.fromkeys(faults))


def _manifest_faults(
    folder: Path, stored: dict[str, StoredTensor], manifest: Manifest
) -> Iterator[str]:
    expected = {part.name: part for name in manifest.tensors for part in _parts(name, manifest)}
    for name in sorted(stored.keys() - expected.keys()):
        yield f"{stored[name].path}: tensor {name} is not in the manifest"
    for name, part in expected.items():
        found = stored.get(name)  # if it is missing, so is a parameter of the model
        if found is not None and (found.code, found.shape) != (CODES[part.dtype], part.shape):
            yield (
                f"{found.path}: tensor {name} is {found.code} {list(found.shape)}; with the "
                f"manifest's bits it would be {CODES[part.dtype]} {list(part.shape)}"
            )


def _parts(name: str, manifest: Manifest) -> tuple[Part, ...]:
    """Return the arrays that a parameter of the manifest is stored as. Raises CheckpointError."""
    tensor = manifest.tensors[name]
    try:
        chosen = None
        if tensor.bits is not None:
            chosen = Format(str(tensor.mode), tensor.bits, tensor.group_size or 0)
        return stored_parts(name, name, tensor.shape, _DTYPES[tensor.dtype], chosen)
    except (IndexError, KeyError, TypeError, ValueError, ZeroDivisionError, UsageError):
        raise CheckpointError(f"{MANIFEST}: tensor {name} cannot be {tensor}") from None


def _index_faults(folder: Path, stored: dict[str, StoredTensor]) -> Iterator[str]:
    named = checkpoint.read_index(folder)
    if not named:  # none, or one that loading ignores
        return
    for name in sorted(named.keys() | stored.keys()):
        found = stored[name].path.name if name in stored else "no file"
        if name not in named:
            yield f"{folder / INDEX}: tensor {name} is in {found}, but it is not listed"
        elif named[name] != found:
            yield f"{folder / INDEX}: tensor {name} is in {found}, not in {named[name]}"
