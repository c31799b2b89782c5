"""The models on this disk that this runtime can run: what they are, and how to remove them.

Reads the cache without network, whatever state it is in: half a download or a damaged repository
must not hide the others. The embedded demo and converted models are listed too. Of weight files
only headers are read.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mlx_gemma_mtp.errors import CheckpointError, MgmError, ModelNotFoundError, UsageError
from mlx_gemma_mtp.files import converted, hub, published
from mlx_gemma_mtp.files.checkpoint import (
    read_config,
    read_drafter_config,
    read_model_config,
    read_target_config,
)
from mlx_gemma_mtp.files.drafters import Candidate
from mlx_gemma_mtp.files.find import find_drafter
from mlx_gemma_mtp.files.folders import shown
from mlx_gemma_mtp.files.names import (
    DEMO,
    DRAFTER_SUFFIX,
    MAIN,
    is_local,
)
from mlx_gemma_mtp.files.quantization import stored_bits
from mlx_gemma_mtp.model.config import (
    DRAFTER_TYPES,
    TARGET_TYPES,
    DrafterConfig,
    TargetConfig,
    check_pair,
)


@dataclass(frozen=True)
class CachedModel:
    """A target, with its drafter if that is cached; or a drafter without its target.

    name: the name that `load` takes. kind: the published size that it is, or is made for. bits: of
    most weights, None if the files don't show it. size_bytes: on disk, all revisions together.
    modified: when the last weights were downloaded or written, in seconds since 1970. problem: why
    it cannot be loaded as it is.
    """

    name: str
    folder: Path
    is_drafter: bool
    kind: str
    bits: int | None
    size_bytes: int
    modified: float | None
    problem: str | None = None
    drafter: CachedModel | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the fields, the folder as a string, the time in ISO 8601 and UTC."""
        return dataclasses.asdict(self) | {
            "folder": str(self.folder),
            "modified": None if self.modified is None else iso_time(self.modified),
            "drafter": self.drafter and self.drafter.to_json(),
        }


def models() -> list[CachedModel]:
    """Return the demo, the cached and the converted models, by name.

    Each target has the drafter that "auto" takes; or else the one of its name, with its problem.
    """
    found = [one for name in hub.repositories() if (one := _in_repository(name)) is not None]
    drafters = {one.folder: one for one in found if one.is_drafter}
    usable = [Candidate(one.name, one.folder) for one in drafters.values() if not one.problem]
    targets = [
        dataclasses.replace(_in_folder(DEMO), name="demo", kind="demo"),
        *(one for one in found if not one.is_drafter),
        *(dataclasses.replace(_in_folder(one), name=shown(one)) for one in converted.remembered()),
    ]
    paired = []
    for target in targets:
        own = next((d for d in drafters.values() if d.name == target.name + DRAFTER_SUFFIX), None)
        with suppress(CheckpointError):  # a damaged config.json, which is its problem already
            folder = find_drafter(target.folder, target.folder, usable)
            if folder is not None:
                own = drafters.get(folder) or _in_folder(folder)
        paired.append(_paired(target, own))
    taken = [one.drafter.name for one in paired if one.drafter]
    return sorted(
        [*paired, *(one for one in drafters.values() if one.name not in taken)],
        key=lambda one: (one.name != "demo", one.name),
    )


def removable(name: str) -> list[str]:
    """Return the repositories to remove for a name: its own, and its drafter's if that is cached.

    Raises UsageError for folders and the demo, ModelNotFoundError if the name is not cached.
    """
    if is_local(name):
        raise UsageError(f"{name} is not in the Hub's cache: delete the folder yourself")
    cached = hub.repositories()
    if name not in cached:
        near = difflib.get_close_matches(name, cached)
        hint = f"did you mean {' or '.join(near)}?" if near else "mgm list shows what is there"
        raise ModelNotFoundError(f"{name[:200]} is not in the cache; {hint}")
    return [one for one in (name, name + DRAFTER_SUFFIX) if one in cached]


