"""Sources, options and places that cannot be converted are refused in one line, before any harm."""

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants, errors
from mlx_gemma_mtp.convert import partial
from mlx_gemma_mtp.convert.conversion import convert
from mlx_gemma_mtp.convert.plan import Options

from helpers.broken import Edit, set_values, table
from helpers.checkpoints import PairPaths
from helpers.command import Here
from helpers.converted import assert_refused, hashes, put_nan
from mlx_gemma_mtp.files.checkpoint import weight_files
from mlx_gemma_mtp.files.hub import DEMO_DRAFTER


def cut_short(folder: Path) -> None:
    path = weight_files(folder)[1]
    os.truncate(path, path.stat().st_size - 100)


def garbage(folder: Path) -> None:
    weight_files(folder)[0].write_bytes(b"\x10" + b"\0" * 7 + b"no safetensors at all" * 9)


def entry(**changes: Any) -> Edit:
    """Change a weight's entry in the header of the first file."""

    def edit(folder: Path) -> None:
        path = weight_files(folder)[0]
        data = path.read_bytes()
        size = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + size])
        header[next(name for name in header if name.endswith("proj.weight"))] |= changes
        text = json.dumps(header).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])

    return edit


SOURCES: dict[str, tuple[Edit, str]] = {
    "a file cut short": (cut_short, "cut short by 100 bytes"),
    "another file format": (garbage, "not a whole safetensors file"),
    "an impossible shape": (entry(shape=[-1]), "damaged header"),
    "an impossible offset": (entry(data_offsets=[0, 8]), "damaged"),
    "an impossible type": (entry(dtype=3), "damaged header"),
    "a type that MLX lacks": (entry(dtype="F8_E4M3"), "F8_E4M3"),
    "a file missing": (lambda folder: weight_files(folder)[-1].unlink(), "is missing"),
    "not a number": (put_nan, "not finite"),
    "not Gemma": (set_values({"model_type": "llama"}), "not a Gemma 4 model"),
    "quantized": (set_values({"quantization": {"bits": 4}}), "already quantized"),
    "quantized elsewhere": (set_values({"quantization_config": {"bits": 4}}), "already quantized"),
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


def test_other_models_are_refused(
    mgm_here: Here, tiny: PairPaths, tmp_path: Path, out: Path
) -> None:
    for exit_code, word, arguments in (
        (1, "this is a drafter", (tiny.drafter,)),
        (1, "not a Gemma 4 drafter", (tiny.target, "--drafter", tiny.target)),
        (1, "belongs to another model", (tiny.target, "--drafter", DEMO_DRAFTER)),
        (3, "nowhere", (tmp_path / "nowhere",)),
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
    def download(name: str, *, local_files_only: bool = False, **_: Any) -> str:
        raise errors.LocalEntryNotFoundError("nothing cached") if local_files_only else error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
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
    before = hashes(tmp_path)
    other, source = "not a model's folder", "holds the source"
    places = {letter: other, letter.parent: other, broken.target: source, broken.drafter: source}
    for place, word in places.items():
        assert_refused(mgm_here("convert", broken.target, "--out", place, "--force"), 2, word)
    assert hashes(tmp_path) == before


def test_a_disk_without_room_is_refused_before_anything_is_written(
    mgm_here: Here, tiny: PairPaths, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=400_000))
    assert_refused(mgm_here("convert", tiny.target, "--out", out), 1, "make room")
    assert list(out.parent.iterdir()) == []
