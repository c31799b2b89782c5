"""`mgm pull` against a fake Hub."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from huggingface_hub import constants

from helpers.command import MGM, Done, Here, assert_one_line, assert_plain
from helpers.fake_hub import (
    COMMIT,
    DRAFTER,
    DRAFTER_FILES,
    NAME,
    NEWER,
    TARGET_CONFIG,
    TARGET_FILES,
    FakeHub,
    etag,
    folder_files,
    hub_for_this_process,  # noqa: F401 - the fixture `online`
    model_files,
    needed,
)
from helpers.weight_files import real_weights, weights
from mlx_gemma_mtp.cli.download import offer_drafter
from mlx_gemma_mtp.files import hub
from mlx_gemma_mtp.files.download import ABANDONED_SECONDS
from mlx_gemma_mtp.files.find import find_pair

pytestmark = pytest.mark.slow

SECONDS = 60  # longer than any of this takes on a busy machine
PAIR = {NAME: TARGET_FILES, DRAFTER: DRAFTER_FILES}
INDEX = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
TWO_SHARDS = {
    "config.json": TARGET_FILES["config.json"],
    "tokenizer.json": b"{}",
    "model.safetensors.index.json": json.dumps(INDEX).encode(),
    "model-1.safetensors": weights(400_000),
    "model-2.safetensors": weights(300_000),
}


@pytest.fixture
def pull(online: FakeHub, mgm_here: Here) -> Here:
    """`mgm pull`, which must succeed. The Hub's requests are then those of this run."""

    def run(*arguments: str) -> Done:
        online.requests.clear()
        done = mgm_here("pull", *arguments)
        assert_plain(done)
        assert done.returncode == 0, done.stderr
        return done

    return run


def test_pull_downloads_the_pair_and_only_the_files_that_are_needed(
    online: FakeHub, pull: Here, mgm_here: Here
) -> None:
    for name, files in (PAIR | {"google/other": TARGET_FILES}).items():
        online.add(name, files)

    done = pull(NAME, "--dry-run")
    shown = rf"{NAME} +1\.5 MB\n{DRAFTER} +1\.0 MB\nDownload: 2\.6 MB; .* free in .*\nMemory: .*\n"
    assert re.fullmatch(shown, done.stdout)
    assert done.stderr == ""  # no bars
    assert online.fetched() == {"config.json"}
    assert not online.cache.root.exists()

    done = pull(NAME)
    assert done.stdout.splitlines() == [str(online.cache.snapshot(name)) for name in PAIR]
    *plan, measured, last = done.stderr.splitlines()
    assert len(plan) == 4  # no bars
    assert re.fullmatch(r"2\.6 MB downloaded in 0:\d\d \(.*/s\)", measured)
    assert last == f"Next: mgm chat {NAME}"
    for name, files in PAIR.items():
        assert folder_files(online.cache.snapshot(name)) == needed(files)
    assert online.fetched() == needed(TARGET_FILES).keys()

    blobs = online.cache.repository(NAME) / "blobs"
    abandoned, coming = blobs / "abc.00000001.incomplete", blobs / "abc.00000002.incomplete"
    for path, age in ((abandoned, ABANDONED_SECONDS + 60), (coming, 60)):
        path.write_bytes(b"part")
        os.utime(path, times=(time.time() - age,) * 2)
    done = pull(NAME)
    assert done.stderr.count(", in the cache\n") == 2
    assert online.fetched() == set()
    assert (abandoned.exists(), coming.exists()) == (False, True)

    online.requests.clear()
    listed = json.loads(mgm_here("list", "--json").stdout)
    assert online.requests == []
    assert [model["name"] for model in listed["models"]] == ["demo", NAME]
    assert listed["models"][1]["drafter"]["name"] == DRAFTER


def test_pull_takes_the_drafter_that_exists_or_a_named_one_or_none(
    online: FakeHub, pull: Here
) -> None:
    def planned(*arguments: str) -> list[str]:
        done = pull(*arguments, "--dry-run")
        without = f"The Hub has no drafter for {NAME}"
        assert (without in done.stderr) == (arguments == (NAME,) and not there)
        return re.findall(r"^(\S+/\S+) +[\d.]+ MB$", done.stdout, re.MULTILINE)

    there = False
    online.add(NAME, TARGET_FILES)
    online.add("org/other", DRAFTER_FILES)
    assert planned(NAME) == [NAME]
    assert planned(NAME, "--drafter", "org/other") == [NAME, "org/other"]
    there = True
    online.add(DRAFTER, DRAFTER_FILES)
    assert planned(NAME) == [NAME, DRAFTER]
    assert planned(NAME, "--drafter", "none") == [NAME]
    assert planned(DRAFTER) == [DRAFTER]
    assert "Next" not in pull(DRAFTER).stderr
    online.add(NAME, TARGET_FILES | {"drafter/config.json": DRAFTER_FILES["config.json"]})
    assert planned(NAME) == [NAME]


