"""Where a pair to convert comes from: folders, the Hub's cache, or the Hub.

Of a checkpoint on the Hub it can fetch the config and the headers alone, without any weights.
"""

from __future__ import annotations

from pathlib import Path

from mlx_gemma_mtp.errors import CheckpointError, ModelNotFoundError
from mlx_gemma_mtp.files import hub
from mlx_gemma_mtp.files.checkpoint import canonical_name, read_config

from .manifest import Origin
from .source import Source, parse_entry, read_tensors


def find_sources(
    model: str | Path, drafter: str | Path | None, *, headers_only: bool = False
) -> list[Source]:
    """Return the target's checkpoint and, if there is one, the drafter's.

    Arguments and errors are those of `hub.find_pair`. headers_only: download no weights.
    """
    here = _is_here(model) and (drafter in (None, "auto") or _is_here(drafter))
    if here or not headers_only:
        pair = hub.find_pair(model, drafter)
        return [_local(folder) for folder in pair if folder is not None]
    found = [_headers(model)]
    try:
        if drafter is not None:
            found.append(_headers(hub.drafter_name(str(model)) if drafter == "auto" else drafter))
    except ModelNotFoundError:
        if drafter != "auto":
            raise
    return found


def _is_here(name: str | Path | None) -> bool:
    local = name == "demo" or isinstance(name, Path) or hub.is_folder(str(name))
    return local or hub.from_cache(str(name)) is not None


def _local(folder: Path) -> Source:
    """Read a folder; in the Hub's cache, its origin is the repository and the commit."""
    origin, cached = Origin(folder.resolve().name, None), folder.parent.parent.name
    if folder.parent.name == "snapshots" and cached.startswith("models--"):
        name = cached.removeprefix("models--").replace("--", "/", 1)
        origin = Origin(name, folder.name)
    return Source(origin, folder, read_config(folder), read_tensors(folder))


def _headers(name: str | Path) -> Source:
    if _is_here(name):
        return _local(hub.find_pair(name, None)[0])
    import huggingface_hub
    from huggingface_hub import errors

    repository, revision = hub.split_name(str(name))
    with hub.hub_errors(str(name)):
        api = huggingface_hub.HfApi()
        # First, because the other calls retry for half a minute if the Hub can't be reached.
        commit = api.model_info(repository, revision=revision).sha or revision
        config = huggingface_hub.hf_hub_download(repository, "config.json", revision=commit)
        try:
            metadata = api.get_safetensors_metadata(repository, revision=commit)
        except (errors.NotASafetensorsRepoError, errors.SafetensorsParsingError):
            raise CheckpointError(
                f"{name} has no complete safetensors files; other formats are not supported"
            ) from None
    tensors = {}
    for file, header in metadata.files_metadata.items():
        for tensor, entry in header.tensors.items():
            parsed = parse_entry(tensor, vars(entry), Path(str(name), file), 0)
            tensors[canonical_name(tensor)] = parsed
    return Source(
        Origin(repository, commit), Path(str(name)), read_config(Path(config).parent), tensors
    )
