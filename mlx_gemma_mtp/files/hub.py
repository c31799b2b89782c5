"""The Hub's cache and downloads into it.

Models in the cache are used without network. Sizes are known and the disk is checked before
a download starts. Knows nothing of terminals, and of the files only which ones a checkpoint needs.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from json import JSONDecodeError
from pathlib import Path
from typing import NamedTuple

from rich.filesize import decimal

from mlx_gemma_mtp.errors import CheckpointError, MgmError, ModelNotFoundError, UsageError
from mlx_gemma_mtp.files.checkpoint import read_config, weight_files
from mlx_gemma_mtp.files.folders import free_bytes
from mlx_gemma_mtp.files.names import MAIN, drafter_name, is_folder, split_name
from mlx_gemma_mtp.model.config import DRAFTER_TYPES, TARGET_TYPES

FILES = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model"]  # what a checkpoint needs

# Each run of the Hub's client downloads to files with names of its own, and never resumes another
# run's. One that was not written to for this long is abandoned.
PART = "*.????????.incomplete"
ABANDONED_SECONDS = 3600


def cache_folder() -> Path:
    """Return where the Hub's client keeps its downloads: HF_HUB_CACHE, or `hub` in HF_HOME."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE).expanduser()


def repository_folder(repository: str) -> Path:
    """Return where the cache keeps a repository, whether it is there or not."""
    return cache_folder() / f"models--{repository.replace('/', '--')}"


def from_cache(name: str) -> Path | None:
    """Return the cached folder of a Hub name if it holds a whole checkpoint. No network."""
    import huggingface_hub

    repository, revision = split_name(name)
    try:
        folder = Path(
            huggingface_hub.snapshot_download(
                repository, revision=revision, local_files_only=True, allow_patterns=FILES
            )
        )
        read_config(folder)
        weight_files(folder)
    except (OSError, ValueError, CheckpointError):  # nothing there, no valid name, or damaged
        return None
    return folder


