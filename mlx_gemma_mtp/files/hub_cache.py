"""What is in the Hub's cache that this runtime can run.

Reads the cache without network, in whatever state it is, and leaves out what is not Gemma 4. The
embedded demo counts as cached; folders elsewhere cannot be known. Opens no weights.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mlx_gemma_mtp.errors import CheckpointError, ModelNotFoundError
from mlx_gemma_mtp.files import hub
from mlx_gemma_mtp.files.checkpoint import (
    read_config,
    read_drafter_config,
    read_target_config,
    weight_files,
)
from mlx_gemma_mtp.model.config import (
    DRAFTER_TYPES,
    TARGET_TYPES,
    check_pair,
)

KINDS = {1536: "E2B", 2560: "E4B", 3840: "12B", 2816: "26B-A4B", 5376: "31B"}  # by hidden size
DTYPE_BITS = {"float32": 32, "bfloat16": 16, "float16": 16}


@dataclass(frozen=True)
class CachedModel:
    """A target, with its drafter if that is there; or a drafter whose target is not.

    name: what `load` takes. kind: the published one it is, or is made for. bits: of most weights,
    None where the config does not say. size_bytes: on disk, all revisions together. last_used:
    seconds since 1970, as far as the file system notes it. problem: why it does not load as it is.
    """

    name: str
    folder: Path
    is_drafter: bool
    kind: str
    bits: int | None
    size_bytes: int
    last_used: float | None
    problem: str | None = None
    drafter: CachedModel | None = None

    def to_json(self) -> dict[str, Any]:
        """The fields, the folder as a string, the time in ISO 8601 and UTC."""
        return dataclasses.asdict(self) | {
            "folder": str(self.folder),
            "last_used": None if self.last_used is None else iso_time(self.last_used),
            "drafter": self.drafter and self.drafter.to_json(),
        }


def models() -> list[CachedModel]:
    """The demo, and what is cached, by name. Neither network nor an odd cache matters."""
    found = {name: model for name in repositories() if (model := _in_repository(name)) is not None}
    listed = [demo()]
    for name, model in found.items():
        if model.is_drafter:
            target = found.get(name.removesuffix(hub.DRAFTER_SUFFIX), model)
            if target.is_drafter:  # else it is listed with its target
                listed.append(model)
        elif (model.folder / "drafter").is_dir():
            listed.append(_paired(model, _in_folder(model.folder / "drafter")))
        else:
            listed.append(_paired(model, found.get(name + hub.DRAFTER_SUFFIX)))
    return listed


def demo() -> CachedModel:
    """The embedded pair."""
    drafter = _in_folder(hub.DEMO_DRAFTER)
    return dataclasses.replace(_in_folder(hub.DEMO), name="demo", kind="demo", drafter=drafter)


def repositories() -> list[str]:
    """The names of all model repositories that the cache has a folder for."""
    names = []
    for path in sorted(hub.cache_folder().glob("models--*")):
        name = path.name.removeprefix("models--").replace("--", "/")
        with suppress(ModelNotFoundError):
            if path.is_dir() and hub.split_name(name) == (name, hub.MAIN):
                names.append(name)
    return names


def _in_repository(repository: str) -> CachedModel | None:
    """The revision of a repository that a person would mean; None if it is not Gemma 4."""
    folder = hub.repository_folder(repository)
    for revision, snapshot in _snapshots(folder):
        try:
            raw = read_config(snapshot)
        except CheckpointError:
            continue
        if raw.get("model_type") not in (*TARGET_TYPES, *DRAFTER_TYPES):
            return None
        name = repository if revision == hub.MAIN else f"{repository}@{revision}"
        problem = None
        if hub.from_cache(name) is None:
            problem = f"it is incomplete: mgm pull {name} fetches the rest"
        return _described(name, snapshot, raw, size_on_disk(folder), problem)
    return None


def _snapshots(repository: Path) -> Iterator[tuple[str, Path]]:
    """Revisions and their folders: main, then others that have a name, then commits, new first."""
    commits: dict[str, str] = {}
    for path in sorted((repository / "refs").rglob("*")):
        with suppress(OSError, ValueError):  # a folder; not text
            commits[path.relative_to(repository / "refs").as_posix()] = path.read_text()
    for revision in sorted(commits, key=lambda name: (name != hub.MAIN, name)):
        yield revision, repository / "snapshots" / commits[revision]
    found = [path for path in (repository / "snapshots").glob("*") if path.is_dir()]
    for path in sorted(found, key=lambda path: path.stat().st_mtime, reverse=True):
        if path.name not in commits.values():
            yield path.name, path


def _in_folder(folder: Path) -> CachedModel:
    """The model in a folder that no download made."""
    try:
        raw, problem = read_config(folder), None
        weight_files(folder)
    except CheckpointError as error:
        raw, problem = {}, str(error)
    return _described(str(folder), folder, raw, size_on_disk(folder), problem)


def _described(
    name: str, folder: Path, raw: dict[str, Any], size_bytes: int, problem: str | None
) -> CachedModel:
    kind, is_drafter = "", raw.get("model_type") in DRAFTER_TYPES
    try:
        if is_drafter:
            drafter = read_drafter_config(folder)
            kind = KINDS.get(drafter.backbone_hidden_size, "")
        else:
            target = read_target_config(folder)
            kind = KINDS.get(target.hidden_size, "")
    except CheckpointError as error:
        problem = problem or str(error)
    used = []
    for path in folder.glob("*.safetensors"):
        with suppress(OSError):  # a link to nothing
            used.append(path.stat().st_atime)
    return CachedModel(
        name, folder, is_drafter, kind, _bits(raw), size_bytes, max(used, default=None), problem
    )


def _bits(raw: dict[str, Any]) -> int | None:
    quantization, text = raw.get("quantization"), raw.get("text_config")
    if isinstance(quantization, dict):
        bits = quantization.get("bits")
        return bits if type(bits) is int else None
    for section in (raw, text if isinstance(text, dict) else {}):
        for key in ("dtype", "torch_dtype"):  # as Transformers writes it, and used to
            if str(section.get(key)) in DTYPE_BITS:
                return DTYPE_BITS[str(section[key])]
    return None


def _paired(target: CachedModel, drafter: CachedModel | None) -> CachedModel:
    """The target with its drafter, whose problem may be that it is another's."""
    if drafter is None or drafter.problem or target.problem:
        return dataclasses.replace(target, drafter=drafter)
    try:
        check_pair(
            read_target_config(target.folder),
            read_drafter_config(drafter.folder),
        )
    except CheckpointError as error:
        drafter = dataclasses.replace(drafter, problem=str(error))
    return dataclasses.replace(target, drafter=drafter)


def size_on_disk(path: Path) -> int:
    """Bytes of a file, or of all files in a folder, each counted once however it is linked."""
    found = [path] if path.is_file() else []
    for root, _, names in os.walk(path):
        found += [Path(root) / name for name in names]
    sizes = {}
    for file in found:
        with suppress(OSError):  # a link to nothing; gone meanwhile
            stat = file.stat()
            sizes[stat.st_dev, stat.st_ino] = stat.st_size
    return sum(sizes.values())


def iso_time(seconds: float) -> str:
    """A time since 1970 in ISO 8601 and UTC, whole seconds."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
