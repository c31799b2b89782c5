"""`mgm convert` refuses in one line, before any harm; it uploads only what is complete."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import huggingface_hub
import pytest
from huggingface_hub import constants, errors
from mlx_gemma_mtp.convert import partial
from mlx_gemma_mtp.convert.conversion import convert, prepare
from mlx_gemma_mtp.convert.manifest import read_manifest
from mlx_gemma_mtp.convert.plan import Options

from helpers.broken import Edit, set_values, table
from helpers.checkpoints import PairPaths, make_pair
from helpers.command import Here
from helpers.converted import MOE, assert_refused, hashes, put_nan
from helpers.fake_hub import COMMIT, NAME, FakeHub, folder_files
from mlx_gemma_mtp.files.checkpoint import weight_files
from mlx_gemma_mtp.files.names import DEMO_DRAFTER


def edit_first(edit: Callable[[bytes], bytes]) -> Edit:
    """Edit the bytes of the first file of weights."""

    def apply(folder: Path) -> None:
        path = weight_files(folder)[0]
        path.write_bytes(edit(path.read_bytes()))

    return apply


def entry(**changes: Any) -> Edit:
    """Change a weight's entry in the header."""

    def edit(data: bytes) -> bytes:
        size = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + size])
        header[next(name for name in header if name.endswith("proj.weight"))] |= changes
        text = json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + data[8 + size :]

    return edit_first(edit)


def garbage(_: bytes) -> bytes:
    return b"\x10" + b"\0" * 7 + b"no safetensors at all" * 9


SOURCES: dict[str, tuple[Edit, str]] = {
    "a file cut short": (edit_first(lambda data: data[:-100]), "cut short by 100 bytes"),
    "another file format": (edit_first(garbage), "not a whole safetensors file"),
    "an impossible shape": (entry(shape=[-1]), "damaged header"),
    "an impossible offset": (entry(data_offsets=[0, 8]), "damaged"),
    "an impossible type": (entry(dtype=3), "damaged header"),
    "a type that MLX lacks": (entry(dtype="F8_E4M3"), "F8_E4M3"),
    "a file missing": (lambda folder: weight_files(folder)[-1].unlink(), "is missing"),
    "not a number": (put_nan, "not finite"),
    "not Gemma": (set_values({"model_type": "llama"}), "not a Gemma 4 model"),
    "another shape": (set_values({"text_config.vocab_size": 512}), "different models"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "config.json is missing"),
}


@table(SOURCES)
def test_a_damaged_source_is_refused(
    case: tuple[Edit, str], mgm_here: Here, broken: PairPaths, out: Path
) -> None:
    damage, word = case
    damage(broken.target)
    before = hashes(broken.target)
    assert_refused(mgm_here("convert", broken.target, "--out", out), 1, word)
    assert not out.exists()
    assert hashes(broken.target) == before


def test_a_source_without_a_tokenizer_is_converted_with_a_warning(
    mgm_here: Here, broken: PairPaths, out: Path
) -> None:
    tokenizer = broken.target / "tokenizer.json"
    for there in (True, False):
        tokenizer.write_text("{}") if there else tokenizer.unlink()
        done = mgm_here("convert", broken.target, "--out", out, "--force")
        assert done.returncode == 0
        assert ("no tokenizer.json" in done.stderr) != there


def test_other_models_are_refused(mgm_here: Here, tiny: PairPaths, out: Path) -> None:
    for exit_code, word, arguments in (
        (1, "this is a drafter", (tiny.drafter,)),
        (1, "not a Gemma 4 drafter", (tiny.target, "--drafter", tiny.target)),
        (1, "belongs to another model", (tiny.target, "--drafter", DEMO_DRAFTER)),
        (3, "nowhere", (out.with_name("nowhere"),)),
    ):
        assert_refused(mgm_here("convert", *arguments, "--out", out), exit_code, word)
    assert list(out.parent.iterdir()) == []


REFUSED = SimpleNamespace(headers={}, request=None, status_code=403)
GATED = errors.GatedRepoError("No\nno", response=REFUSED)


