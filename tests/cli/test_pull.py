"""`mgm pull`, `mgm list` and `mgm rm`, against a Hub and a cache of our own."""

import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants
from typer.testing import CliRunner

from helpers.fake_hub import (
    COMMIT,
    DRAFTER_CONFIG,
    NAME,
    TARGET_CONFIG,
    FakeHub,
    HubCache,
    model_files,
    offline_cache,
    weights,
)
from mlx_gemma_mtp import cli
from mlx_gemma_mtp.errors import MgmError, ModelNotFoundError, UsageError
from mlx_gemma_mtp.files import download, hub, removal
from mlx_gemma_mtp.files import hub_cache as cached

MGM = [
    sys.executable,
    "-c",
    "import sys; sys.modules['torch'] = None; sys.argv[0] = 'mgm'\n"
    "from mlx_gemma_mtp.cli import main; main()",
]
SECONDS = 60  # longer than any of this takes on a busy machine
DRAFTER = f"{NAME}-assistant"
OLD, NEW = COMMIT, "fedcba98" * 5
SMALL_DISK = shutil._ntuple_diskusage(10**9, 10**9 - 5000, 5000)

Done = subprocess.CompletedProcess[str]
Files = dict[str, bytes]
TARGET_FILES = model_files(TARGET_CONFIG)
DRAFTER_FILES = model_files(DRAFTER_CONFIG, 300)
TWO_FILES = TARGET_FILES | {
    "model.safetensors.index.json": json.dumps(
        {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    ).encode(),
    "model-1.safetensors": weights(400_000),
    "model-2.safetensors": weights(300_000),
}
del TWO_FILES["model.safetensors"]


class Machine:
    """A Hub, and a machine whose cache is empty at first."""

    def __init__(self, server: FakeHub, environment: dict[str, str], home: Path) -> None:
        self.server = server
        self.environment = environment
        self.cache = HubCache(home / "hub")

    def start(self, *arguments: str, **variables: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*MGM, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.environment | variables,
        )

    def mgm(self, *arguments: str, **variables: str) -> Done:
        """Run a command to its end; the Hub's requests are then those of this run."""
        self.server.requests.clear()
        process = self.start(*arguments, **variables)
        out, err = process.communicate(timeout=SECONDS)
        assert "Traceback" not in err
        assert "\x1b" not in out + err
        return Done(process.args, process.returncode, out, err)

    def refused(self, exit_code: int, *arguments: str, **variables: str) -> str:
        """What the one line of a command says that ends like this."""
        done = self.mgm(*arguments, **variables)
        assert (done.returncode, done.stdout) == (exit_code, ""), done.stderr
        *sizes, line = done.stderr.splitlines()
        assert line.startswith("mgm: ")
        assert not any(one.startswith("mgm: ") for one in sizes)
        return line

    def files(self, name: str, commit: str = COMMIT) -> Files:
        snapshot = self.cache.snapshot(name, commit)
        return {
            str(path.relative_to(snapshot)): path.read_bytes()
            for path in snapshot.rglob("*")
            if path.is_file()
        }


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    server = FakeHub()
    with server.running(tmp_path / "home") as environment:
        yield Machine(server, environment, tmp_path / "home")


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HubCache:
    return offline_cache(tmp_path, monkeypatch)


@pytest.fixture
def online(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A Hub for this process, as far as nothing is downloaded; an empty cache."""
    server = FakeHub()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with server.running(tmp_path):
        yield server


def needed(files: Files) -> Files:
    return {path: body for path, body in files.items() if path.endswith(("json", "safetensors"))}


# pull


def test_pull_brings_the_pair_and_nothing_that_is_not_needed(machine: Machine) -> None:
    machine.server.add(NAME, TARGET_FILES)
    machine.server.add(DRAFTER, DRAFTER_FILES)
    machine.server.add("google/other", TARGET_FILES)

    done = machine.mgm("pull", NAME, "--dry-run")
    assert done.returncode == 0
    assert re.search(rf"^{NAME} +5\.\d kB, 5\.\d kB to download$", done.stdout, re.MULTILINE)
    assert re.search(rf"^{DRAFTER} +0\.\d kB, 0\.\d kB to", done.stdout, re.MULTILINE)
    assert machine.server.fetched() == set()
    assert not machine.cache.root.exists()

    done = machine.mgm("pull", NAME)
    assert done.returncode == 0, done.stderr
    folders = [machine.cache.snapshot(name) for name in (NAME, DRAFTER)]
    assert done.stdout.splitlines() == [str(folder) for folder in folders]
    assert len(done.stderr.splitlines()) == 3  # two sizes and the room there is: no bars
    assert machine.files(NAME) == needed(TARGET_FILES)
    assert machine.files(DRAFTER) == needed(DRAFTER_FILES)
    assert machine.server.fetched() == {"config.json", "model.safetensors"}

    abandoned, coming = (
        machine.cache.repository(NAME) / "blobs" / f"{name}.incomplete"
        for name in ("abc.00000001", "abc.00000002")
    )
    for path, age in ((abandoned, download.ABANDONED_SECONDS + 60), (coming, 60)):
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


def test_the_plan_has_the_drafter_that_there_is_or_a_named_one_or_none(
    online: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    def planned(*options: str, name: str = NAME) -> list[str]:
        result = CliRunner().invoke(cli.app, ["pull", name, *options, "--dry-run"])
        assert result.exit_code == 0, result.output
        alone = f"there is no {name}-assistant"
        assert (alone in result.stderr) == (not options and name != DRAFTER and not drafter_there)
        return re.findall(r"^(\S+) +[\d.]+ kB, ", result.stdout, re.MULTILINE)

    drafter_there = False
    online.add(NAME, TARGET_FILES)
    online.add("org/other", DRAFTER_FILES)
    assert planned() == [NAME]
    assert planned("--drafter", "org/other") == [NAME, "org/other"]
    drafter_there = True
    online.add(DRAFTER, DRAFTER_FILES)
    assert planned() == [NAME, DRAFTER]
    assert planned("--drafter", "none") == [NAME]
    assert planned(name=DRAFTER) == [DRAFTER]
    inside = TARGET_FILES | {"drafter/config.json": DRAFTER_FILES["config.json"]}
    online.add(NAME, inside)
    assert planned() == [NAME]


def test_a_file_that_is_cut_short_goes_on_where_it_ended(machine: Machine) -> None:
    chunk = constants.DOWNLOAD_CHUNK_SIZE  # the client writes nothing smaller
    files = TARGET_FILES | {"model.safetensors": weights(chunk // 4, b"12345")}
    machine.server.add(NAME, files)
    machine.server.cut["model.safetensors"] = chunk + 1000
    done = machine.mgm("pull", NAME)
    assert done.returncode == 0, done.stderr
    assert machine.server.ranges == [f"model.safetensors bytes={chunk}-"]
    assert machine.files(NAME) == needed(files)


def test_ctrl_c_in_an_update_ends_at_once_and_keeps_the_old_one_and_whole_files(
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
    whole = needed(TWO_FILES).keys() - {"model-2.safetensors"}
    deadline = time.monotonic() + SECONDS
    while machine.files(NAME, NEW).keys() != whole or not list(blobs.glob("*.incomplete")):
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


def test_a_revision_is_pulled_beside_main(machine: Machine) -> None:
    machine.server.add(NAME, TARGET_FILES, NEW)
    machine.server.add(NAME, TWO_FILES, OLD, revision="v1.0")
    done = machine.mgm("pull", NAME, "--revision", "v1.0")
    assert done.stdout.splitlines() == [str(machine.cache.snapshot(NAME, OLD))]
    assert not (machine.cache.repository(NAME) / "refs" / "main").exists()
    assert f"\n{NAME}@v1.0 " in machine.mgm("list").stdout


def test_the_token_opens_what_is_gated(machine: Machine) -> None:
    machine.server.add(NAME, TARGET_FILES)
    machine.server.token = "hf_secret"
    line = machine.refused(3, "pull", NAME, "--drafter", "none")
    assert "terms" in line
    assert "HF_TOKEN" in line
    assert machine.mgm("pull", NAME, HF_TOKEN="hf_secret").returncode == 0
    assert machine.files(NAME) == needed(TARGET_FILES)


def test_what_cannot_be_pulled_is_one_line_and_an_exit_code(
    online: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(exit_code: int, *arguments: str) -> str:
        result = CliRunner().invoke(cli.app, ["pull", *arguments])
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
    assert online.fetched() == set()
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "cannot be reached" in refused(3, "org/here")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in refused(3, "org/here")
    assert not Path(constants.HF_HUB_CACHE).exists()


def test_what_is_whole_in_the_cache_is_pulled_without_the_hub(
    machine: Machine,
) -> None:
    for name, files in ((NAME, TARGET_FILES), (DRAFTER, DRAFTER_FILES)):
        machine.cache.add_files(name, needed(files))
    done = machine.mgm("pull", NAME, HF_HUB_OFFLINE="1")
    assert done.returncode == 0
    folders = [str(machine.cache.snapshot(name)) for name in (NAME, DRAFTER)]
    assert done.stdout.splitlines() == folders
    assert "not compared with the Hub" in done.stderr
    assert machine.server.requests == []


def test_a_full_disk_is_refused_before_anything_is_fetched(
    hub_cache: HubCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = [
        download.Download(NAME, "main", COMMIT, 9000, 4000, alone=False),
        download.Download(DRAFTER, "main", COMMIT, 1500, 1001, alone=True),
    ]
    fetched = []
    monkeypatch.setattr(download, "plan", lambda *_: plan)
    monkeypatch.setattr(download, "fetch", lambda one: fetched.append(one) or hub_cache.root)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SMALL_DISK)
    result = CliRunner().invoke(cli.app, ["pull", NAME])
    assert isinstance(result.exception, MgmError)
    assert result.exception.exit_code == 1
    for word in ("5.0 kB to download", "5.0 kB free", str(hub_cache.root)):
        assert word in str(result.exception)
    assert fetched == []
    plan[1] = plan[1]._replace(missing=1000)
    assert CliRunner().invoke(cli.app, ["pull", NAME]).exit_code == 0
    assert fetched == plan


# list


def test_the_list_has_each_target_with_its_drafter(hub_cache: HubCache) -> None:
    quantized = TARGET_CONFIG | {"quantization": {"bits": 4, "group_size": 64}}
    inside = TARGET_FILES | {
        f"drafter/{path}": body for path, body in needed(DRAFTER_FILES).items()
    }
    other = model_files(DRAFTER_CONFIG | {"backbone_hidden_size": 1536})
    hub_cache.add_files("a/pair", TARGET_FILES)
    hub_cache.add_files("a/pair-assistant", DRAFTER_FILES)
    hub_cache.add_files("b/alone", model_files(quantized))
    hub_cache.add_files("c/inside", inside)
    hub_cache.add_files("d/llama", model_files({"model_type": "llama"}))
    hub_cache.add_files("e/half", {"config.json": TARGET_FILES["config.json"]})
    hub_cache.add_files("f/lone-assistant", DRAFTER_FILES)
    hub_cache.add_files("g/mismatch", TARGET_FILES)
    hub_cache.add_files("g/mismatch-assistant", other)
    hub_cache.add_files("h/detached", TARGET_FILES, NEW, ref="")
    hub_cache.add_files("i/broken", model_files(TARGET_CONFIG | {"num_hidden_layers": 0}))

    found = {model.name: model for model in cached.models()}
    assert list(found) == [
        *("demo", "a/pair", "b/alone", "c/inside", "e/half", "f/lone-assistant", "g/mismatch"),
        *(f"h/detached@{NEW}", "i/broken"),
    ]
    pair = found["a/pair"]
    assert (pair.folder, pair.kind, pair.bits) == (hub_cache.snapshot("a/pair"), "E4B", 16)
    bodies = [*TARGET_FILES.values(), COMMIT]  # and refs/main
    assert pair.size_bytes == sum(len(body) for body in bodies)
    assert pair.last_used == pytest.approx(time.time(), abs=600)
    assert pair.problem is None
    assert pair.drafter is not None
    assert (pair.drafter.name, pair.drafter.problem) == ("a/pair-assistant", None)
    assert (found["b/alone"].bits, found["b/alone"].drafter) == (4, None)
    assert found["c/inside"].drafter is not None
    assert found["c/inside"].drafter.folder == hub_cache.snapshot("c/inside") / "drafter"
    assert "mgm pull e/half" in str(found["e/half"].problem)
    assert found["f/lone-assistant"].is_drafter
    assert found["g/mismatch"].drafter is not None
    assert "another model" in str(found["g/mismatch"].drafter.problem)
    assert "num_hidden_layers" in str(found["i/broken"].problem)
    for model in found.values():  # a name is one that finds the folder, and the same drafter
        if model.problem is None and not model.is_drafter:
            folder, drafter = hub.find_pair(model.name, "auto")
            assert folder == model.folder
            beside = model.drafter and model.drafter.folder.resolve()
            assert (drafter and drafter.resolve()) == beside
    assert hub_cache.network == []

    shown = CliRunner().invoke(cli.app, ["list"]).stdout
    assert re.search(r"^a/pair +E4B +16 +5\.\d kB +0\.\d kB +just now$", shown, re.MULTILINE)
    assert re.search(r"^b/alone +E4B +4 +5\.\d kB +none ", shown, re.MULTILINE)
    assert re.search(r"^e/half .*unusable", shown, re.MULTILINE)
    assert "e/half: it is incomplete" in shown
    assert re.search(r"^g/mismatch .* kB, unusable", shown, re.MULTILINE)


def no_cache(root: Path) -> None:
    root.rmdir()


def cache_is_a_file(root: Path) -> None:
    root.rmdir()
    root.write_text("")


def strange_things(root: Path) -> None:
    """All ways in which a cache has been seen to be odd, and some more."""
    cache = HubCache(root)
    (root / "models--file--file").write_text("")
    (root / "models--").mkdir()
    (root / "models--empty--empty").mkdir()
    (root / "models--one-word" / "snapshots" / OLD).mkdir(parents=True)
    (root / "models--a--..").mkdir()
    (root / "models--link--loop").symlink_to("models--link--loop")
    (root / ".locks").mkdir()
    (root / "version.txt").write_text("1")
    for name, reference in {"a/binary": b"\xff\xfe", "a/null": b"\0", "a/none": b"0" * 40}.items():
        cache.add_files(name, TARGET_FILES)
        (cache.repository(name) / "refs" / "main").write_bytes(reference)
    cache.add_files("a/folder", TARGET_FILES)
    (cache.repository("a/folder") / "refs" / "main").unlink()
    (cache.repository("a/folder") / "refs" / "main").mkdir()
    for name, config in {"b/text": b"hello", "b/list": b"[]", "b/latin": b'{"a": "\xff"}'}.items():
        cache.add_files(name, TARGET_FILES | {"config.json": config})
    odd = {"num_hidden_layers": "six"}, {"quantization": 4}, {"dtype": {}}, {"text_config": 3}
    for i, part in enumerate(odd):
        cache.add_files(f"c/odd{i}", model_files(TARGET_CONFIG | part))
    cache.add_files("d/target", TARGET_FILES)
    cache.add_files("d/target-assistant", TARGET_FILES)
    for blob in (cache.add_files("e/blobs", TARGET_FILES).parents[1] / "blobs").iterdir():
        if blob.stat().st_size >= 5000:
            blob.unlink()
    snapshots = cache.add_files("f/file", TARGET_FILES).parent
    (snapshots / "file").write_text("")


@pytest.mark.parametrize("spoil", [no_cache, cache_is_a_file, strange_things])
def test_no_cache_is_too_odd_for_the_list(
    hub_cache: HubCache, spoil: Callable[[Path], None]
) -> None:
    spoil(hub_cache.root)
    if hub_cache.root.is_dir():
        hub_cache.add_files(NAME, TARGET_FILES)
        hub_cache.add_files(DRAFTER, DRAFTER_FILES)
        assert [one.problem for one in cached.models() if one.name == NAME] == [None]
    assert cached.models()[0].name == "demo"
    for name in ("a/binary", "a/null", "a/none", "a/folder", "b/text", "e/blobs"):
        assert hub.from_cache(name) is None  # so it is downloaded
    result = CliRunner().invoke(cli.app, ["list", "--json"])
    assert result.exit_code == 0
    names = [model["name"] for model in json.loads(result.stdout)["models"]]
    assert (NAME in names) == hub_cache.root.is_dir()
    assert CliRunner().invoke(cli.app, ["list"]).exit_code == 0
    assert hub_cache.network == []


# rm


def test_rm_takes_the_pair_out_and_touches_nothing_else(hub_cache: HubCache) -> None:
    def bystanders() -> None:
        # The same commit, as a renamed repository has it, and names that begin alike.
        for name in ("google/renamed", f"{NAME}-2", f"{NAME}-assistant-2", "google/gemma-4-tiny"):
            hub_cache.add_files(name, TARGET_FILES)
        (hub_cache.root / "datasets--google--gemma-4-tiny-it").mkdir()
        (hub_cache.root / "models--odd--odd").mkdir()

    bystanders()
    others = hub_cache.tree()
    hub_cache.add_files(NAME, TARGET_FILES)
    hub_cache.add_files(NAME, TWO_FILES, NEW, ref="v2")
    hub_cache.add_files(DRAFTER, DRAFTER_FILES)
    part = hub_cache.repository(NAME) / "blobs" / "abc.01234567.incomplete"
    part.write_bytes(b"p" * 1000)

    sizes = {one.name: one.size_bytes for one in removal.removals(NAME)}
    bodies = {*TARGET_FILES.values(), *TWO_FILES.values()}
    assert sizes == {
        NAME: sum(len(body) for body in bodies) + 1000,
        DRAFTER: sum(len(body) for body in DRAFTER_FILES.values()),
    }
    result = CliRunner().invoke(cli.app, ["rm", NAME, "--yes"])
    assert result.exit_code == 0
    assert re.findall(r"^removed (\S+), [\d.]+ kB freed$", result.stdout, re.MULTILINE) == [*sizes]
    assert hub_cache.tree() == others
    assert not hub_cache.repository(NAME).exists()
    assert not hub_cache.repository(DRAFTER).exists()

    hub_cache.add_files(NAME, TARGET_FILES)
    hub_cache.add_files(DRAFTER, DRAFTER_FILES)
    with_target = hub_cache.tree()
    assert CliRunner().invoke(cli.app, ["rm", DRAFTER, "-y"]).exit_code == 0
    assert hub_cache.tree() == {
        path: body for path, body in with_target.items() if "tiny-it-assistant/" not in path
    }


def test_rm_also_removes_what_an_interrupted_download_left(hub_cache: HubCache) -> None:
    strange_things(hub_cache.root)
    blobs = hub_cache.repository(NAME) / "blobs"
    blobs.mkdir(parents=True)
    (blobs / "abc.incomplete").write_bytes(b"p" * 1000)
    [one] = removal.removals(NAME)
    assert one.size_bytes == 1000
    removal.remove(one)
    assert not hub_cache.repository(NAME).exists()
    for name in ("a/binary", "a/folder", "e/blobs", "f/file", "empty/empty"):
        for one in removal.removals(name):
            removal.remove(one)
        assert not hub_cache.repository(name).exists()


def test_rm_of_an_unknown_name_suggests_near_ones(hub_cache: HubCache) -> None:
    hub_cache.add_files(NAME, TARGET_FILES)
    before = hub_cache.tree()
    with pytest.raises(ModelNotFoundError, match=f"did you mean {NAME}"):
        removal.removals("google/gemma-4-tiny")
    with pytest.raises(ModelNotFoundError, match="mgm list"):
        removal.removals("qwen")
    for name in ("demo", str(hub_cache.root)):
        with pytest.raises(UsageError):
            removal.removals(name)
    assert hub_cache.tree() == before


def test_rm_says_in_one_line_that_it_cannot(
    hub_cache: HubCache, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    hub_cache.add_files(NAME, TARGET_FILES)

    def refuse(path: object, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(shutil, "rmtree", refuse)
    with pytest.raises(MgmError, match=r"cannot be removed .*Permission denied"):
        removal.remove(removal.removals(NAME)[0])
    assert capfd.readouterr() == ("", "")


def test_rm_asks_at_a_terminal_and_refuses_without_one(machine: Machine) -> None:
    machine.cache.add_files(NAME, TARGET_FILES)
    assert "--yes" in machine.refused(2, "rm", NAME)
    assert machine.cache.repository(NAME).exists()
    for answer, removed in (("n", False), ("y", True)):
        keyboard, screen = pty.openpty()
        process = subprocess.Popen(
            [*MGM, "rm", NAME], stdin=screen, stdout=screen, stderr=screen, env=machine.environment
        )
        os.close(screen)
        shown = ""
        while "?" not in shown:
            assert select.select([keyboard], [], [], SECONDS)[0]
            shown += os.read(keyboard, 4096).decode()
        assert NAME in shown
        assert machine.cache.repository(NAME).exists()
        os.write(keyboard, f"{answer}\n".encode())
        assert process.wait(SECONDS) == (not removed)
        assert machine.cache.repository(NAME).exists() != removed
        os.close(keyboard)
