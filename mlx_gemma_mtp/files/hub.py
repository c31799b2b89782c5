"""The Hub's cache: where a repository is, and which files of a checkpoint are missing in it.

Models in the cache are found without network. What there is on the Hub is in `plan`; `download`
fetches it.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from json import JSONDecodeError
from pathlib import Path
from urllib.parse import urlsplit

from mlx_gemma_mtp.errors import CheckpointError, MgmError, ModelNotFoundError
from mlx_gemma_mtp.files.checkpoint import INDEX, is_drafter, weight_files
from mlx_gemma_mtp.files.names import MAIN, did_you_mean, split_name

# The files of a checkpoint, as far as a repository has them; none of the REQUIRED may be missing.
REQUIRED = (
    *("config.json", "generation_config.json", "*.safetensors", INDEX),
    *("tokenizer.json", "tokenizer_config.json", "*.jinja"),
)
OLD_TEMPLATES = ("chat_template.json", "processor_config.json")  # needed without a *.jinja
OPTIONAL = ("special_tokens_map.json", "added_tokens.json", "tokenizer.model", "README.md")
# The only subfolders that are looked at: a drafter's, and templates with names.
DRAFTER_FOLDER, TEMPLATES = "drafter/", "additional_chat_templates/*.jinja"

# Of a full disk, a quota, a file system that takes no large files, and a disk that fails.
OF_A_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


def cache_folder() -> Path:
    """Return where the Hub's client keeps its downloads: HF_HUB_CACHE, or `hub` in HF_HOME."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE).expanduser()


def repository_folder(repository: str) -> Path:
    """Return where the cache keeps a repository, whether it is there or not."""
    return cache_folder() / f"models--{repository.replace('/', '--')}"


def repository_of(folder: Path) -> str:
    """Return the name of the repository that the cache keeps in this folder."""
    return folder.name.removeprefix("models--").replace("--", "/")


def repositories() -> list[str]:
    """Return the names of all model repositories that the cache has a folder for."""
    names = []
    for path in sorted(cache_folder().glob("models--*")):
        name = repository_of(path)
        with suppress(ModelNotFoundError):
            if path.is_dir() and split_name(name) == (name, MAIN):
                names.append(name)
    return names


def snapshot_folder(name: str) -> Path | None:
    """Return the cached folder of a Hub name if it has a config.json. No network."""
    import huggingface_hub

    repository, revision = split_name(name)
    try:
        folder = huggingface_hub.snapshot_download(
            repository, revision=revision, local_files_only=True, allow_patterns=["config.json"]
        )
    except (OSError, ValueError):  # nothing there, no valid name, or damaged
        return None
    return Path(folder) if Path(folder, "config.json").is_file() else None


def from_cache(name: str) -> Path | None:
    """Return the cached folder of a Hub name if it holds a whole checkpoint. No network."""
    folder = snapshot_folder(name)
    return None if folder is None or missing_files(folder) else folder


def missing_files(folder: Path) -> list[str]:
    """Return the files that a cached checkpoint lacks; `weights` if it is not known which.

    By the Hub's own listing if that is cached. Otherwise a target needs a config, its weights and
    a tokenizer, a drafter no tokenizer; see also `may_lack_files`.
    """
    try:
        alone = is_drafter(folder)
    except CheckpointError:
        return ["config.json"]
    paths = _listed(folder)
    if paths is not None:
        return [path for path in _required(paths) if not (folder / path).is_file()]
    lacks = [] if alone or (folder / "tokenizer.json").is_file() else ["tokenizer.json"]
    return lacks if has_weights(folder) else [*lacks, "weights"]


def may_lack_files(folder: Path) -> bool:
    """Return True if only the Hub knows whether this cached target's files are all there."""
    if _listed(folder) is not None or is_drafter(folder):
        return False
    return not (folder / "generation_config.json").is_file() or not _has_template(folder)


