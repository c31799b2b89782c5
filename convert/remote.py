"""A checkpoint on the Hub, as far as its config and the headers of its files tell: no weights come.

Knows huggingface_hub; nothing of what the tensors are for.
"""

from __future__ import annotations

from pathlib import Path

from mlx_gemma_mtp.errors import CheckpointError
from mlx_gemma_mtp.files import hub
from mlx_gemma_mtp.files.checkpoint import canonical_name, read_config

from .source import Source, parse_entry


def remote_source(name: str) -> tuple[str, Source]:
    """The commit and the checkpoint of a Hub name.

    Raises ModelNotFoundError, CheckpointError for a repository without safetensors.
    """
    import huggingface_hub
    from huggingface_hub import errors

    repository, revision = hub.split_name(name)
    with hub.hub_errors(name):
        # Unlike what follows, it is not tried again for half a minute where there is no Hub.
        revision = huggingface_hub.HfApi().model_info(repository, revision=revision).sha or revision
        config = huggingface_hub.hf_hub_download(repository, "config.json", revision=revision)
        try:
            metadata = huggingface_hub.HfApi().get_safetensors_metadata(
                repository, revision=revision
            )
        except (errors.NotASafetensorsRepoError, errors.SafetensorsParsingError):
            raise CheckpointError(
                f"{name} has no whole safetensors, and only those are read"
            ) from None
    tensors = {}
    for file, found in metadata.files_metadata.items():
        for tensor, info in found.tensors.items():
            entry = {
                "dtype": info.dtype,
                "shape": info.shape,
                "data_offsets": list(info.data_offsets),
            }
            tensors[canonical_name(tensor)] = parse_entry(tensor, entry, Path(name, file), 0)
    folder = Path(config).parent
    return folder.name, Source(Path(name), read_config(folder), tensors)