@pytest.mark.parametrize(
    ("error", "word"), [(GATED, "HF_TOKEN"), (OSError("no route to host"), "no route to host")]
)
def test_an_error_of_the_hub_comes_before_anything_is_written(
    error: Exception, word: str, mgm_here: Here, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", refuse)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(out.parent / "hub"))
    done = mgm_here("convert", "google/gemma-4-tiny-it", "--out", out)
    assert_refused(done, 3, word)
    assert not out.exists()


OPTIONS = {
    "bits": ("--bits 7", "2, 3, 4, 5, 6, 8, mxfp4, mxfp8, nvfp4, q4_0, none"),
    "bits by MLX's name of a type": ("--bits bf16", "none"),
    "bits with a group size": ("--bits 4/32", "--group-size"),
    "drafter's bits": ("--drafter-bits 7", "unknown bits '7'"),
    "a group size that MLX lacks": ("--group-size 48", "32, 64 or 128"),
    "a group size that does not divide": ("--group-size 128", "choose group size 32 or 64"),
    "a group size for a fixed format": ("--bits nvfp4 --group-size 64", "groups of 16"),
    "a group size for no bits": ("--bits none --group-size 64", "group size"),
    "a dtype": ("--dtype int8", "bfloat16"),
    "a recipe": ("--recipe best", "mixed or uniform"),
    "a rule without a format": ("--rule *.down_proj", "PATTERN=FORMAT"),
    "a rule with an unknown format": ("--rule *.down_proj=7", "unknown bits '7'"),
    "a rule that matches nothing": ("--rule *.lm_head=8", "matches nothing"),
    "a rule for half of the experts": ("--rule *.up_proj=8", "one rule for both"),
    "a drafter's rule that matches nothing": ("--rule drafter.*.k_proj=8", "matches nothing"),
    "a rule without a drafter": ("--drafter none --rule drafter.*=8", "no drafter"),
    "bits without a drafter": ("--drafter none --drafter-bits 8", "no drafter"),
}


@table(OPTIONS)
def test_impossible_options_are_refused(
    case: tuple[str, str], mgm_here: Here, tiny: PairPaths, out: Path
) -> None:
    options, word = case
    done = mgm_here("convert", tiny.target, "--out", out, *options.split())
    assert_refused(done, 2, word)
    assert list(out.parent.iterdir()) == []


def test_an_existing_output_is_refused_before_the_source_is_looked_up(
    mgm_here: Here, out: Path
) -> None:
    unfinished = out.with_name("out.partial")
    for folder, ways_out in ((out, ["--force"]), (unfinished, ["--resume", "--force"])):
        folder.mkdir()
        for word in ways_out:
            assert_refused(mgm_here("convert", "google/not-asked-for", "--out", out), 2, word)
        folder.rmdir()


def test_force_replaces_a_model_only_at_the_end(
    mgm_here: Here, tiny: PairPaths, whole: Path, broken: PairPaths, out: Path
) -> None:
    convert(tiny.target, out, Options(bits="8"))
    before = hashes(out)
    put_nan(broken.target)
    assert_refused(mgm_here("convert", broken.target, "--out", out, "--force"), 1, "not finite")
    assert hashes(out) == before
    assert mgm_here("convert", tiny.target, "--out", out, "--force").returncode == 0  # starts over
    assert hashes(out) == hashes(whole)
    assert not partial.partial_of(out).exists()


def test_force_replaces_neither_other_files_nor_the_source(
    mgm_here: Here, broken: PairPaths, tmp_path: Path
) -> None:
    letter = tmp_path / "papers" / "letter.txt"
    letter.parent.mkdir()
    letter.write_text("dear")
    other, source = "not a model's folder", "holds the source"
    places = {letter: other, letter.parent: other, broken.target: source, broken.drafter: source}
    notes = tmp_path / "out.partial" / "notes.txt"
    notes.parent.mkdir()
    notes.write_text("mine")
    places[tmp_path / "out"] = "not an unfinished conversion"
    before = hashes(tmp_path)
    for place, word in places.items():
        assert_refused(mgm_here("convert", broken.target, "--out", place, "--force"), 2, word)
    assert hashes(tmp_path) == before


def test_a_disk_without_room_is_refused_before_anything_is_written(
    mgm_here: Here, tiny: PairPaths, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=400_000))
    assert_refused(mgm_here("convert", tiny.target, "--out", out), 1, "make room")
    assert list(out.parent.iterdir()) == []


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Mock:
    """The Hub's client: it takes everything."""
    found = Mock()
    found.create_repo.side_effect = lambda repository, exist_ok: f"https://hub/{repository}"
    found.upload_folder.side_effect = lambda folder_path, **_: read_manifest(folder_path)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: found)
    return found


def test_an_impossible_upload_is_refused_before_the_work(
    mgm_here: Here, tiny: PairPaths, out: Path, api: Mock
) -> None:
    command = ("convert", tiny.target, "--out", out, "--upload-repo")
    assert_refused(mgm_here(*command, "not/a/name"), 2, "not a Hub repository name")
    api.whoami.side_effect = errors.LocalTokenNotFoundError("Many\nlines")
    assert_refused(mgm_here(*command, "me/tiny"), 1, "HF_TOKEN")
    assert list(out.parent.iterdir()) == []


def test_a_finished_conversion_is_uploaded_and_kept_if_that_fails(
    mgm_here: Here, tiny: PairPaths, out: Path, api: Mock
) -> None:
    command = ("convert", tiny.target, "--out", out, "--force", "--upload-repo", "me/tiny")
    done = mgm_here(*command)
    assert (done.returncode, done.stdout) == (0, f"{out}\n")
    assert done.stderr.splitlines()[-1] == "uploaded to https://hub/me/tiny"
    assert api.upload_folder.call_args.kwargs["repo_id"] == "me/tiny"

    api.upload_folder.side_effect = errors.HTTPError("peer\nclosed connection")
    done = mgm_here(*command)
    assert (done.returncode, done.stdout) == (1, f"{out}\n")
    line = done.stderr.splitlines()[-1]
    assert "peer closed connection" in line
    assert "hf upload me/tiny" in line
    assert (out / "manifest.json").exists()


DRY_RUN = """
import sys
from mlx_gemma_mtp.convert import conversion, plan
for one in conversion.prepare(sys.argv[1], plan.Options(), headers_only=True):
    print(one.kind, one.source.origin.revision, one.nbytes, one.shards)
"""


@pytest.mark.torch
def test_a_dry_run_downloads_headers_and_no_weights(tmp_path: Path, seed: int) -> None:
    pair = make_pair(MOE, tmp_path / "pair", seed)
    server = FakeHub()
    server.add(NAME, folder_files(pair.target))
    server.add(f"{NAME}-assistant", folder_files(pair.drafter))
    with server.running(tmp_path / "home") as environment:
        command = [sys.executable, "-c", DRY_RUN, NAME]
        printed = subprocess.check_output(command, env=environment, text=True, timeout=120)
    assert printed.splitlines() == [
        f"{plan.kind} {COMMIT} {plan.nbytes} {plan.shards}"
        for plan in prepare(pair.target, Options())
    ]
    assert {*server.headers} == {"model.safetensors bytes=0-99999"}
    assert server.ranges == []
    assert not list((tmp_path / "home").rglob("config.json"))  # nothing that a list would show