def test_a_file_that_is_cut_short_is_resumed(online: FakeHub, pull: Here) -> None:
    online.add(NAME, TARGET_FILES)
    online.cut["model.safetensors"] = 1_000_000
    pull(NAME)
    assert online.ranges == [f"model.safetensors bytes={start}-" for start in (0, 1_000_000)]
    assert folder_files(online.cache.snapshot(NAME)) == needed(TARGET_FILES)


def test_an_interrupted_first_download_is_listed_and_can_be_removed(
    online: FakeHub, mgm_here: Here
) -> None:
    start = real_weights(TARGET_CONFIG, header_only=True)
    online.add(NAME, TARGET_FILES | {"model.safetensors": start})
    online.sizes["model.safetensors"] = 10**6  # of which the server has the start only
    done = mgm_here("pull", NAME)
    assert done.returncode == 3
    assert "downloaded in part" in done.stderr
    shown = mgm_here("list").stdout
    assert re.search(rf"^{NAME}: incomplete \(.* missing\): mgm pull {NAME} ", shown, re.MULTILINE)
    assert mgm_here("rm", NAME, "--yes").returncode == 0
    assert not online.cache.repository(NAME).exists()


def test_ctrl_c_in_an_update_ends_at_once_and_keeps_the_old_version_and_complete_files(
    online: FakeHub, pull: Here
) -> None:
    online.add(NAME, TARGET_FILES)
    pull(NAME)
    online.add(NAME, TWO_SHARDS, NEWER)
    online.stall["model-2.safetensors"] = 100_000
    process = subprocess.Popen(
        [*MGM, "pull", NAME, "--yes"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=online.environment,
    )
    assert online.stalled.wait(SECONDS)
    blobs, new = online.cache.repository(NAME) / "blobs", online.cache.snapshot(NAME, NEWER)
    deadline = time.monotonic() + SECONDS
    first = blobs / etag(TWO_SHARDS["model-1.safetensors"])
    second = blobs / f"{etag(TWO_SHARDS['model-2.safetensors'])}.incomplete"
    while not first.exists() or second.stat().st_size < 100_000:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=5)
    assert (process.returncode, out) == (130, "")
    line = err.splitlines()[-1]
    assert line == "mgm: stopped; what is downloaded is kept, and the same command continues it"
    assert hub.from_cache(NAME) == online.cache.snapshot(NAME)

    online.stall.clear()
    online.ranges.clear()
    done = pull(NAME, "--yes")
    assert "Download: 200.2 kB;" in done.stderr
    assert online.fetched() >= {"model-2.safetensors"}
    assert online.ranges == ["model-2.safetensors bytes=100000-"]
    assert folder_files(new) == TWO_SHARDS
    assert hub.from_cache(NAME) == new


def test_a_revision_is_pulled_next_to_main(online: FakeHub, pull: Here, mgm_here: Here) -> None:
    online.add(NAME, TARGET_FILES, NEWER)
    online.add(NAME, TWO_SHARDS, COMMIT, revision="v1.0")
    assert pull(NAME, "--revision", "v1.0", "--yes").stdout == f"{online.cache.snapshot(NAME)}\n"
    assert not (online.cache.repository(NAME) / "refs" / "main").exists()
    assert f" {NAME}@v1.0 " in mgm_here("list").stdout


