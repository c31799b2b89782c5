"""Downloads from a Hub that is busy, moves its files, refuses tokens, or from behind a proxy; and
caches on disks that lack links or locks."""

import errno
import fcntl
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
from huggingface_hub import close_session
from huggingface_hub import file_download as client

from helpers.fake_hub import (
    NAME,
    NEWER,
    TARGET_FILES,
    FakeHub,
    folder_files,
    hub_for_this_process,  # noqa: F401 - the fixture `online`
    needed,
    weights,
)
from mlx_gemma_mtp.errors import MgmError, ModelNotFoundError
from mlx_gemma_mtp.files import hub
from mlx_gemma_mtp.files.download import LONGEST_PAUSE, asked_pause, complete, snapshot
from mlx_gemma_mtp.files.find import find_pair
from mlx_gemma_mtp.files.plan import look_up

WEIGHTS = "model.safetensors"


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, 0),
        ({"Retry-After": "7"}, 7),
        ({"Retry-After": "86400"}, LONGEST_PAUSE),
        ({"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}, 0),
        ({"ratelimit": '"resolvers";r=0;t=55'}, 55),
    ],
)
def test_a_busy_server_is_given_the_time_that_it_asks_for(
    headers: dict[str, str], seconds: float
) -> None:
    assert asked_pause(headers) == seconds


@pytest.mark.slow
@pytest.mark.parametrize("code", [408, 429, 503])
def test_weights_are_asked_for_again_after_a_busy_answer(online: FakeHub, code: int) -> None:
    online.add(NAME, TARGET_FILES)
    online.refusals[WEIGHTS] = [(code, {"Retry-After": "1"})] * 2
    snapshot(NAME)
    assert folder_files(online.cache.snapshot(NAME)) == needed(TARGET_FILES)
    assert online.ranges == [f"{WEIGHTS} bytes=0-"]


def test_a_download_link_that_expires_half_way_is_asked_for_again(online: FakeHub) -> None:
    online.add(NAME, TARGET_FILES)
    online.linked = True
    online.cut[WEIGHTS] = 500_000
    snapshot(NAME)
    assert folder_files(online.cache.snapshot(NAME)) == needed(TARGET_FILES)
    assert online.ranges == [f"{WEIGHTS} bytes=0-", f"{WEIGHTS} bytes=500000-"]


@pytest.mark.parametrize(
    ("path", "code", "words"),
    [
        (WEIGHTS, 401, f"127.0.0.1 answered 401 Unauthorized for {NAME}: check HF_TOKEN"),
        ("config.json", 401, f"127.0.0.1 answered 401 Unauthorized for {NAME}: check HF_TOKEN"),
        (WEIGHTS, 403, f"127.0.0.1 answered 403 Forbidden for {NAME}: check HF_TOKEN"),
        ("config.json", 503, "127.0.0.1 answered 503 Service Unavailable: try again later"),
        (WEIGHTS, 410, "is downloaded in part, and 127.0.0.1 answered 410 Gone: the same command"),
    ],
)
def test_what_the_hub_answers_is_not_called_unreachable(
    online: FakeHub, path: str, code: int, words: str
) -> None:
    online.add(NAME, TARGET_FILES)
    online.refusals[path] = [(code, {})]
    with pytest.raises(ModelNotFoundError) as caught:
        snapshot(NAME)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    snapshot(NAME)
    assert folder_files(online.cache.snapshot(NAME)) == needed(TARGET_FILES)


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:9", "socks://127.0.0.1:9"])
def test_a_proxy_that_cannot_be_used_is_one_line(
    online: FakeHub, monkeypatch: pytest.MonkeyPatch, proxy: str
) -> None:
    online.add(NAME, TARGET_FILES)
    with monkeypatch.context() as changed:
        changed.setenv("ALL_PROXY", proxy)
        changed.setenv("NO_PROXY", "")
        close_session()  # it reads the environment once
        with pytest.raises(MgmError, match=r"^the proxy in the environment cannot be used: .+"):
            find_pair(NAME, None)
    close_session()
    find_pair(NAME, None)


