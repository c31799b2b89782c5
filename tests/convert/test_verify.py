"""`mgm verify` names every fault of a converted folder, and finds none in an intact one."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_gemma_mtp.convert import shards
from mlx_gemma_mtp.convert.conversion import convert
from mlx_gemma_mtp.convert.manifest import MANIFEST, Origin
from mlx_gemma_mtp.convert.plan import Options
from mlx_gemma_mtp.convert.verify import source_of, verify

from helpers.checkpoints import PairPaths
from helpers.converted import MOE, Converted, Mgm, assert_refused, edit_json
from mlx_gemma_mtp.errors import ModelNotFoundError, UsageError

FIRST = "model-00001-of-00003.safetensors"
SECOND = "model-00002-of-00003.safetensors"
Q_PROJ = "language_model.model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def whole(pairs: dict[str, PairPaths], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A converted pair whose target is in three files; to be copied, not touched."""
    out = tmp_path_factory.mktemp("whole") / "out"
    convert(pairs[MOE].target, out, Options(shard_bytes=250_000))
    assert len([*out.glob("model-*.safetensors")]) == 3
    return out


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy of it, to be damaged."""
    return shutil.copytree(whole, tmp_path / "out")


def faults_of(folder: Path) -> list[str]:
    return [fault for verdict in verify(folder) for fault in verdict.faults]


def edit_arrays(path: Path, edit: Callable[[dict[str, mx.array]], object]) -> None:
    arrays = mx.load(str(path))
    mx.eval(arrays)
    edit(arrays)
    mx.save_safetensors(str(path), arrays)


def hash_again(folder: Path) -> None:
    """Make the manifest list the files as they are now."""

    def edit(manifest: dict[str, Any]) -> None:
        for name, record in manifest["files"].items():
            content = (folder / name).read_bytes()
            record |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}

    edit_json(folder / MANIFEST, edit)


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
    hash_again(folder)


def lose_tensor(folder: Path) -> None:
    edit_arrays(folder / FIRST, lambda arrays: arrays.pop(WEIGHT))
    hash_again(folder)


def add_tensor(folder: Path) -> None:
    edit_arrays(folder / FIRST, lambda arrays: arrays.update({"more": mx.zeros((2, 2))}))
    edit_json(folder / shards.INDEX, lambda index: index["weight_map"].update({"more": FIRST}))
    hash_again(folder)


def misplace_tensor(folder: Path) -> None:
    edit_json(folder / shards.INDEX, lambda index: index["weight_map"].update({WEIGHT: SECOND}))
    hash_again(folder)


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
    hash_again(folder)


def break_manifest(folder: Path) -> None:
    (folder / MANIFEST).write_text("{")


def write_later_manifest(folder: Path) -> None:
    edit_json(folder / MANIFEST, lambda manifest: manifest.update(schema=2))


def flip_one_byte_of_the_drafter(folder: Path) -> None:
    path = folder / "drafter" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")


WEIGHT = f"{Q_PROJ}.weight"
# A damage -> words of the lines that must name it, one line for each fault.
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
    claim_other_bits: [(WEIGHT, "U32 [64, 12]", "U32 [64, 16]")],
    configure_other_bits: [("layers.0.self_attn.q_proj.weight", "[64, 12]", "[64, 16]")],
    break_manifest: [(MANIFEST, "JSON")],
    write_later_manifest: [(MANIFEST, "schema 2")],
    flip_one_byte_of_the_drafter: [("drafter/model.safetensors", "has changed")],
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_every_fault_is_named(damage: Callable[[Path], None], folder: Path) -> None:
    damage(folder)
    faults = faults_of(folder)
    for words in DAMAGES[damage]:
        assert any(all(word in fault for word in words) for fault in faults), (words, faults)
    assert len(faults) == len(DAMAGES[damage]), faults
    assert not any("\n" in fault for fault in faults)


def test_a_new_conversion_has_no_faults(kind: str, converted: Converted) -> None:
    for bits in ("none", "4", "mxfp4"):
        out = converted(kind, Options(bits=bits))
        target, drafter = verify(out)
        assert target.faults == drafter.faults == []
        assert target.num_tensors > drafter.num_tensors > 0
        assert faults_of(out / "drafter") == []


def test_all_faults_are_named_at_once(folder: Path) -> None:
    for damage in (flip_one_byte, add_file, change_config, flip_one_byte_of_the_drafter):
        damage(folder)
    assert len(faults_of(folder)) == 5


def test_a_drafter_of_another_model_is_named(folder: Path, converted: Converted) -> None:
    shutil.rmtree(folder / "drafter")
    assert faults_of(folder) == []
    shutil.copytree(converted("31B", Options()) / "drafter", folder / "drafter")
    (fault,) = faults_of(folder)
    assert "drafter belongs to another model" in fault


def test_a_checkpoint_without_manifest_is_checked_too(pair: PairPaths, folder: Path) -> None:
    published = verify(pair.target)  # as Transformers wrote it
    assert [(found.manifest, found.faults) for found in published] == [(None, [])] * 2
    shorten_tensor(folder)
    (folder / MANIFEST).unlink()
    (fault,) = faults_of(folder)
    assert "layers.0.self_attn.q_proj.weight" in fault


def test_readme_and_hidden_files_may_change(folder: Path) -> None:
    (folder / "README.md").write_text("mine")
    (folder / ".DS_Store").write_text("")
    assert faults_of(folder) == []


def test_the_source_is_the_one_in_the_manifest(whole: Path) -> None:
    verdict = verify(whole)[0]
    manifest = verdict.manifest
    assert manifest is not None

    def source(name: str, revision: str | None) -> str:
        origin = Origin(name, revision)
        return source_of(verdict._replace(manifest=replace(manifest, source=origin)))

    assert source("gemma-4-demo-it", None) == "demo"
    with pytest.raises(UsageError, match=r"folder called target: .*--source"):
        source("target", None)
    with pytest.raises(ModelNotFoundError, match="mgm pull google/none --revision abc"):
        source("google/none", "abc")
    with pytest.raises(UsageError, match="--source"):
        source_of(verdict._replace(manifest=None))


def test_the_command_prints_what_was_checked(whole: Path, mgm: Mgm) -> None:
    done = mgm("verify", whole)
    assert (done.returncode, done.stderr) == (0, "")
    target, drafter = done.stdout.splitlines()
    assert target.startswith(f"{whole}: ")
    assert "6 files as in manifest.json" in target
    assert drafter.startswith(f"{whole / 'drafter'}: ")


def test_the_command_lists_faults_and_exits_with_5(folder: Path, mgm: Mgm) -> None:
    truncate(folder)
    add_file(folder)
    done = mgm("verify", folder, "--quality")  # not measured with faults
    assert done.returncode == 5
    assert len(done.stdout.splitlines()) == 2
    assert done.stderr.startswith(f"mgm: {folder}: 2 faults; ")
    assert done.stderr.count("\n") == 1
    done = mgm("verify", folder, "--json")
    found = json.loads(done.stdout)
    assert done.returncode == 5
    assert not found["ok"]
    assert len(found["faults"]) == 2
    assert found["target"]["manifest"]


def test_wrong_arguments_are_refused(folder: Path, mgm: Mgm) -> None:
    for arguments, code, word in (
        (("nowhere",), 3, "no folder"),
        ((folder, "--tokens", "9"), 2, "--quality"),
    ):
        done = mgm("verify", *arguments)
        assert_refused(done, code, word)
