"""What can be known of a checkpoint on the Hub before its weights are downloaded.

Its config and the headers of its weight files, in a folder that can be opened like any other: to
count bytes, and to see whether it could be loaded at all.
"""

from __future__ import annotations

import json
import struct
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from mlx_gemma_mtp.errors import CheckpointError
from mlx_gemma_mtp.files.checkpoint import INDEX
from mlx_gemma_mtp.files.hub import has_weights, hub_errors
from mlx_gemma_mtp.files.plan import Download, copy_file

if TYPE_CHECKING:
    from huggingface_hub.utils import SafetensorsFileMetadata  # type: ignore[attr-defined]

HEADERS_AT_ONCE = 8


@contextmanager
def previews(downloads: Sequence[Download]) -> Iterator[list[Path]]:
    """Yield a folder for each download: its config, and its weight files without their data.

    The files are as long as on the Hub, but take no room on the disk: unwritten bytes read as
    zeros. What is cached already is used as it is. The folders are removed afterwards, and a
    CheckpointError raised within names the models instead. Raises as `hub_errors` says,
    CheckpointError.
    """
    with tempfile.TemporaryDirectory() as place:
        folders = [_preview(one, Path(place)) for one in downloads]
        try:
            yield folders
        except CheckpointError as error:
            message = str(error)
            for folder, one in zip(folders, downloads, strict=True):
                message = message.replace(str(folder), one.name)
            raise CheckpointError(message) from None


def _preview(download: Download, place: Path) -> Path:
    if (download.folder / "config.json").is_file() and has_weights(download.folder):
        return download.folder
    import huggingface_hub
    from huggingface_hub import errors

    folder = place / download.repository
    folder.mkdir(parents=True)
    paths = [file.path for file in download.files if "/" not in file.path]
    weights = [path for path in paths if path.endswith(".safetensors")]

    def header(path: str) -> SafetensorsFileMetadata:
        return huggingface_hub.HfApi().parse_safetensors_file_metadata(
            download.repository, path, revision=download.commit
        )

    with hub_errors(download.name):
        for path in {"config.json", INDEX}.intersection(paths):
            copy_file(download, path, folder)
        try:
            with ThreadPoolExecutor(HEADERS_AT_ONCE) as pool:
                for path, found in zip(weights, pool.map(header, weights), strict=True):
                    _write(folder / path, found)
        except errors.SafetensorsParsingError:
            raise CheckpointError(f"{download.name} has a damaged safetensors file") from None
    return folder


def _write(path: Path, found: SafetensorsFileMetadata) -> None:
    entries = {
        name: {"dtype": one.dtype, "shape": one.shape, "data_offsets": one.data_offsets}
        for name, one in found.tensors.items()
    }
    header = json.dumps(entries).encode()
    ends = [one.data_offsets[1] for one in found.tensors.values()]
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + max(ends, default=0))
