"""Downloads into the Hub's cache that a later run continues inside a file.

The Hub's own client downloads every file to a new temporary name, and starts over when it is
stopped. So large files are fetched here, to the name that the client used before, under the
client's own lock; small ones, links and the listing are the client's. Prints nothing.
"""

from __future__ import annotations

import glob
import hashlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from mlx_gemma_mtp.errors import CheckpointError, MgmError
from mlx_gemma_mtp.files import hub
from mlx_gemma_mtp.files.hub import http_error, hub_errors, no_bar
from mlx_gemma_mtp.files.plan import (
    Download,
    RemoteFile,
    check_room,
    look_up,
)

FILES_AT_ONCE = 4
TRIES = 5  # in a row without a byte, with longer and longer pauses
BUSY = (408, 429, 500, 502, 503, 504)  # HTTP codes of a server that may answer later
LONGEST_PAUSE = 300.0  # seconds: the Hub counts requests in windows of five minutes

# The client's own temporary files, which nothing continues. One that was not written to for this
# long is abandoned.
CLIENT_PART = "*.????????.incomplete"
ABANDONED_SECONDS = 3600

OnProgress = Callable[[int], None]  # how many bytes came since the last call; less than 0 if lost


def fetch(download: Download, on_progress: OnProgress = lambda _: None) -> Path:
    """Download what is missing and return the folder. Raises MgmError.

    If it is interrupted, the next run continues where it stopped. The name moves to the new commit
    after the last file: an interrupted update leaves the old version usable.
    """
    if download.refused is None:
        _remove_abandoned(hub.repository_folder(download.repository) / "blobs")
        with hub_errors(download.name):
            _fetch_small(download, download.commit, ["config.json"])  # to be listed from now on
            _fetch_large(download, on_progress)
            _fetch_small(download, download.commit)
            on_progress(sum(file.size - file.here for file in download.files if not file.sha256))
            if hub.snapshot_folder(download.name) != download.folder:
                _fetch_small(download, download.revision)  # just moves the name
    lacks = hub.missing_files(download.folder)
    if lacks:
        raise CheckpointError(f"{download.name} lacks {', '.join(lacks[:3])} on the Hub too")
    return download.folder


def snapshot(name: str) -> Path:
    """Return the folder of a Hub name, after downloading what the cache lacks. Raises as `fetch`.

    If the weights are cached, the rest comes from the same commit.
    """
    found = look_up(name, update=False)
    check_room([found])
    return fetch(found)


def complete(name: str, cached: Path) -> Path:
    """Return the cached folder of a Hub name, with the files that only the Hub knows of.

    As it is if the Hub cannot be asked, or the cache cannot be written to.
    """
    try:
        return snapshot(name) if hub.may_lack_files(cached) else cached
    except MgmError:
        return cached


def _fetch_small(download: Download, revision: str, paths: Sequence[str] | None = None) -> None:
    """Have the client fetch files that are not here, by default all, and link them."""
    import huggingface_hub

    huggingface_hub.snapshot_download(
        download.repository,
        revision=revision,
        allow_patterns=[glob.escape(path) for path in paths or [f.path for f in download.files]],
        tqdm_class=no_bar(),
    )


def _fetch_large(download: Download, on_progress: OnProgress) -> None:
    """Fetch the large files that the cache does not have, several at once."""
    wanted = [file for file in download.files if file.sha256 and file.here < file.size]
    if not wanted:
        return
    wanted[0].blob.parent.mkdir(parents=True, exist_ok=True)
    stop, lock = threading.Event(), threading.Lock()

    def moved(count: int) -> None:
        with lock:
            on_progress(count)

    pool = ThreadPoolExecutor(FILES_AT_ONCE)
    try:
        running = [pool.submit(_fetch_file, download, file, moved, stop) for file in wanted]
        for one in wait(running, return_when=FIRST_EXCEPTION).done:
            one.result()
    finally:
        stop.set()
        pool.shutdown(wait=False, cancel_futures=True)


