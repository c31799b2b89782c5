"""What a pair on the Hub costs to download, and the download.

Sizes are known and the disk is checked before the first file comes. Files that an earlier run
fetched whole are kept; of the others the Hub's client keeps nothing. Knows nothing of terminals.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rich.filesize import decimal

from mlx_gemma_mtp.errors import CheckpointError, MgmError, ModelNotFoundError, UsageError
from mlx_gemma_mtp.files import hub
from mlx_gemma_mtp.files.checkpoint import read_config
from mlx_gemma_mtp.files.folders import free_bytes
from mlx_gemma_mtp.model.config import DRAFTER_TYPES, TARGET_TYPES

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoSibling

# Parts of files get names of their own in every run, and none goes on with another's. One that is
# not written to for so many seconds belongs to nobody any more.
PART = "*.????????.incomplete"
ABANDONED_SECONDS = 3600


class Download(NamedTuple):
    """One repository: `total` and `missing` bytes of the files that matter.

    alone: it has its drafter with it, or is one. refused: why nothing is known from the Hub; what
    the cache holds is whole then.
    """

    repository: str
    revision: str
    commit: str
    total: int
    missing: int
    alone: bool
    refused: str | None = None

    @property
    def name(self) -> str:
        """The name that `load` takes for it."""
        at = "" if self.revision == hub.MAIN else f"@{self.revision}"
        return self.repository + at


def plan(model: str, drafter: str | None = "auto") -> list[Download]:
    """The target and its drafter, if it has one, each a Hub name as in `hub.find_pair`.

    Without the Hub, what the cache holds. Raises UsageError for what is no Hub name,
    ModelNotFoundError for what is neither there nor in the cache, CheckpointError for what this
    runtime does not run.
    """
    target = _look_up(model)
    if drafter != "auto":
        return [target] if drafter is None else [target, _look_up(drafter)]
    if target.alone:
        return [target]
    name = hub.drafter_name(model)
    if target.refused is None:
        from huggingface_hub import HfApi

        with hub.hub_errors(name):
            there = HfApi().repo_exists(name)
    else:
        there = hub.from_cache(name) is not None
    return [target, _look_up(name)] if there else [target]


def check_room(downloads: Sequence[Download]) -> None:
    """Raise MgmError unless the disk of the cache has room for all of them."""
    missing, free = sum(one.missing for one in downloads), free_bytes(hub.cache_folder())
    if missing > free:
        raise MgmError(
            f"{decimal(missing)} to download, but the disk of {hub.cache_folder()} has "
            f"{decimal(free)} free: make room, or have HF_HOME name a folder elsewhere"
        )


def fetch(download: Download) -> Path:
    """Download what is missing; the folder. Raises as `hub.hub_errors` says.

    The name moves to a new commit once all of it is there: an update that is interrupted leaves
    the old one whole.
    """
    import huggingface_hub

    repository, revision = download.repository, download.revision

    def get(revision: str) -> None:
        with hub.hub_errors(download.name):
            huggingface_hub.snapshot_download(
                repository, revision=revision, allow_patterns=hub.FILES
            )

    if download.refused is None:
        _remove_abandoned(repository)
        get(download.commit)
        if revision != download.commit:
            with without_bars():
                get(revision)  # all there, unless the name has moved on meanwhile
    folder = hub.from_cache(f"{repository}@{download.commit}")
    if folder is None:
        raise CheckpointError(f"{download.name} lacks a part of its weights on the Hub as well")
    return folder


@contextmanager
def without_bars() -> Iterator[None]:
    """Within it, the Hub's client shows no bars, unless its own variable says which to show."""
    from huggingface_hub import constants
    from huggingface_hub.utils.tqdm import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    if constants.HF_HUB_DISABLE_PROGRESS_BARS is not None or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def parts(repository: str) -> set[Path]:
    """Files that are coming, or that an interrupted download left."""
    return set((hub.repository_folder(repository) / "blobs").glob(PART))


def _remove_abandoned(repository: str) -> None:
    now = time.time()
    for path in parts(repository):
        with suppress(FileNotFoundError):  # whoever wrote it has just finished
            if now - path.stat().st_mtime > ABANDONED_SECONDS:
                path.unlink()


def _look_up(name: str) -> Download:
    if name == "demo" or hub.is_folder(name):
        raise UsageError(f"{name} is here already: only what is on the Hub can be downloaded")
    repository, revision = hub.split_name(name)
    try:
        return _ask(name, repository, revision)
    except ModelNotFoundError as error:
        folder = hub.from_cache(name)
        if folder is None:
            raise
        total = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        is_drafter = read_config(folder).get("model_type") in DRAFTER_TYPES
        alone = is_drafter or (folder / "drafter").is_dir()
        return Download(repository, revision, folder.name, total, 0, alone, str(error))


def _ask(name: str, repository: str, revision: str) -> Download:
    """Ask the Hub what there is of a name."""
    from huggingface_hub import HfApi

    with hub.hub_errors(name):
        info = HfApi().model_info(repository, revision=revision, files_metadata=True)
    assert info.sha is not None  # of one repository it always comes
    kind = (info.config or {}).get("model_type")
    if kind is not None and kind not in (*TARGET_TYPES, *DRAFTER_TYPES):
        raise CheckpointError(f"{name} is not a Gemma 4 model (model_type {kind!r})")
    files = [
        file
        for file in info.siblings or []
        if any(fnmatch(file.rfilename, pattern) for pattern in hub.FILES)
    ]
    names = {file.rfilename for file in files}
    if "config.json" not in names or not any(one.endswith(".safetensors") for one in names):
        raise CheckpointError(f"{name} has no config.json and safetensors; nothing else is read")
    return Download(
        repository,
        revision,
        info.sha,
        total=sum(file.size or 0 for file in files),
        missing=sum(file.size or 0 for file in files if not _is_here(repository, info.sha, file)),
        alone=kind in DRAFTER_TYPES or "drafter/config.json" in names,
    )


def _is_here(repository: str, commit: str, file: RepoSibling) -> bool:
    """Is the file in the cache, in this commit or with the same content in another?"""
    folder = hub.repository_folder(repository)
    content = file.lfs.sha256 if file.lfs else file.blob_id
    places = [folder / "snapshots" / commit / file.rfilename]
    places += [folder / "blobs" / content] if content else []
    return any(path.exists() for path in places)