def remove(repository: str) -> None:
    """Remove a repository with all its revisions and half-finished downloads. Raises MgmError."""
    import huggingface_hub
    from huggingface_hub import errors
    from huggingface_hub.utils import logging

    folder, verbosity = hub.repository_folder(repository), logging.get_verbosity()
    logging.set_verbosity_error()  # a file that cannot be removed is reported below, in one line
    try:
        # The client also removes what repositories share. It gives up on a cache, or skips a
        # repository, that is damaged.
        with suppress(errors.CacheNotFound, OSError, ValueError):
            scan = huggingface_hub.scan_cache_dir(hub.cache_folder())
            mine = [one for one in scan.repos if one.repo_path.name == folder.name]
            commits = [revision.commit_hash for one in mine for revision in one.revisions]
            # Only this one: two repositories may hold the same commit.
            dataclasses.replace(scan, repos=frozenset(mine)).delete_revisions(*commits).execute()
        if folder.exists():
            shutil.rmtree(folder)
    except OSError as error:
        raise MgmError(f"{repository} cannot be removed ({error})") from None
    finally:
        logging.set_verbosity(verbosity)


def size_on_disk(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder; links count once."""
    found = [path] if path.is_file() else []
    for root, _, names in os.walk(path):
        found += [Path(root) / name for name in names]
    sizes = {}
    for file in found:
        with suppress(OSError):  # a link to nothing; removed meanwhile
            stat = file.stat()
            sizes[stat.st_dev, stat.st_ino] = stat.st_size
    return sum(sizes.values())


def iso_time(seconds: float) -> str:
    """Return a time since 1970 in ISO 8601 and UTC, whole seconds."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _in_repository(repository: str) -> CachedModel | None:
    """Return the revision of a repository that a person would mean; None if it is not Gemma 4."""
    folder = hub.repository_folder(repository)
    for revision, snapshot in _snapshots(folder):
        try:
            raw = read_config(snapshot)
        except CheckpointError:
            continue
        if raw.get("model_type") not in (*TARGET_TYPES, *DRAFTER_TYPES):
            return None
        name = repository if revision == MAIN else f"{repository}@{revision}"
        if lacks := hub.missing_files(snapshot):
            if not any((folder / "refs").glob("*")):  # a first download that was interrupted
                name = repository
            what = f"incomplete ({', '.join(lacks[:3])} missing)"
            problem: str | None = f"{what}: mgm pull {name} downloads the rest"
        else:
            problem = hub.weights_problem(snapshot)
        return _described(name, snapshot, raw, size_on_disk(folder), problem)
    return None


def _snapshots(repository: Path) -> Iterator[tuple[str, Path]]:
    """Yield revisions and their folders: main, then other names, then commits, newest first."""
    commits: dict[str, str] = {}
    for path in sorted((repository / "refs").rglob("*")):
        with suppress(OSError, ValueError):  # a folder; not text
            commits[path.relative_to(repository / "refs").as_posix()] = path.read_text()
    for revision in sorted(commits, key=lambda name: (name != MAIN, name)):
        yield revision, repository / "snapshots" / commits[revision]
    found = [path for path in (repository / "snapshots").glob("*") if path.is_dir()]
    for path in sorted(found, key=lambda path: path.stat().st_mtime, reverse=True):
        if path.name not in commits.values():
            yield path.name, path


def _in_folder(folder: Path) -> CachedModel:
    """Return the model in a folder that is not a repository."""
    try:
        raw, problem = read_config(folder), hub.weights_problem(folder)
    except CheckpointError as error:
        raw, problem = {}, str(error)
    return _described(str(folder), folder, raw, size_on_disk(folder), problem)


def _described(
    name: str, folder: Path, raw: dict[str, Any], size_bytes: int, problem: str | None
) -> CachedModel:
    size = None
    try:
        match read_model_config(folder):
            case DrafterConfig(backbone_hidden_size=width) | TargetConfig(hidden_size=width):
                size = published.size_with(width)
    except CheckpointError as error:
        problem = problem or str(error)
    times = []
    for path in folder.glob("*.safetensors"):
        with suppress(OSError):  # a link to nothing
            times.append(path.stat().st_mtime)
    return CachedModel(
        name,
        folder,
        is_drafter=raw.get("model_type") in DRAFTER_TYPES,
        kind=size.kind if size else "",
        bits=stored_bits(folder),
        size_bytes=size_bytes,
        modified=max(times, default=None),
        problem=problem,
    )


def _paired(target: CachedModel, drafter: CachedModel | None) -> CachedModel:
    """Attach the drafter, marked as a problem if it belongs to another model."""
    if drafter is not None and not drafter.problem and not target.problem:
        try:
            check_pair(read_target_config(target.folder), read_drafter_config(drafter.folder))
        except CheckpointError as error:
            drafter = dataclasses.replace(drafter, problem=str(error))
    return dataclasses.replace(target, drafter=drafter)
