"""What can be known of a checkpoint on the Hub before its weights are downloaded.

Its config and the headers of its weight files, in a folder that can be opened like any other: to
count bytes, and to see whether it could be loaded at all.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from mlx_gemma_mtp.errors import CheckpointError
from mlx_gemma_mtp.files.checkpoint import INDEX
from mlx_gemma_mtp.files.download import chunks
from mlx_gemma_mtp.files.hub import has_weights, hub_errors
from mlx_gemma_mtp.files.plan import Download, RemoteFile, copy_file

HEADERS_AT_ONCE = 8
FIRST_BYTES = 100_000  # of a weight file; a longer header takes a second request


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
    folder = place / download.repository
    folder.mkdir(parents=True)
    files = [file for file in download.files if "/" not in file.path]
    weights = [file for file in files if file.path.endswith(".safetensors")]
    with hub_errors(download.name):
        for path in {"config.json", INDEX}.intersection(file.path for file in files):
            copy_file(download, path, folder)
        with ThreadPoolExecutor(HEADERS_AT_ONCE) as pool:
            headers = pool.map(partial(_header, download), weights)
            for file, header in zip(weights, headers, strict=True):
                with (folder / file.path).open("wb") as out:
                    out.write(header)
                    out.truncate(_length(header))
    return folder


def _header(download: Download, file: RemoteFile) -> bytes:
    """Return the header of a safetensors file, with its length in front; no more than is there."""
    data, wanted = b"", min(FIRST_BYTES, file.size)
    while len(data) < wanted:
        before = len(data)
        for chunk in chunks(download, file, before, wanted):
            data += chunk
            if len(data) >= wanted:  # the server may go on to the end of the file
                break
        if len(data) == before:
            break
        wanted = min(8 + int.from_bytes(data[:8], "little"), file.size)
    return data[:wanted]


def _length(header: bytes) -> int:
    """Return the bytes of the file that starts with this header; of the header if it is damaged."""
    try:
        entries = json.loads(header[8:])
        ends = [one["data_offsets"][1] for name, one in entries.items() if name != "__metadata__"]
        return len(header) + int(max(ends, default=0))
    except (AttributeError, LookupError, TypeError, ValueError):
        return len(header)