@contextmanager
def hub_errors(name: str) -> Iterator[None]:
    """Turn what the Hub's client raises for this name into a ModelNotFoundError of one line.

    An MgmError if the files cannot be written to disk, or if the proxy has no valid address.
    """
    from huggingface_hub import constants, errors, get_session

    try:
        get_session()  # reads HTTPS_PROXY and the like
    except (ImportError, ValueError) as error:
        raise MgmError(f"the proxy in the environment cannot be used: {error}") from None

    try:
        yield
    except errors.HFValidationError:
        raise ModelNotFoundError(f"{name[:200]!r} is neither a folder nor a Hub name") from None
    except errors.GatedRepoError:
        page = f"{constants.ENDPOINT}/{split_name(name)[0]}"
        raise ModelNotFoundError(
            f"{name} is gated: accept its terms at {page}, then set HF_TOKEN or run hf auth login"
        ) from None
    except errors.RepositoryNotFoundError:
        meant = did_you_mean(name)
        hint = f"did you mean {meant}?" if meant else "if it is private, set HF_TOKEN"
        raise ModelNotFoundError(
            f"no folder and no Hub repository named {name!r}; {hint}"
        ) from None
    except errors.RevisionNotFoundError:
        repository, revision = split_name(name)
        raise ModelNotFoundError(f"{repository} has no revision {revision!r}") from None
    # JSONDecodeError: something on the way answered in the Hub's place.
    except (http_error(), errors.LocalEntryNotFoundError, OSError, JSONDecodeError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        reason = re.sub(r"^\[Errno -?\d+\] ", "", reason)
        if isinstance(error, OSError) and (error.filename or error.errno in OF_A_DISK):
            raise MgmError(
                f"{name} cannot be written to {cache_folder()} ({reason}): free some space "
                "there, or set HF_HOME to another folder"
            ) from None
        if constants.HF_HUB_OFFLINE:
            reason = "HF_HUB_OFFLINE is set"
        cached, host = snapshot_folder(name), urlsplit(constants.ENDPOINT).hostname
        first = "unset that" if constants.HF_HUB_OFFLINE else "check the connection"
        state, way = "is not downloaded", f"{first}, or use a local folder"
        trouble, response = f"{host} cannot be reached ({reason})", getattr(error, "response", None)
        if response is not None:
            trouble = f"{host} answered {response.status_code} {response.reason_phrase}"
            way = "try again later, or use a local folder"
            if response.status_code in (401, 403):
                raise ModelNotFoundError(
                    f"{trouble} for {name}: check HF_TOKEN, or run hf auth login"
                ) from None
        if cached is not None and (lacks := missing_files(cached)):
            state = f"is incomplete in the cache ({', '.join(lacks[:3])} missing)"
            way = f"mgm pull {name} downloads the rest later"
        if any((repository_folder(split_name(name)[0]) / "blobs").glob("*.incomplete")):
            state, way = "is downloaded in part", "the same command continues it later"
        raise ModelNotFoundError(f"{name} {state}, and {trouble}: {way}") from None


def http_error() -> type[Exception]:
    """Return the base of the errors of the client's HTTP library, whichever it is."""
    from huggingface_hub import errors

    return errors.HTTPError  # type: ignore[attr-defined]


def no_bar() -> type:
    """Return a progress bar for the Hub's client that shows nothing."""
    from huggingface_hub.utils.tqdm import tqdm

    class NoBar(tqdm):
        def __init__(self, *args: object, **options: object) -> None:
            super().__init__(*args, **options | {"disable": True})

    return NoBar


def is_wanted(path: str) -> bool:
    """Return True for a file that is downloaded: of a checkpoint, or of the drafter inside it."""
    name = path.removeprefix(DRAFTER_FOLDER)
    if "/" in name:
        return fnmatch(path, TEMPLATES) and path.count("/") == 1
    return any(fnmatch(name, one) for one in (*REQUIRED, *OLD_TEMPLATES, *OPTIONAL))


def _required(paths: Iterable[str]) -> list[str]:
    """Return those of a repository's paths without which a checkpoint is incomplete."""
    wanted = [path for path in paths if is_wanted(path)]
    has_jinja = any(path.endswith(".jinja") for path in wanted)
    optional = (*OPTIONAL, *(OLD_TEMPLATES if has_jinja else ()))
    return [path for path in wanted if path.rpartition("/")[2] not in optional]


def _listed(folder: Path) -> list[str] | None:
    """Return the paths that the Hub listed for this cached commit; None if that is not cached."""
    from huggingface_hub import errors, get_cached_repo_tree

    repository, cache = repository_of(folder.parents[1]), folder.parents[2]
    try:
        tree = get_cached_repo_tree(repository, revision=folder.name, cache_dir=cache)
    except (errors.CachedRepoTreeNotFoundError, ValueError):  # ValueError: not a Hub name
        return None
    return [file.path for file in tree]


def _has_template(folder: Path) -> bool:
    configs = [folder / name for name in ("tokenizer_config.json", *OLD_TEMPLATES)]
    return any(folder.glob("*.jinja")) or any(
        b'"chat_template"' in path.read_bytes() for path in configs if path.is_file()
    )


def has_weights(folder: Path) -> bool:
    """Return True if the weight files of a checkpoint are all there."""
    return weights_problem(folder) is None


def weights_problem(folder: Path) -> str | None:
    """Return what is wrong with the weight files of a checkpoint, as far as their names show it."""
    try:
        weight_files(folder)
    except CheckpointError as error:
        return str(error)
    return None
