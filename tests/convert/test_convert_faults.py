"""What stops a conversion is said in one line and loses nothing: it resumes to the same bits."""

import errno
import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import mlx.core as mx
import numpy as np
import pytest
from huggingface_hub import constants, errors
from mlx_gemma_mtp.convert import output, partial
from mlx_gemma_mtp.convert.conversion import convert, prepare
from mlx_gemma_mtp.convert.manifest import read_manifest
from mlx_gemma_mtp.convert.plan import Options
from mlx_gemma_mtp.convert.shards import Part, ShardWriter

from helpers.checkpoints import PairPaths, make_pair
from helpers.fake_hub import COMMIT, NAME, FakeHub, folder_files
from mlx_gemma_mtp.cli import main
from mlx_gemma_mtp.errors import CheckpointError
from mlx_gemma_mtp.files.checkpoint import read_config, weight_files
from mlx_gemma_mtp.files.hub import DEMO_DRAFTER

KIND = "26B-A4B"
OPTIONS = Options()
LONGEST = 600  # characters of a message, paths included


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory, seed: int) -> PairPaths:
    """A pair whose target comes in several files; for tests to copy."""
    return make_pair(KIND, tmp_path_factory.mktemp("tiny"), seed, sharded=True, multimodal=True)


@pytest.fixture(scope="module")
def whole(tiny: PairPaths, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an uninterrupted conversion of it gives."""
    out = tmp_path_factory.mktemp("whole") / "out"
    convert(tiny.target, out, OPTIONS)
    return out


@pytest.fixture
def broken(tiny: PairPaths, tmp_path: Path) -> PairPaths:
    """A pair that a test may break."""
    return PairPaths(
        shutil.copytree(tiny.target, tmp_path / "target"),
        shutil.copytree(tiny.drafter, tmp_path / "target-assistant"),
    )


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file but those that hold the time."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("manifest.json", "README.md")
    }


class Run:
    """`mgm convert`, within this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self._capsys, self._monkeypatch = capsys, monkeypatch

    def __call__(self, *arguments: str | Path) -> tuple[int, str, str]:
        """Exit code, standard output, standard error."""
        self._monkeypatch.setattr(sys, "argv", ["mgm", "convert", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            main()
        said = self._capsys.readouterr()
        code = left.value.code
        return code if isinstance(code, int) else 0, said.out, said.err

    def refused(self, exit_code: int, word: str, *arguments: str | Path) -> None:
        """It must say so in one line, of which `word` is a part."""
        code, out, error = self(*arguments)
        line = error.splitlines()[-1]
        assert code == exit_code, error
        assert out == ""
        assert line.startswith("mgm: "), error
        assert word in line
        assert len(line) < LONGEST
        assert "Traceback" not in error


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    return Run(capsys, monkeypatch)


def test_the_path_written_is_all_that_goes_to_standard_output(
    run: Run, tiny: PairPaths, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, error = run(tiny.target, "--out", tmp_path / "out")
    assert (code, out) == (0, f"{tmp_path / 'out'}\n")
    files = ("model.safetensors", "drafter/model.safetensors")
    assert error.splitlines()[2:] == [f"writing {file}" for file in files]
    assert hashes(tmp_path / "out") == hashes(whole)
    monkeypatch.chdir(tmp_path)
    assert run(tiny.target, "--bits", "8", "--drafter", "none")[:2] == (0, "target-8bit\n")
    assert not (tmp_path / "target-8bit" / "drafter").exists()


def test_a_dry_run_writes_nothing(
    run: Run, tiny: PairPaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, error = run(tiny.target, "--dry-run")
    assert (code, error) == (0, "")
    assert "bits per weight" in out
    assert list(tmp_path.iterdir()) == []


# Sources and options that cannot be


def cut_short(folder: Path) -> None:
    path = weight_files(folder)[1]
    os.truncate(path, path.stat().st_size - 100)


def garbage(folder: Path) -> None:
    weight_files(folder)[0].write_bytes(b"\x10" + b"\0" * 7 + b"no safetensors at all" * 9)


def edit_header(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = weight_files(folder)[0]
        data = path.read_bytes()
        size = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + size])
        change(next(entry for name, entry in header.items() if name.endswith("proj.weight")))
        text = json.dumps(header).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])

    return edit


def without_a_shard(folder: Path) -> None:
    weight_files(folder)[-1].unlink()


def with_nan(folder: Path) -> None:
    """In the last file, whose turn comes late."""
    path = weight_files(folder)[-1]
    arrays = mx.load(str(path))
    name = max(arrays, key=lambda name: arrays[name].size)
    flat = np.array(arrays[name]).ravel()
    flat[flat.size // 2] = np.nan
    arrays[name] = mx.array(flat).reshape(arrays[name].shape)
    mx.save_safetensors(str(path), arrays)


def edit_config(**changes: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        config = read_config(folder)
        for key, value in changes.items():
            config[key] = config[key] | value if key == "text_config" else value
        (folder / "config.json").write_text(json.dumps(config))

    return edit


SOURCES: dict[str, tuple[Callable[[Path], None], str]] = {
    "a file cut short": (cut_short, "cut short by 100 bytes"),
    "a file of something else": (garbage, "not a whole safetensors file"),
    "a shape that is none": (edit_header(lambda e: e.update(shape=[-1])), "damaged header"),
    "an offset that is none": (edit_header(lambda e: e.update(data_offsets=[0, 8])), "damaged"),
    "a type that is none": (edit_header(lambda e: e.update(dtype=3)), "damaged header"),
    "a type that MLX lacks": (edit_header(lambda e: e.update(dtype="F8_E4M3")), "F8_E4M3"),
    "a file missing": (without_a_shard, "safetensors is missing from"),
    "no number": (with_nan, "no finite number"),
    "no Gemma": (edit_config(model_type="llama"), "not a Gemma 4 model"),
    "quantized": (edit_config(quantization={"bits": 4}), "quantized already"),
    "quantized by others": (edit_config(quantization_config={"bits": 4}), "quantized already"),
    "another shape": (edit_config(text_config={"vocab_size": 512}), "different models"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "config.json is missing"),
}


@pytest.mark.parametrize("case", SOURCES.values(), ids=SOURCES.keys())
def test_a_source_that_is_none_is_refused(
    case: tuple[Callable[[Path], None], str], run: Run, broken: PairPaths, tmp_path: Path
) -> None:
    damage, word = case
    damage(broken.target)
    before = hashes(broken.target)
    run.refused(1, word, broken.target, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert hashes(broken.target) == before


OPTIONS_REFUSED: dict[str, tuple[tuple[str, ...], str]] = {
    "bits": (("--bits", "7"), "2, 3, 4, 5, 6, 8, mxfp4, mxfp8, nvfp4, q4_0, none"),
    "bits as MLX's tools name a type": (("--bits", "bf16"), "none"),
    "bits with a group": (("--bits", "4/32"), "--group-size"),
    "drafter's bits": (("--drafter-bits", "7"), "unknown bits '7'"),
    "a group size MLX lacks": (("--group-size", "48"), "32, 64, 128"),
    "a group size that does not divide": (("--group-size", "128"), "group sizes that fit: 32, 64"),
    "a group size of a fixed format": (("--bits", "nvfp4", "--group-size", "64"), "groups of 16"),
    "a group size of nothing": (("--bits", "none", "--group-size", "64"), "group size"),
    "a type": (("--dtype", "int8"), "bfloat16"),
    "a recipe": (("--recipe", "best"), "mixed and uniform"),
    "a rule without a format": (("--rule", "*.down_proj"), "PATTERN=FORMAT"),
    "a rule of an unknown format": (("--rule", "*.down_proj=7"), "unknown bits '7'"),
    "a rule for nothing": (("--rule", "*.lm_head=8"), "matches nothing"),
    "a rule for half of the experts": (("--rule", "*.up_proj=8"), "one rule for both"),
    "a drafter's rule for nothing": (("--rule", "drafter.*.k_proj=8"), "matches nothing"),
    "a rule for no drafter": (("--drafter", "none", "--rule", "drafter.*=8"), "no drafter"),
    "bits for no drafter": (("--drafter", "none", "--drafter-bits", "8"), "no drafter"),
}


@pytest.mark.parametrize("case", OPTIONS_REFUSED.values(), ids=OPTIONS_REFUSED.keys())
def test_options_that_cannot_be_are_refused(
    case: tuple[tuple[str, ...], str], run: Run, tiny: PairPaths, tmp_path: Path
) -> None:
    run.refused(2, case[1], tiny.target, "--out", tmp_path / "out", *case[0])
    assert list(tmp_path.iterdir()) == []


def test_the_wrong_models_are_refused(run: Run, tiny: PairPaths, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run.refused(1, "this is a drafter", tiny.drafter, "--out", out)
    run.refused(1, "not a Gemma 4 drafter", tiny.target, "--drafter", tiny.target, "--out", out)
    run.refused(1, "belongs to another model", tiny.target, "--drafter", DEMO_DRAFTER, "--out", out)
    run.refused(3, "no folder", tmp_path / "nowhere", "--out", out)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("what", ["terms not accepted", "no network"])
def test_what_the_hub_refuses_ends_before_anything_is_written(
    what: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    response = SimpleNamespace(headers={}, request=None, status_code=403)
    refusals = {
        "terms not accepted": (errors.GatedRepoError("No\nno", response=response), "HF_TOKEN"),
        "no network": (OSError("no route to host"), "no route to host"),
    }
    error, word = refusals[what]

    def download(name: str, *, local_files_only: bool = False, **_: Any) -> str:
        raise errors.LocalEntryNotFoundError("nothing cached") if local_files_only else error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    run.refused(3, word, "google/gemma-4-tiny-it", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


# What is there already


def test_an_output_that_is_there_is_refused_before_the_source_is_looked_for(
    run: Run, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    run.refused(2, "--force", "google/not-asked-for", "--out", out)
    out.rmdir()
    (tmp_path / "out.partial").mkdir()
    run.refused(2, "--resume", "google/not-asked-for", "--out", out)
    run.refused(2, "--force", "google/not-asked-for", "--out", out)


def test_force_replaces_a_model_only_when_all_is_done(
    run: Run, tiny: PairPaths, whole: Path, broken: PairPaths, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    convert(tiny.target, out, Options(bits="8"))
    before = hashes(out)
    with_nan(broken.target)
    run.refused(1, "no finite number", broken.target, "--out", out, "--force")
    assert hashes(out) == before
    assert run(tiny.target, "--out", out, "--force")[0] == 0  # and begins anew
    assert hashes(out) == hashes(whole)
    assert not partial.partial_of(out).exists()


def test_force_replaces_nothing_but_models(run: Run, tiny: PairPaths, tmp_path: Path) -> None:
    papers = tmp_path / "papers"
    papers.mkdir()
    (papers / "letter.txt").write_text("dear")
    run.refused(2, "not a model's folder", tiny.target, "--out", papers, "--force")
    run.refused(2, "not a model's folder", tiny.target, "--out", papers / "letter.txt", "--force")
    assert (papers / "letter.txt").read_text() == "dear"


def test_the_source_is_never_replaced(run: Run, broken: PairPaths) -> None:
    for out in (broken.target, broken.drafter):
        run.refused(2, "where the source is", broken.target, "--out", out, "--force")
        assert (out / "config.json").exists()


def test_a_conversion_under_way_is_left_alone(run: Run, tiny: PairPaths, tmp_path: Path) -> None:
    folder = tmp_path / "out.partial"
    folder.mkdir()
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for flag in ("--resume", "--force"):
            run.refused(2, "another mgm convert", tiny.target, "--out", tmp_path / "out", flag)
    assert run(tiny.target, "--out", tmp_path / "out", "--resume")[0] == 0


# Cut off on the way


INTERRUPTED = "layers.3.experts.switch_glu.down_proj.weight"
Write = Callable[[ShardWriter, Part, int, mx.array], None]


def stop_with(error: BaseException) -> Write:
    """A ShardWriter.write that fails in the middle of a tensor."""
    write = ShardWriter.write

    def failing(self: ShardWriter, part: Part, row: int, values: mx.array) -> None:
        if part.name.endswith(INTERRUPTED) and row > 100:
            raise error
        write(self, part, row, values)

    return failing


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "SLICE_BYTES", 10_000)
    monkeypatch.setattr(output, "SYNC_BYTES", 2_000)


@pytest.mark.usefixtures("small_steps")
def test_a_disk_that_fills_up_is_one_line_and_resuming_goes_on(
    run: Run, tiny: PairPaths, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(
            ShardWriter, "write", stop_with(OSError(errno.ENOSPC, "No space left on device"))
        )
        run.refused(1, "No space left on device", tiny.target, "--out", out)
    assert not out.exists()
    journal = out.with_name("out.partial") / "target.journal"
    finished = dict(reversed(line.split(" ")) for line in journal.read_text().splitlines())
    (interrupted,) = (name for name in finished if name.endswith(INTERRUPTED))
    assert 0 < int(finished[interrupted]) < 512
    assert interrupted == list(finished)[-1]
    written = []
    write = ShardWriter.write

    def note(self: ShardWriter, part: Part, row: int, values: mx.array) -> None:
        written.append((part.name, row))
        write(self, part, row, values)

    monkeypatch.setattr(ShardWriter, "write", note)
    assert run(tiny.target, "--out", out, "--resume")[0] == 0
    assert hashes(out) == hashes(whole)
    assert written
    assert all(row >= int(finished.get(name, 0)) for name, row in written)


def test_too_small_a_disk_is_found_before_anything_is_written(
    run: Run, tiny: PairPaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=400_000))
    run.refused(1, "make room", tiny.target, "--out", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("small_steps")
def test_ctrl_c_says_how_to_go_on(
    run: Run, tiny: PairPaths, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(ShardWriter, "write", stop_with(KeyboardInterrupt()))
        run.refused(130, "--resume", tiny.target, "--out", tmp_path / "out")
    run.refused(2, "--resume", tiny.target, "--out", tmp_path / "out")
    assert run(tiny.target, "--out", tmp_path / "out", "--resume")[0] == 0
    assert hashes(tmp_path / "out") == hashes(whole)


@pytest.mark.usefixtures("small_steps")
def test_only_the_same_conversion_is_resumed(
    run: Run, broken: PairPaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(ShardWriter, "write", stop_with(KeyboardInterrupt()))
        run(broken.target, "--out", out)
    go_on = (broken.target, "--out", out, "--resume")
    for option in (("--bits", "8"), ("--rule", "*.o_proj=8"), ("--recipe", "uniform")):
        run.refused(2, "other options", *go_on, *option)
    run.refused(2, "other source files", *go_on, "--drafter", "none")
    path = weight_files(broken.target)[0]
    before = path.stat()
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    run.refused(2, "other source files", *go_on)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert run(*go_on)[0] == 0


@pytest.mark.usefixtures("small_steps")
def test_a_lost_file_of_what_was_begun_is_made_anew(
    run: Run, tiny: PairPaths, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(ShardWriter, "write", stop_with(KeyboardInterrupt()))
        run(tiny.target, "--out", out)
    (out.with_name("out.partial") / "model" / "model.safetensors").unlink()
    assert run(tiny.target, "--out", out, "--resume")[0] == 0
    assert hashes(out) == hashes(whole)


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize("then", ["--resume", "--force"])
def test_a_kill_between_the_two_renames_of_force_loses_neither(
    then: str,
    run: Run,
    tiny: PairPaths,
    whole: Path,
    broken: PairPaths,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "out"
    convert(tiny.target, out, Options(bits="8"))
    before = hashes(out)
    rename = Path.rename
    with monkeypatch.context() as patch:

        def killed(path: Path, target: Path) -> Path:
            if path.name == "model":
                raise KeyboardInterrupt
            return rename(path, target)

        patch.setattr(Path, "rename", killed)
        assert run(tiny.target, "--out", out, "--force")[0] == 130
    assert not out.exists()
    if then == "--resume":
        assert run(tiny.target, "--out", out, then)[0] == 0
        assert hashes(out) == hashes(whole)
        # Or killed after both of them, and again later:
        with monkeypatch.context() as patch:
            patch.setattr(ShardWriter, "write", stop_with(KeyboardInterrupt()))
            assert run(tiny.target, "--out", out, "--force")[0] == 130
        shutil.copytree(out, out.with_name("out.partial") / "replaced")
        assert run(tiny.target, "--out", out, "--resume", "--force")[0] == 0
        assert hashes(out) == hashes(whole)
    else:  # begun anew, and in vain
        with_nan(broken.target)
        run.refused(1, "no finite number", broken.target, "--out", out, then)
        assert hashes(out) == before


# Killed

CONVERT = """
import os, sys
from pathlib import Path
from mlx_gemma_mtp.convert import output
from mlx_gemma_mtp.convert.conversion import convert, prepare
from mlx_gemma_mtp.convert.plan import Options
output.SLICE_BYTES, output.SYNC_BYTES = 10_000, 2_000
convert(Path(sys.argv[1]), Path(sys.argv[2]), Options(), resume=True,
        on_progress=lambda _: os.write(1, b"."))
"""


def convert_and_kill(source: Path, out: Path, steps: int | None) -> int:
    """Convert in a process of its own, killed after so many steps; returns how many it made."""
    command = [sys.executable, "-c", CONVERT, str(source), str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, bufsize=0) as process:
        assert process.stdout is not None
        made = 0
        while steps is None or made < steps:
            read = process.stdout.read(1 if steps is not None else 65536)
            if not read:
                break
            made += len(read)
        if steps is not None:
            process.send_signal(signal.SIGKILL)
    assert process.returncode == (0 if steps is None else -signal.SIGKILL)
    return made


def test_killed_at_ten_random_moments_and_resumed_it_is_the_same(
    tiny: PairPaths, whole: Path, tmp_path: Path, rng: np.random.Generator
) -> None:
    steps = convert_and_kill(tiny.target, tmp_path / "all", None)
    assert hashes(tmp_path / "all") == hashes(whole)
    assert steps > 300
    for attempt in range(2):
        out = tmp_path / f"out-{attempt}"
        folder = out.with_name(out.name + ".partial")
        # Five kills on the way: a resumed run has fewer steps before it, so the moments spread.
        for moment in sorted(rng.integers(1, steps // 6, 5).tolist(), reverse=True):
            print(f"killed after {moment} of {steps} steps")
            convert_and_kill(tiny.target, out, moment)
            assert not out.exists()
            for place in (folder, folder / "model"):
                with pytest.raises(CheckpointError):
                    read_config(place)
        again = convert_and_kill(tiny.target, out, None)
        assert hashes(out) == hashes(whole)
        assert again < steps


# Upload

Uploads = list[tuple[str, str]]  # repository, kind of the folder's drafter


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Uploads:
    """Uploads go to this list."""
    uploads: Uploads = []

    class FakeApi:
        def whoami(self) -> dict[str, str]:
            return {"name": "me"}

        def create_repo(self, repository: str, *, exist_ok: bool) -> str:
            assert exist_ok
            return f"https://hub/{repository}"

        def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str) -> None:
            assert commit_message
            uploads.append((repo_id, read_manifest(folder_path / "drafter").kind))

    monkeypatch.setattr(huggingface_hub, "HfApi", FakeApi)
    return uploads


def test_an_upload_follows_a_conversion_that_succeeded(
    run: Run, tiny: PairPaths, tmp_path: Path, hub: Uploads
) -> None:
    code, out, error = run(tiny.target, "--out", tmp_path / "out", "--upload-repo", "me/tiny")
    assert (code, out) == (0, f"{tmp_path / 'out'}\n")
    assert hub == [("me/tiny", "drafter")]
    assert error.splitlines()[-1] == "uploaded to https://hub/me/tiny"


def test_what_cannot_be_uploaded_is_said_before_the_work(
    run: Run,
    tiny: PairPaths,
    tmp_path: Path,
    hub: Uploads,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arguments = (tiny.target, "--out", tmp_path / "out", "--upload-repo")
    run.refused(2, "no Hub repository's name", *arguments, "not/a/name")

    def refuse(_: object) -> None:
        raise errors.LocalTokenNotFoundError("Many\nlines")

    monkeypatch.setattr(huggingface_hub.HfApi, "whoami", refuse)
    run.refused(1, "HF_TOKEN", *arguments, "me/tiny")
    assert list(tmp_path.iterdir()) == []


def test_an_upload_that_fails_keeps_the_folder(
    run: Run,
    tiny: PairPaths,
    tmp_path: Path,
    hub: Uploads,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(_: object, **__: object) -> None:
        raise errors.HTTPError("peer\nclosed connection")

    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", fail)
    code, out, error = run(tiny.target, "--out", tmp_path / "out", "--upload-repo", "me/tiny")
    assert code == 1
    assert out == f"{tmp_path / 'out'}\n"
    line = error.splitlines()[-1]
    assert "peer closed connection" in line
    assert "hf upload me/tiny" in line
    assert (tmp_path / "out" / "manifest.json").exists()


# Of a source on the Hub

DRY_RUN = """
import sys
from mlx_gemma_mtp.convert import conversion, report
from mlx_gemma_mtp.convert.plan import Options
made = conversion.prepare(sys.argv[1], Options(), headers_only=True)
for model in made.models:
    print(model.origin, model.plan.nbytes, model.plan.shards)
print(made.drafter is not None)
"""


def test_planning_fetches_headers_and_no_weights(tmp_path: Path, seed: int) -> None:
    pair = make_pair(KIND, tmp_path / "pair", seed)
    server = FakeHub()
    server.add(NAME, folder_files(pair.target))
    server.add(f"{NAME}-assistant", folder_files(pair.drafter))
    with server.running(tmp_path / "home") as environment:
        done = subprocess.run(
            [sys.executable, "-c", DRY_RUN, NAME],
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert done.returncode == 0, done.stderr
    *models, paired = done.stdout.splitlines()
    assert paired == "True"
    here = prepare(pair.target, OPTIONS)
    for found, model in zip(models, here.models, strict=True):
        assert COMMIT in found
        assert found.endswith(f"{model.plan.nbytes} {model.plan.shards}")
    asked = {line for line in server.ranges if line.startswith("model.safetensors")}
    assert asked == {"model.safetensors bytes=0-100000"}
    assert not list((tmp_path / "home").rglob("*.safetensors"))
