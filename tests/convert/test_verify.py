"""mgm verify names whatever is wrong with a converted folder, and nothing where all is well."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import pytest
from mlx_gemma_mtp.convert import shards
from mlx_gemma_mtp.convert.conversion import convert
from mlx_gemma_mtp.convert.manifest import MANIFEST, Origin
from mlx_gemma_mtp.convert.plan import Options
from mlx_gemma_mtp.convert.verify import source_of, verify

from helpers.checkpoints import PairPaths
from mlx_gemma_mtp.cli import main
from mlx_gemma_mtp.errors import ModelNotFoundError, UsageError

MOE = "26B-A4B"
FIRST = "model-00001-of-00003.safetensors"
SECOND = "model-00002-of-00003.safetensors"
Q_PROJ = "language_model.model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def whole(pairs: dict[str, PairPaths], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A converted pair whose target is in three files; to be copied, not touched."""
    out = tmp_path_factory.mktemp("whole") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "SHARD_BYTES", 250_000)
        convert(pairs[MOE].target, out, Options(bits="4"))
    assert len([*out.glob("model-*.safetensors")]) == 3
    return out


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy of it, to be damaged."""
    return shutil.copytree(whole, tmp_path / "out")


def edit_json(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def edit_arrays(path: Path, edit: Callable[[dict[str, mx.array]], object]) -> None:
    arrays = mx.load(str(path))
    mx.eval(arrays)
    edit(arrays)
    mx.save_safetensors(str(path), arrays)


def make_manifest_anew(folder: Path) -> None:
    """As if the files, whatever they are, were those that were written."""

    def edit(manifest: dict[str, Any]) -> None:
        for name, record in manifest["files"].items():
            content = (folder / name).read_bytes()
            record |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}

    edit_json(folder / MANIFEST, edit)


# Each damages a folder.


def flip_one_byte(folder: Path) -> None:
    path = folder / SECOND
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)


def truncate(folder: Path) -> None:
    path = folder / SECOND
    path.write_bytes(path.read_bytes()[:-3])


def lengthen(folder: Path) -> None:
    path = folder / "generation_config.json"
    path.write_text(path.read_text() + "\n")


def remove_shard(folder: Path) -> None:
    (folder / SECOND).unlink()


def remove_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def remove_defaults(folder: Path) -> None:
    (folder / "generation_config.json").unlink()


def add_file(folder: Path) -> None:
    (folder / "model-00004-of-00003.safetensors").write_bytes(b"")


def change_config(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(path.read_text().replace('"sliding_window": 16', '"sliding_window": 17'))


def break_config(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(path.read_text().replace(":", ";"))


def shorten_tensor(folder: Path) -> None:
    edit_arrays(folder / FIRST, lambda arrays: arrays.update({WEIGHT: arrays[WEIGHT][:-1]}))
    make_manifest_anew(folder)


def lose_tensor(folder: Path) -> None:
    edit_arrays(folder / FIRST, lambda arrays: arrays.pop(WEIGHT))
    make_manifest_anew(folder)


def add_tensor(folder: Path) -> None:
    edit_arrays(folder / FIRST, lambda arrays: arrays.update({"more": mx.zeros((2, 2))}))
    edit_json(folder / shards.INDEX, lambda index: index["weight_map"].update({"more": FIRST}))
    make_manifest_anew(folder)


def misplace_tensor(folder: Path) -> None:
    edit_json(folder / shards.INDEX, lambda index: index["weight_map"].update({WEIGHT: SECOND}))
    make_manifest_anew(folder)


def claim_other_bits(folder: Path) -> None:
    edit_json(folder / MANIFEST, lambda found: found["tensors"][WEIGHT].update(bits=8))


def configure_other_bits(folder: Path) -> None:
    for block in ("quantization", "quantization_config"):
        edit_json(
            folder / "config.json",
            lambda config, block=block: config[block].update(
                {Q_PROJ: {"bits": 8, "group_size": 64, "mode": "affine"}}
            ),
        )
    make_manifest_anew(folder)


def break_manifest(folder: Path) -> None:
    (folder / MANIFEST).write_text("{")


def write_later_manifest(folder: Path) -> None:
    edit_json(folder / MANIFEST, lambda manifest: manifest.update(schema=2))


def flip_one_byte_of_the_drafter(folder: Path) -> None:
    path = folder / "drafter" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")


WEIGHT = f"{Q_PROJ}.weight"
# What is done to a folder -> what the lines that name it must say: one for each fault.
DAMAGES: dict[Callable[[Path], None], list[tuple[str, ...]]] = {
    flip_one_byte: [(SECOND, "has changed")],
    truncate: [(SECOND, "cut short by 3 bytes")],
    lengthen: [("generation_config.json", "too long by 1 bytes")],
    remove_shard: [(SECOND, "is missing")],
    remove_config: [("config.json", "is missing")],
    remove_defaults: [("generation_config.json", "is missing")],
    add_file: [("model-00004-of-00003.safetensors", "not list")],
    change_config: [("config.json", "changed"), ("another model", "sliding window")],
    break_config: [("config.json", "changed")],
    shorten_tensor: [(WEIGHT, "U32 [63, "), ("layers.0.self_attn.q_proj.weight", "[63, ")],
    lose_tensor: [("layers.0.self_attn.q_proj.weight", "missing"), (shards.INDEX, WEIGHT)],
    add_tensor: [("more", "not in the manifest")],
    misplace_tensor: [(shards.INDEX, WEIGHT, FIRST, SECOND)],
    claim_other_bits: [
        (WEIGHT, "U32 [64, 12]", "U32 [64, 16]"),
        ("config.json", WEIGHT, "6 bits", "8 bits"),
    ],
    configure_other_bits: [
        ("config.json", WEIGHT, "8 bits", "6 bits"),
        ("layers.0.self_attn.q_proj.weight", "[64, 12]", "[64, 16]"),
    ],
    break_manifest: [(MANIFEST, "JSON")],
    write_later_manifest: [(MANIFEST, "schema 2")],
    flip_one_byte_of_the_drafter: [("drafter/model.safetensors", "has changed")],
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_what_is_wrong_is_named(damage: Callable[[Path], None], folder: Path) -> None:
    damage(folder)
    faults = verify(folder).all_faults
    for words in DAMAGES[damage]:
        assert any(all(word in fault for word in words) for fault in faults), (words, faults)
    assert len(faults) == len(DAMAGES[damage]), faults
    assert not any("\n" in fault for fault in faults)


def test_nothing_is_wrong_with_what_was_just_converted(pair: PairPaths, tmp_path: Path) -> None:
    for bits in ("none", "4", "mxfp4"):
        convert(pair.target, tmp_path / bits, Options(bits=bits))
        verdict = verify(tmp_path / bits)
        assert verdict.all_faults == ()
        assert verdict.drafter is not None
        assert verdict.tensors > verdict.drafter.tensors > 0
        assert verify(tmp_path / bits / "drafter").all_faults == ()


def test_all_that_is_wrong_is_named_at_once(folder: Path) -> None:
    for damage in (flip_one_byte, add_file, change_config, flip_one_byte_of_the_drafter):
        damage(folder)
    assert len(verify(folder).all_faults) == 5


def test_a_drafter_of_another_model_is_named(
    pairs: dict[str, PairPaths], folder: Path, tmp_path: Path
) -> None:
    convert(pairs["31B"].target, tmp_path / "other", Options(bits="4"))
    shutil.rmtree(folder / "drafter")
    assert verify(folder).all_faults == ()
    shutil.move(tmp_path / "other" / "drafter", folder)
    (fault,) = verify(folder).all_faults
    assert "drafter belongs to another model" in fault


def test_a_checkpoint_without_manifest_is_checked_as_far_as_that_goes(
    pair: PairPaths, folder: Path
) -> None:
    published = verify(pair.target)  # as it was written by Transformers
    assert published.manifest is None
    assert published.all_faults == ()
    assert published.drafter is not None
    shorten_tensor(folder)
    (folder / MANIFEST).unlink()
    (fault,) = verify(folder).all_faults
    assert "layers.0.self_attn.q_proj.weight" in fault


def test_readme_and_hidden_files_may_change(folder: Path) -> None:
    (folder / "README.md").write_text("mine")
    (folder / ".DS_Store").write_text("")
    assert verify(folder).all_faults == ()


def test_the_source_is_found_where_the_manifest_says(whole: Path) -> None:
    verdict = verify(whole)
    assert verdict.manifest is not None

    def made_of(name: str, revision: str | None) -> str | Path:
        origin = replace(verdict.manifest, source=Origin(name, revision))
        return source_of(replace(verdict, manifest=origin))

    assert made_of("gemma-4-demo-it", None) == "demo"
    with pytest.raises(UsageError, match=r"folder called target: --source"):
        made_of("target", None)
    with pytest.raises(ModelNotFoundError, match="mgm pull google/none --revision abc"):
        made_of("google/none", "abc")
    with pytest.raises(UsageError, match="--source"):
        source_of(replace(verdict, manifest=None))


# The command


class Done(NamedTuple):
    exit_code: int
    stdout: str
    stderr: str


@pytest.fixture
def mgm(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """Runs `mgm` with these arguments."""

    def run(*arguments: str | Path) -> Done:
        monkeypatch.setattr(sys, "argv", ["mgm", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            main()
        return Done(int(left.value.code or 0), *capsys.readouterr())

    return run


def test_the_command_says_what_was_checked(whole: Path, mgm: Callable[..., Done]) -> None:
    done = mgm("verify", whole)
    assert (done.exit_code, done.stderr) == (0, "")
    target, drafter = done.stdout.splitlines()
    assert target.startswith(f"{whole}: 6 files as in manifest.json")
    assert drafter.startswith(f"{whole / 'drafter'}: ")


def test_the_command_lists_faults_and_leaves_with_5(folder: Path, mgm: Callable[..., Done]) -> None:
    truncate(folder)
    add_file(folder)
    done = mgm("verify", folder, "--quality")  # which is not measured then
    assert done.exit_code == 5
    assert len(done.stdout.splitlines()) == 2
    assert done.stderr.startswith(f"mgm: {folder}: 2 faults; ")
    assert done.stderr.count("\n") == 1
    done = mgm("verify", folder, "--json")
    found = json.loads(done.stdout)
    assert done.exit_code == 5
    assert not found["ok"]
    assert len(found["faults"]) == 2
    assert found["target"]["manifest"]


def test_wrong_arguments_are_refused(folder: Path, mgm: Callable[..., Done]) -> None:
    for arguments, code, word in (
        (("nowhere",), 3, "no folder"),
        ((folder, "--tokens", "9"), 2, "--quality"),
    ):
        done = mgm("verify", *arguments)
        assert (done.exit_code, done.stdout) == (code, "")
        assert word in done.stderr
