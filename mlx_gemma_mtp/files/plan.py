"""What to download for a pair: the files, their bytes, and how many of them are here.

Asks the Hub, and plans from the cache if it cannot be asked. Downloads nothing but a config.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from rich.filesize import decimal

from mlx_gemma_mtp.errors import CheckpointError, MgmError, ModelNotFoundError, UsageError
from mlx_gemma_mtp.files import hub
from mlx_gemma_mtp.files.checkpoint import read_config
from mlx_gemma_mtp.files.drafters import Target, best, to_pull
from mlx_gemma_mtp.files.folders import free_bytes
from mlx_gemma_mtp.files.hub_cache import cached_drafters
from mlx_gemma_mtp.files.names import MAIN, is_folder, split_name
from mlx_gemma_mtp.model.config import DRAFTER_TYPES, TARGET_TYPES


class RemoteFile(NamedTuple):
    """A file on the Hub. blob: its name in the cache. sha256: of its content; None if small."""

    path: str
    size: int
    blob: str
    sha256: str | None


class Download(NamedTuple):
    """One repository, the files that a checkpoint needs, and the bytes that are `missing` of them.

    alone: True for a drafter, and for a target that contains its drafter. refused: why the Hub
    could not be asked; the cache holds all that is needed then.
    """

    repository: str
    revision: str
    commit: str
    files: tuple[RemoteFile, ...]
    missing: int
    alone: bool
    refused: str | None = None

    @property
    def name(self) -> str:
        """The name that `load` takes for it."""
        return self.repository if self.revision == MAIN else f"{self.repository}@{self.revision}"

    @property
    def total(self) -> int:
        """Bytes of all its files."""
        return sum(file.size for file in self.files)

    @property
    def folder(self) -> Path:
        """Where the cache has it, or will have it."""
        return hub.repository_folder(self.repository) / "snapshots" / self.commit

    def blob(self, file: RemoteFile) -> Path:
        """Return where the cache keeps the content of a file."""
        return hub.repository_folder(self.repository) / "blobs" / file.blob


def plan_download(
    model: str, drafter: str | None = "auto", *, update: bool = True
) -> list[Download]:
    """Return what to download for a target and its drafter, if it has one.

    Each is a Hub name as in `find_pair`. update: plan the newest commit, even if the weights of an
    earlier one are cached. Without the Hub, plans from the cache. Raises UsageError for folders and
    the demo, ModelNotFoundError if a model is neither on the Hub nor in the cache, CheckpointError
    if it is not a Gemma 4 model.
    """
    target = look_up(model, update=update)
    if drafter != "auto":
        return [target] if drafter is None else [target, look_up(drafter, update=update)]
    if target.alone:
        return [target]
    wants = Target(target.repository, _config_of(target))
    cached = best(wants, cached_drafters())
    for name in [cached.name] if cached else to_pull(wants):
        with suppress(ModelNotFoundError):
            return [target, look_up(name, update=update)]
    return [target]


def look_up(name: str, *, update: bool = True) -> Download:
    """Return what to download for one Hub name; arguments and errors as `plan_download`."""
    import huggingface_hub

    if name == "demo" or is_folder(name):
        raise UsageError(f"{name} is already here: only models on the Hub can be downloaded")
    (repository, revision), cached = split_name(name), hub.snapshot_folder(name)
    asked = revision
    if cached is not None and not update and hub.has_weights(cached):
        asked = cached.name
    try:
        with hub.hub_errors(name):
            info = huggingface_hub.HfApi().model_info(
                repository, revision=asked, files_metadata=True
            )
    except ModelNotFoundError as error:
        if cached is None or hub.missing_files(cached):
            raise
        files = tuple(
            RemoteFile(
                str(path.relative_to(cached)), path.stat().st_size, path.resolve().name, None
            )
            for path in sorted(cached.rglob("*"))
            if path.is_file()
        )
        is_drafter = read_config(cached).get("model_type") in DRAFTER_TYPES
        alone = is_drafter or (cached / hub.DRAFTER_FOLDER).is_dir()
        return Download(repository, revision, cached.name, files, 0, alone, str(error))
    assert info.sha is not None  # the Hub always sends it for a single repository
    kind = (info.config or {}).get("model_type")
    if kind is not None and kind not in (*TARGET_TYPES, *DRAFTER_TYPES):
        raise CheckpointError(f"{name} is not a Gemma 4 model (model_type {kind!r})")
    files = tuple(
        RemoteFile(
            one.rfilename,
            one.size or 0,
            one.lfs.sha256 if one.lfs else one.blob_id or "",
            one.lfs.sha256 if one.lfs else None,
        )
        for one in info.siblings or []
        if hub.is_wanted(one.rfilename)
    )
    paths = {file.path for file in files}
    weights = [path for path in paths if path.endswith(".safetensors") and "/" not in path]
    if "config.json" not in paths or not weights:
        raise CheckpointError(f"{name} has no config.json with safetensors files")
    alone = kind in DRAFTER_TYPES or f"{hub.DRAFTER_FOLDER}config.json" in paths
    found = Download(repository, revision, info.sha, files, 0, alone)
    return found._replace(missing=sum(missing_bytes(found, file) for file in files))


def part_of(blob: Path) -> Path:
    """Return the file that a blob is downloaded to until it is whole."""
    return blob.with_name(f"{blob.name}.incomplete")


def missing_bytes(download: Download, file: RemoteFile) -> int:
    """Return how many bytes of a file are not here yet; at least one if it is not whole."""
    blob = download.blob(file)
    if (download.folder / file.path).is_file() or blob.is_file():
        return 0
    with suppress(FileNotFoundError):
        if file.sha256:
            return max(1, file.size - part_of(blob).stat().st_size)
    return file.size


def check_room(downloads: Sequence[Download]) -> None:
    """Raise MgmError unless the disk of the cache has room for all of them."""
    missing, free = sum(one.missing for one in downloads), free_bytes(hub.cache_folder())
    if missing > free:
        raise MgmError(
            f"{decimal(missing)} to download, but the disk of {hub.cache_folder()} has "
            f"{decimal(free)} free: free some space, or set HF_HOME to a folder elsewhere"
        )


def _config_of(download: Download) -> dict[str, Any]:
    """Return a config.json, from the Hub if it is not cached."""
    import huggingface_hub

    if (download.folder / "config.json").is_file():
        return read_config(download.folder)
    with hub.hub_errors(download.name), tempfile.TemporaryDirectory() as folder:
        huggingface_hub.hf_hub_download(
            download.repository,
            "config.json",
            revision=download.commit,
            local_dir=folder,
            tqdm_class=hub.no_bar(),
        )
        return read_config(Path(folder))