class Download(NamedTuple):
    """One repository, with the `total` and `missing` bytes of the files that are needed.

    alone: True for a drafter, and for a target that contains its drafter. refused: why the Hub
    could not be asked; the cache holds all that is needed then.
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
        return self.repository if self.revision == MAIN else f"{self.repository}@{self.revision}"


def plan_download(model: str, drafter: str | None = "auto") -> list[Download]:
    """Return what to download for a target and its drafter, if it has one.

    Each is a Hub name as in `find_pair`. Without the Hub, plans from the cache. Raises UsageError
    for folders and the demo, ModelNotFoundError if a model is neither on the Hub nor in the cache,
    CheckpointError if it is not a Gemma 4 model.
    """
    target = _look_up(model)
    if drafter != "auto":
        return [target] if drafter is None else [target, _look_up(drafter)]
    if target.alone:
        return [target]
    name = drafter_name(model)
    if target.refused is None:
        from huggingface_hub import HfApi

        with hub_errors(name):
            there = HfApi().repo_exists(name)
    else:
        there = from_cache(name) is not None
    return [target, _look_up(name)] if there else [target]


def check_room(downloads: Sequence[Download]) -> None:
    """Raise MgmError unless the disk of the cache has room for all of them."""
    missing, free = sum(one.missing for one in downloads), free_bytes(cache_folder())
    if missing > free:
        raise MgmError(
            f"{decimal(missing)} to download, but the disk of {cache_folder()} has "
            f"{decimal(free)} free: free some space, or set HF_HOME to a folder elsewhere"
        )


def fetch(download: Download, *, quiet: bool = False) -> Path:
    """Download what is missing and return the folder. Raises MgmError.

    quiet: True hides the Hub's progress bars, which it also draws if nobody can see them.
    The name moves to the new commit after the last file: an interrupted update leaves the old
    version usable.
    """
    repository, revision, commit = download.repository, download.revision, download.commit
    if download.refused is None:
        for part in parts(repository):
            with suppress(FileNotFoundError):  # another process has just finished it
                if time.time() - part.stat().st_mtime > ABANDONED_SECONDS:
                    part.unlink()
        snapshot(f"{repository}@{commit}", quiet=quiet)
        if revision != commit:
            snapshot(f"{repository}@{revision}", quiet=True)  # usually just moves the name
    folder = from_cache(f"{repository}@{commit}")
    if folder is None:
        raise CheckpointError(f"{download.name} is incomplete on the Hub too")
    return folder


def parts(repository: str) -> set[Path]:
    """Return files that are being downloaded, or were when a download was interrupted."""
    return set((repository_folder(repository) / "blobs").glob(PART))


@contextmanager
def hub_errors(name: str) -> Iterator[None]:
    """Turn what the Hub's client raises for this name into a ModelNotFoundError of one line.

    An MgmError if the files cannot be written to disk.
    """
    from huggingface_hub import constants, errors

    # Of the client's HTTP library, whichever it is: a download that ends half-way.
    http_error = errors.HTTPError  # type: ignore[attr-defined]
    try:
        yield
    except errors.HFValidationError:
        raise ModelNotFoundError(f"{name[:200]!r} is neither a folder nor a Hub name") from None
    except errors.GatedRepoError:
        raise ModelNotFoundError(
            f"{name} is gated: accept its terms on the Hub page, then set HF_TOKEN"
        ) from None
    except errors.RepositoryNotFoundError:
        raise ModelNotFoundError(
            f"no folder and no Hub repository named {name!r}; if it is private, set HF_TOKEN"
        ) from None
    except errors.RevisionNotFoundError:
        repository, revision = split_name(name)
        raise ModelNotFoundError(f"{repository} has no revision {revision!r}") from None
    # JSONDecodeError: something on the way answered in the Hub's place.
    except (http_error, errors.LocalEntryNotFoundError, OSError, JSONDecodeError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        if isinstance(error, OSError) and (error.filename or error.errno == errno.ENOSPC):
            raise MgmError(
                f"{name} cannot be written to {cache_folder()} ({reason}): free some space "
                "there, or set HF_HOME to another folder"
            ) from None
        if constants.HF_HUB_OFFLINE:
            reason = "HF_HUB_OFFLINE is set"
        raise ModelNotFoundError(
            f"{name} is not downloaded, and the Hub cannot be reached ({reason}): "
            "check the connection, or use a local folder"
        ) from None


def snapshot(name: str, *, quiet: bool = False) -> Path:
    """Download what the cache lacks of a Hub name. Raises as `hub_errors` says."""
    import huggingface_hub

    repository, revision = split_name(name)
    with hub_errors(name):
        bar = _no_bar() if quiet else None
        return Path(
            huggingface_hub.snapshot_download(
                repository, revision=revision, allow_patterns=FILES, tqdm_class=bar
            )
        )


def _look_up(name: str) -> Download:
    """Ask the Hub what a name would download, or the cache if the Hub cannot be asked."""
    import huggingface_hub

    if name == "demo" or is_folder(name):
        raise UsageError(f"{name} is already here: only models on the Hub can be downloaded")
    repository, revision = split_name(name)
    try:
        with hub_errors(name):
            info = huggingface_hub.HfApi().model_info(repository, revision=revision)
            assert info.sha is not None  # the Hub always sends it for a single repository
            kind = (info.config or {}).get("model_type")
            if kind is not None and kind not in (*TARGET_TYPES, *DRAFTER_TYPES):
                raise CheckpointError(f"{name} is not a Gemma 4 model (model_type {kind!r})")
            # By its commit: even a dry run moves a branch's name in the cache.
            files = huggingface_hub.snapshot_download(
                repository,
                revision=info.sha,
                allow_patterns=FILES,
                tqdm_class=_no_bar(),
                dry_run=True,
            )
    except ModelNotFoundError as error:
        folder = from_cache(name)
        if folder is None:
            raise
        total = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        is_drafter = read_config(folder).get("model_type") in DRAFTER_TYPES
        alone = is_drafter or (folder / "drafter").is_dir()
        return Download(repository, revision, folder.name, total, 0, alone, str(error))
    names = {file.filename for file in files}
    if "config.json" not in names or not any(one.endswith(".safetensors") for one in names):
        raise CheckpointError(f"{name} has no config.json with safetensors files")
    total = sum(file.file_size or 0 for file in files)
    missing = sum(file.file_size or 0 for file in files if file.will_download)
    alone = kind in DRAFTER_TYPES or "drafter/config.json" in names
    return Download(repository, revision, info.sha, total, missing, alone)


def _no_bar() -> type:
    from huggingface_hub.utils.tqdm import tqdm

    class NoBar(tqdm):
        def __init__(self, *args: object, **options: object) -> None:
            super().__init__(*args, **options | {"disable": True})

    return NoBar