def test_a_killed_download_continues_with_what_it_had(online: FakeHub) -> None:
    online.add(NAME, TARGET_FILES)
    online.stall[WEIGHTS] = 500_000
    code = f"from mlx_gemma_mtp.files.download import snapshot; snapshot({NAME!r})"
    process = subprocess.Popen([sys.executable, "-c", code], env=online.environment)
    part = next(file.part for file in look_up(NAME).files if file.path == WEIGHTS)
    assert online.stalled.wait(60)
    while part.stat().st_size < 500_000:
        time.sleep(0.01)
    process.kill()
    process.wait(60)
    online.stall.clear()
    snapshot(NAME)
    assert online.ranges == [f"{WEIGHTS} bytes=0-", f"{WEIGHTS} bytes=500000-"]
    assert folder_files(online.cache.snapshot(NAME)) == needed(TARGET_FILES)


def test_a_file_that_is_refused_ends_the_download_while_others_still_come(online: FakeHub) -> None:
    online.add(NAME, TARGET_FILES | {"model-2.safetensors": weights(5000)})
    online.stall[WEIGHTS] = 500_000
    online.refusals["model-2.safetensors"] = [(410, {})]
    start = time.monotonic()
    with pytest.raises(ModelNotFoundError, match="410 Gone"):
        snapshot(NAME)
    assert time.monotonic() - start < 5
    online.resume.set()


def refuse(*_: object, **__: object) -> None:
    raise OSError(errno.ENOTSUP, "not on this disk")


def test_on_a_disk_without_links_weights_are_kept_once(
    online: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    online.add(NAME, TARGET_FILES)
    monkeypatch.setattr(os, "symlink", refuse)
    monkeypatch.setattr(client, "_are_symlinks_supported_in_dir", {})
    for requested in (True, False):
        with warnings.catch_warnings(action="ignore"):  # of the client, on its first look
            folder = find_pair(NAME, None)[0]
        assert folder_files(folder) == needed(TARGET_FILES)
        assert not any(path.is_symlink() for path in folder.iterdir())
        assert bool(online.requests) == requested
        online.requests.clear()
    large = [path for path in online.cache.root.rglob("*") if path.stat().st_size > 10**6]
    assert [path.name for path in large if path.is_file()] == [WEIGHTS]


def test_on_a_disk_without_locks_a_download_works(
    online: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    online.add(NAME, TARGET_FILES)
    monkeypatch.setattr(fcntl, "flock", no_locks)
    snapshot(NAME)
    assert folder_files(online.cache.snapshot(NAME)) == needed(TARGET_FILES)


def test_a_cached_model_loads_although_the_cache_cannot_be_written_to(online: FakeHub) -> None:
    files = {name: body for name, body in TARGET_FILES.items() if name != "generation_config.json"}
    online.add(NAME, TARGET_FILES)
    cached = online.cache.add(NAME, needed(files))
    (online.cache.root / ".locks").write_text("no folder can be made here")
    assert hub.may_lack_files(cached)
    assert complete(NAME, cached) == cached


def test_when_the_hub_has_a_newer_version_the_part_of_the_old_one_is_not_mixed_into_it(
    online: FakeHub,
) -> None:
    online.add(NAME, TARGET_FILES)
    online.refusals[WEIGHTS] = [(410, {})]
    with pytest.raises(ModelNotFoundError):
        snapshot(NAME)
    newer = TARGET_FILES | {WEIGHTS: TARGET_FILES[WEIGHTS][:-1] + b"!"}
    online.add(NAME, newer, NEWER)
    assert snapshot(NAME) == online.cache.snapshot(NAME, NEWER)
    assert folder_files(Path(online.cache.snapshot(NAME, NEWER))) == needed(newer)