def test_a_token_gives_access_to_a_gated_model(
    online: FakeHub, pull: Here, mgm_here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    online.add(NAME, TARGET_FILES)
    online.token = "hf_secret"
    assert_one_line(mgm_here("pull", NAME), 3, "then set HF_TOKEN")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    pull(NAME)
    assert folder_files(online.cache.snapshot(NAME)) == needed(TARGET_FILES)


def test_a_pull_that_is_refused_is_one_line_and_an_exit_code(
    online: FakeHub, mgm_here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    online.add("org/llama", model_files({"model_type": "llama"}))
    online.add("org/bare", {"config.json": b"{}"})
    online.add("org/gguf", {"config.json": b"{}", "model.gguf": b"w"})
    online.add("org/here", TARGET_FILES)
    for exit_code, word, *arguments in (
        (3, "no Hub repository", NAME),
        (1, "llama", "org/llama"),
        (1, "safetensors", "org/bare"),
        (3, "gguf weights", "org/gguf"),
        (3, "no revision 'v2'", "org/here", "--revision", "v2"),
        (2, "--revision", "org/here@v1.0", "--revision", "v1.0"),
        (2, "demo", "demo"),
        (2, ".", "."),
        (3, "google/gemma", "gemma"),
        (3, "GGUF", "model.gguf"),
    ):
        assert_one_line(mgm_here("pull", *map(str, arguments)), int(exit_code), str(word))
        assert online.fetched() == set()
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert_one_line(mgm_here("pull", "org/here"), 3, "cannot be reached")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert_one_line(mgm_here("pull", "org/here"), 3, "HF_HUB_OFFLINE is set")
    assert not Path(constants.HF_HUB_CACHE).exists()


def test_a_complete_cached_model_is_pulled_without_the_hub(
    online: FakeHub, pull: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, files in PAIR.items():
        online.cache.add(name, needed(files))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    done = pull(NAME)
    assert done.stdout.splitlines() == [str(online.cache.snapshot(name)) for name in PAIR]
    assert "not compared with the Hub" in done.stderr
    assert online.requests == []


def test_a_full_disk_is_refused_before_anything_is_downloaded(
    online: FakeHub, pull: Here, mgm_here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, files in PAIR.items():
        online.add(name, files)
    missing = sum(len(body) for files in PAIR.values() for body in needed(files).values())

    def leave(free: int) -> None:
        disk = shutil._ntuple_diskusage(10**9, 10**9 - free, free)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: disk)

    leave(missing - 1)
    done = mgm_here("pull", NAME)
    assert done.returncode == 1
    line = done.stderr.splitlines()[-1]
    assert re.fullmatch(rf"mgm: .* MB to download, .*{online.cache.root} has .* MB free.*", line)
    assert online.fetched() == {"config.json"}
    leave(missing)
    pull(NAME, "--dry-run")


def test_the_drafter_of_a_cached_target_is_named_or_downloaded_alone(
    online: FakeHub, capsys: pytest.CaptureFixture[str]
) -> None:
    target, drafter = "me/medicine", "google/gemma-4-E4B-it-assistant"
    online.cache.add(target, TARGET_FILES)
    online.add(drafter, DRAFTER_FILES)
    offer_drafter(target)
    assert capsys.readouterr().err == f"No drafter here: mgm pull {drafter} (158.0 MB)\n"
    assert online.requests == []
    offer_drafter(target, yes=True)
    assert find_pair(target, "auto") == (
        online.cache.snapshot(target),
        online.cache.snapshot(drafter),
    )
    assert not any(target in path for path in online.requests)
    capsys.readouterr()
    online.requests.clear()
    offer_drafter(target)
    offer_drafter("demo")
    assert (capsys.readouterr().err, online.requests) == ("", [])


def test_a_drafter_that_cannot_be_downloaded_is_a_line_and_no_error(
    online: FakeHub, capsys: pytest.CaptureFixture[str]
) -> None:
    online.cache.add("me/medicine", TARGET_FILES)
    offer_drafter("me/medicine", yes=True)
    assert "mgm: decoding without a drafter: no folder and no Hub" in capsys.readouterr().err


def test_pull_takes_a_drafter_that_fits_from_the_cache_before_any_other(
    online: FakeHub, pull: Here
) -> None:
    online.add("me/medicine", TARGET_FILES)
    online.add("google/gemma-4-E4B-it-assistant", DRAFTER_FILES)
    cached = online.cache.add("mlx-community/gemma-4-E4B-it-assistant-8bit", DRAFTER_FILES)
    online.add("mlx-community/gemma-4-E4B-it-assistant-8bit", DRAFTER_FILES)
    done = pull("me/medicine")
    assert done.stdout.splitlines() == [str(online.cache.snapshot("me/medicine")), str(cached)]
    shutil.rmtree(online.cache.root)
    done = pull("me/medicine")
    assert "gemma-4-E4B-it-assistant" in done.stdout.splitlines()[1]
