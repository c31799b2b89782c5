"""`mgm pull` against a fake Hub."""

import json
import os
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
from huggingface_hub import constants
from typer.testing import CliRunner, Result

from helpers.fake_hub import (
    COMMIT,
    DRAFTER,
    DRAFTER_FILES,
    NAME,
    SECONDS,
    TARGET_FILES,
    FakeHub,
    Files,
    Machine,
    hub_for_this_process,  # noqa: F401 - the fixture `online`
    machine_with_a_hub,  # noqa: F401 - the fixture `machine`
    model_files,
    needed,
    weights,
)
from mlx_gemma_mtp import cli
from mlx_gemma_mtp.errors import MgmError
from mlx_gemma_mtp.files import hub

pytestmark = pytest.mark.slow

OLD, NEW = COMMIT, "fedcba98" * 5
TWO_FILES = TARGET_FILES | {
    "model.safetensors.index.json": json.dumps(
        {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    ).encode(),
    "model-1.safetensors": weights(400_000),
    "model-2.safetensors": weights(300_000),
}
del TWO_FILES["model.safetensors"]


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, ["pull", *arguments])


def total(files: Files) -> int:
    return sum(len(body) for body in needed(files).values())


def test_pull_downloads_the_pair_and_only_the_files_that_are_needed(machine: Machine) -> None:
    machine.server.add(NAME, TARGET_FILES)
    machine.server.add(DRAFTER, DRAFTER_FILES)
    machine.server.add("google/other", TARGET_FILES)

    done = machine.mgm("pull", NAME, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert re.search(rf"^{NAME} +5\.\d kB, 5\.\d kB to download$", done.stdout, re.MULTILINE)
    assert re.search(rf"^{DRAFTER} +1\.\d kB, 1\.\d kB to", done.stdout, re.MULTILINE)
    assert done.stderr == ""  # no bars
    assert machine.server.fetched() == set()
    assert not machine.cache.root.exists()

    done = machine.mgm("pull", NAME)
    assert done.returncode == 0, done.stderr
    folders = [machine.cache.snapshot(name) for name in (NAME, DRAFTER)]
    assert done.stdout.splitlines() == [str(folder) for folder in folders]
    assert len(done.stderr.splitlines()) == 3  # two sizes and the free space: no bars
    assert machine.files(NAME) == needed(TARGET_FILES)
    assert machine.files(DRAFTER) == needed(DRAFTER_FILES)
    assert machine.server.fetched() == {"config.json", "model.safetensors"}

    abandoned, coming = (
        machine.cache.repository(NAME) / "blobs" / f"{name}.incomplete"
        for name in ("abc.00000001", "abc.00000002")
    )
    for path, age in ((abandoned, hub.ABANDONED_SECONDS + 60), (coming, 60)):
        path.write_bytes(b"part")
        os.utime(path, times=(time.time() - age,) * 2)
    done = machine.mgm("pull", NAME)
    assert done.returncode == 0
    assert done.stderr.count("in the cache") == 2
    assert machine.server.fetched() == set()
    assert (abandoned.exists(), coming.exists()) == (False, True)

    listed = json.loads(machine.mgm("list", "--json").stdout)
    assert machine.server.requests == []
    assert [model["name"] for model in listed["models"]] == ["demo", NAME]
    assert listed["models"][1]["drafter"]["name"] == DRAFTER


def test_pull_takes_the_drafter_that_exists_or_a_named_one_or_none(online: FakeHub) -> None:
    def planned(*options: str, name: str = NAME) -> list[str]:
        result = run(name, *options, "--dry-run")
        assert result.exit_code == 0, result.output
        missing = f"no drafter: {name}-assistant does not exist"
        assert (missing in result.stderr) == (not options and name != DRAFTER and not there)
        return re.findall(r"^(\S+) +[\d.]+ kB, ", result.stdout, re.MULTILINE)

    there = False
    online.add(NAME, TARGET_FILES)
    online.add("org/other", DRAFTER_FILES)
    assert planned() == [NAME]
    assert planned("--drafter", "org/other") == [NAME, "org/other"]
    there = True
    online.add(DRAFTER, DRAFTER_FILES)
    assert planned() == [NAME, DRAFTER]
    assert planned("--drafter", "none") == [NAME]
    assert planned(name=DRAFTER) == [DRAFTER]
    online.add(NAME, TARGET_FILES | {"drafter/config.json": DRAFTER_FILES["config.json"]})
    assert planned() == [NAME]


def test_a_file_that_is_cut_short_is_resumed(machine: Machine) -> None:
    chunk = constants.DOWNLOAD_CHUNK_SIZE  # the client writes nothing smaller
    files = TARGET_FILES | {"model.safetensors": weights(chunk // 4, b"12345")}
    machine.server.add(NAME, files)
    machine.server.cut["model.safetensors"] = chunk + 1000
    done = machine.mgm("pull", NAME)
    assert done.returncode == 0, done.stderr
    assert machine.server.ranges == [f"model.safetensors bytes={chunk}-"]
    assert machine.files(NAME) == needed(files)


def test_ctrl_c_in_an_update_ends_at_once_and_keeps_the_old_version_and_complete_files(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(machine.cache.root))
    machine.server.add(NAME, TARGET_FILES, OLD)
    assert machine.mgm("pull", NAME).returncode == 0
    machine.server.add(NAME, TWO_FILES, NEW)
    machine.server.stall["model-2.safetensors"] = 100_000
    process = machine.start("pull", NAME)
    assert machine.server.stalled.wait(SECONDS)
    blobs = machine.cache.repository(NAME) / "blobs"
    complete = needed(TWO_FILES).keys() - {"model-2.safetensors"}
    deadline = time.monotonic() + SECONDS
    while machine.files(NAME, NEW).keys() != complete or not list(blobs.glob("*.incomplete")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=5)
    assert process.returncode == 130
    assert out == ""
    *sizes, line = err.splitlines()
    assert line.startswith("mgm: stopped; ")
    assert len(sizes) == 3
    assert list(blobs.glob("*.incomplete")) == []
    assert hub.from_cache(NAME) == machine.cache.snapshot(NAME, OLD)

    machine.server.stall.clear()
    done = machine.mgm("pull", NAME)
    assert done.returncode == 0, done.stderr
    assert "300.1 kB to download" in done.stderr
    assert machine.server.fetched() == {"model-2.safetensors"}
    assert machine.files(NAME, NEW) == needed(TWO_FILES)
    assert hub.from_cache(NAME) == machine.cache.snapshot(NAME, NEW)


def test_a_revision_is_pulled_next_to_main(machine: Machine) -> None:
    machine.server.add(NAME, TARGET_FILES, NEW)
    machine.server.add(NAME, TWO_FILES, OLD, revision="v1.0")
    done = machine.mgm("pull", NAME, "--revision", "v1.0")
    assert done.stdout.splitlines() == [str(machine.cache.snapshot(NAME, OLD))]
    assert not (machine.cache.repository(NAME) / "refs" / "main").exists()
    assert f" {NAME}@v1.0 " in machine.mgm("list").stdout


def test_a_token_gives_access_to_a_gated_model(machine: Machine) -> None:
    machine.server.add(NAME, TARGET_FILES)
    machine.server.token = "hf_secret"
    line = machine.refused(3, "pull", NAME, "--drafter", "none")
    assert "terms" in line
    assert "HF_TOKEN" in line
    assert machine.mgm("pull", NAME, HF_TOKEN="hf_secret").returncode == 0
    assert machine.files(NAME) == needed(TARGET_FILES)


def test_a_pull_that_is_refused_is_one_line_and_an_exit_code(
    online: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(exit_code: int, *arguments: str) -> str:
        result = run(*arguments)
        assert isinstance(result.exception, MgmError), result.output
        assert result.exception.exit_code == exit_code
        assert "\n" not in str(result.exception)
        assert result.output == ""
        return str(result.exception)

    online.add("org/llama", model_files({"model_type": "llama"}))
    online.add("org/gguf", {"config.json": b"{}", "model.gguf": b"w"})
    online.add("org/here", TARGET_FILES)
    assert "no Hub repository" in refused(3, NAME)
    assert "llama" in refused(1, "org/llama")
    assert "safetensors" in refused(1, "org/gguf")
    assert "no revision 'v2'" in refused(3, "org/here", "--revision", "v2")
    assert "--revision" in refused(2, "org/here@v1.0", "--revision", "v1.0")
    assert "demo" in refused(2, "demo")
    assert "." in refused(2, ".")
    assert "google/gemma" in refused(3, "gemma")
    assert "did you mean google/gemma-4-E4B-it?" in refused(3, "e4b")
    assert "GGUF" in refused(3, "model.gguf")
    assert online.fetched() == set()
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "cannot be reached" in refused(3, "org/here")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in refused(3, "org/here")
    assert not Path(constants.HF_HUB_CACHE).exists()


def test_a_complete_cached_model_is_pulled_without_the_hub(machine: Machine) -> None:
    for name, files in ((NAME, TARGET_FILES), (DRAFTER, DRAFTER_FILES)):
        machine.cache.add_files(name, needed(files))
    done = machine.mgm("pull", NAME, HF_HUB_OFFLINE="1")
    assert done.returncode == 0
    folders = [str(machine.cache.snapshot(name)) for name in (NAME, DRAFTER)]
    assert done.stdout.splitlines() == folders
    assert "not compared with the Hub" in done.stderr
    assert machine.server.requests == []


def test_a_full_disk_is_refused_before_anything_is_downloaded(
    online: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    online.add(NAME, TARGET_FILES)
    online.add(DRAFTER, DRAFTER_FILES)
    missing = total(TARGET_FILES) + total(DRAFTER_FILES)

    def leave(free: int) -> None:
        disk = shutil._ntuple_diskusage(10**9, 10**9 - free, free)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: disk)

    leave(missing - 1)
    result = run(NAME)
    assert isinstance(result.exception, MgmError)
    assert result.exception.exit_code == 1
    for word in ("kB to download", "kB free", constants.HF_HUB_CACHE):
        assert word in str(result.exception)
    assert online.fetched() == set()
    leave(missing)
    assert run(NAME, "--dry-run").exit_code == 0