def _fetch_file(
    download: Download, file: RemoteFile, moved: OnProgress, stop: threading.Event
) -> None:
    """Fetch one file: what is there of it is continued, and checked with the rest."""
    from huggingface_hub.file_download import are_symlinks_supported

    with _locked(download, file, moved, stop):
        if download.has(file) or stop.is_set():
            return
        with file.part.open("a+b", buffering=0) as out:
            if out.tell() > file.size:
                moved(-out.tell())
                out.truncate(0)
            out.seek(0)
            digest = hashlib.sha256()
            while not stop.is_set() and (chunk := out.read(2**20)):
                digest.update(chunk)
            failures = 0
            while (have := out.tell()) < file.size and failures < TRIES and not stop.is_set():
                failures += 1
                try:
                    for chunk in chunks(download, file, have):
                        _write(out, chunk)
                        digest.update(chunk)
                        moved(len(chunk))
                        failures = 0
                        if stop.is_set():
                            return
                except http_error() as error:
                    response = getattr(error, "response", None)
                    if failures == TRIES or (response and response.status_code not in BUSY):
                        raise
                    stop.wait(
                        max(2**failures / 2, asked_pause(response.headers if response else {}))
                    )
        if stop.is_set():
            return
        if have < file.size:
            raise ConnectionError("it sends no more data")
        if digest.hexdigest() != file.sha256:
            file.part.unlink()
            moved(-file.size)
            raise MgmError(f"{file.path} of {download.name} arrived damaged: run this again")
        if are_symlinks_supported(hub.cache_folder()):
            file.part.replace(file.blob)  # the client links it
        else:
            file.part.replace(download.folder / file.path)


def chunks(
    download: Download, file: RemoteFile, start: int, end: int | None = None
) -> Iterator[bytes]:
    """Yield a file's content from byte `start` on, as it arrives.

    end: after the last byte that is needed; there may be more if the server ignores it.
    """
    from huggingface_hub import constants, get_session, hf_hub_url, hf_raise_for_status
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    url = hf_hub_url(download.repository, file.path, revision=download.commit)
    headers = build_hf_headers() | {"Accept-Encoding": "identity", "Range": f"bytes={start}-"}
    if end is not None:
        headers["Range"] += str(end - 1)
    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
    with get_session().stream("GET", url, headers=headers, timeout=timeout) as response:
        hf_raise_for_status(response)
        skip = start if response.status_code == 200 else 0  # a server that ignores ranges
        for chunk in response.iter_bytes():  # as it arrives: all of it is kept
            yield chunk[skip:]
            skip = max(0, skip - len(chunk))


def asked_pause(headers: Mapping[str, str]) -> float:
    """Return how many seconds a server that refused a request asks to wait; 0 if it does not."""
    from huggingface_hub.utils import parse_ratelimit_headers  # type: ignore[attr-defined]

    limit, seconds = parse_ratelimit_headers(headers), headers.get("Retry-After", "")
    asked = int(seconds) if seconds.isdecimal() else limit.reset_in_seconds if limit else 0
    return float(min(asked, LONGEST_PAUSE))


def _write(out: BinaryIO, chunk: bytes) -> None:
    """Write all of it: a disk that is nearly full takes a part, then raises OSError."""
    left = memoryview(chunk)
    while left:
        left = left[out.write(left) :]


@contextmanager
def _locked(
    download: Download, file: RemoteFile, moved: OnProgress, stop: threading.Event
) -> Iterator[None]:
    """Hold the client's lock for a file; until then report what another process fetches."""
    from filelock import Timeout
    from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

    repository = hub.repository_folder(download.repository)
    path = repository.parent / ".locks" / repository.name / f"{file.blob.name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    have, lock = file.here, None
    with ExitStack() as held:
        while lock is None and not stop.is_set():
            with suppress(Timeout):
                lock = held.enter_context(WeakFileLock(path, timeout=0.5))
            now = file.size if download.has(file) else _size(file.part)
            moved(now - have)
            have = now
        yield


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _remove_abandoned(blobs: Path) -> None:
    for part in blobs.glob(CLIENT_PART):
        with suppress(FileNotFoundError):  # another process has just finished it
            if time.time() - part.stat().st_mtime > ABANDONED_SECONDS:
                part.unlink()
