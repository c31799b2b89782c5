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
from mlx_gemma_mtp.files.checkpoint import is_drafter, read_config
from mlx_gemma_mtp.files.drafters import Target, best, fits, in_cache, to_pull
from mlx_gemma_mtp.files.folders import free_bytes
from mlx_gemma_mtp.files.names import MAIN, check_format, is_local, split_name
from mlx_gemma_mtp.model.config import DRAFTER_TYPES, TARGET_TYPES


class RemoteFile(NamedTuple):
    """A file on the Hub. here: how many of its `size` bytes the cache has.

    blob: where the cache keeps its content. sha256: of the content; None if it is small.
    """

    path: str
    size: int
    here: int
    blob: Path
    sha256: str | None

    @property
    def part(self) -> Path:
        """Where its content is downloaded to until it is whole."""
        return self.blob.with_name(f"{self.blob.name}.incomplete")


class Download(NamedTuple):
    """One repository, with the files that a checkpoint needs.

    alone: True for a drafter, and for a target that contains its drafter. refused: why the Hub
    could not be asked; the cache holds all that is needed then.
    """

    repository: str
    revision: str
    commit: str
    files: tuple[RemoteFile, ...]
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
    def missing(self) -> int:
        """Bytes of its files that are not here."""
        return self.total - sum(file.here for file in self.files)

    @property
    def folder(self) -> Path:
        """Where the cache has it, or will have it."""
        return hub.repository_folder(self.repository) / "snapshots" / self.commit

    def has(self, file: RemoteFile) -> bool:
        """Return True if the cache has all of a file."""
        return file.blob.is_file() or (self.folder / file.path).is_file()


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
    cached = best(wants, in_cache())
    for name in [cached.name] if cached else to_pull(wants):
        with suppress(ModelNotFoundError, CheckpointError):  # not published under this name
            found = look_up(name, update=update)
            if fits(wants, _config_of(found)):
                return [target, found]
    return [target]


def look_up(name: str, *, update: bool = True) -> Download:
    """Return what to download for one Hub name; arguments and errors as `plan_download`."""
    import huggingface_hub

    if is_local(name):
        raise UsageError(f"{name} is already here: only models on the Hub can be downloaded")
    (repository, revision), cached = split_name(name), hub.snapshot_folder(name)
    if cached is None:
        check_format(name)
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
        sizes = {path: path.stat().st_size for path in cached.rglob("*") if path.is_file()}
        files = tuple(
            RemoteFile(str(path.relative_to(cached)), size, size, path.resolve(), None)
            for path, size in sizes.items()
        )
        alone = is_drafter(cached) or (cached / hub.DRAFTER_FOLDER).is_dir()
        return Download(repository, revision, cached.name, files, alone, str(error))
    assert info.sha is not None  # the Hub always sends it for a single repository
    kind = (info.config or {}).get("model_type")
    if kind is not None and kind not in (*TARGET_TYPES, *DRAFTER_TYPES):
        raise CheckpointError(f"{name} is not a Gemma 4 model (model_type {kind!r})")
    blobs = hub.repository_folder(repository) / "blobs"
    files = tuple(
        _with_bytes_here(
            RemoteFile(
                one.rfilename,
                one.size or 0,
                0,
                blobs / (one.lfs.sha256 if one.lfs else one.blob_id or ""),
                one.lfs.sha256 if one.lfs else None,
            ),
            blobs.with_name("snapshots") / info.sha,
        )
        for one in info.siblings or []
        if hub.is_wanted(one.rfilename)
    )
    paths = {file.path for file in files}
    weights = [path for path in paths if path.endswith(".safetensors") and "/" not in path]
    if "config.json" not in paths or not weights:
        check_format(name)
        raise CheckpointError(f"{name} has no config.json with safetensors files")
    alone = kind in DRAFTER_TYPES or f"{hub.DRAFTER_FOLDER}config.json" in paths
    return Download(repository, revision, info.sha, files, alone)


def copy_file(download: Download, path: str, folder: Path) -> None:
    """Download one small file to a folder outside the cache."""
    import huggingface_hub

    huggingface_hub.hf_hub_download(
        download.repository,
        path,
        revision=download.commit,
        local_dir=folder,
        tqdm_class=hub.no_bar(),
    )


def check_room(downloads: Sequence[Download]) -> None:
    """Raise MgmError unless the disk of the cache has room for all of them."""
    missing, free = sum(one.missing for one in downloads), free_bytes(hub.cache_folder())
    if missing > free:
        raise MgmError(
            f"{decimal(missing)} to download, but the disk of {hub.cache_folder()} has "
            f"{decimal(free)} free: free some space, or set HF_HOME to a folder elsewhere"
        )


def _with_bytes_here(file: RemoteFile, snapshot: Path) -> RemoteFile:
    """Return a file with `here`; that is less than its size until it is whole."""
    if (snapshot / file.path).is_file() or file.blob.is_file():
        return file._replace(here=file.size)
    with suppress(FileNotFoundError):
        if file.sha256:
            return file._replace(here=min(file.size - 1, file.part.stat().st_size))
    return file


def _config_of(download: Download) -> dict[str, Any]:
    """Return a config.json, from the Hub if it is not cached."""
    if (download.folder / "config.json").is_file():
        return read_config(download.folder)
    with hub.hub_errors(download.name), tempfile.TemporaryDirectory() as folder:
        copy_file(download, "config.json", Path(folder))
        return read_config(Path(folder))
