"""`mgm verify` names every fault of a converted folder, and finds none in an intact one."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import pytest
from mlx_gemma_mtp.convert import shards
from mlx_gemma_mtp.convert.conversion import convert
from mlx_gemma_mtp.convert.manifest import MANIFEST, Origin
from mlx_gemma_mtp.convert.plan import Options
from mlx_gemma_mtp.convert.verify import source_of, verify

from helpers.broken import Edit, change_arrays, put, set_values, table
from helpers.checkpoints import PairPaths
from helpers.converted import MOE, Converted, Mgm, assert_refused, edit_json
from mlx_gemma_mtp.errors import ModelNotFoundError, UsageError

FIRST = "model-00001-of-00003.safetensors"
SECOND = "model-00002-of-00003.safetensors"
Q_PROJ = "language_model.model.layers.0.self_attn.q_proj"
WEIGHT = f"{Q_PROJ}.weight"


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


def edit_bytes(name: str, edit: Callable[[bytes], bytes]) -> Edit:
    return lambda folder: (folder / name).write_bytes(edit((folder / name).read_bytes()))


def rehashed(*edits: Edit) -> Edit:
    """Edit, then make the manifest list the files as they are now."""

    def edit(folder: Path) -> None:
        for one in edits:
            one(folder)
        found = json.loads((folder / MANIFEST).read_text())
        for name, record in found["files"].items():
            content = (folder / name).read_bytes()
            record |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        (folder / MANIFEST).write_text(json.dumps(found))

    return edit


def arrays(change: Callable[[dict[str, mx.array]], object]) -> Edit:
    return change_arrays(change, FIRST)


def index(name: str, file: str) -> Edit:
    return lambda folder: edit_json(
        folder / shards.INDEX, lambda found: found["weight_map"].update({name: file})
    )


def other_bits(file: str, block: str, name: str) -> Edit:
    """Have a file say 8 bits for a tensor of 6."""
    entry = {"bits": 8, "group_size": 64, "mode": "affine"}
    return lambda folder: edit_json(
        folder / file, lambda found: found[block].setdefault(name, {}).update(entry)
    )


shorten_tensor = rehashed(arrays(lambda found: found.update({WEIGHT: found[WEIGHT][:-1]})))
# An edit of a folder -> words of the lines that must name it, one line for each fault.
DAMAGES: dict[str, tuple[Edit, list[tuple[str, ...]]]] = {
    "a changed byte": (
        edit_bytes(SECOND, lambda data: data[:-100] + bytes([data[-100] ^ 1]) + data[-99:]),
        [(SECOND, "has changed")],
    ),
    "a file cut short": (
        edit_bytes(SECOND, lambda data: data[:-3]),
        [(SECOND, "cut short by 3 bytes")],
    ),
    "a longer file": (
        edit_bytes("generation_config.json", lambda data: data + b"\n"),
        [("generation_config.json", "too long by 1 bytes")],
    ),
    "a missing shard": (lambda folder: (folder / SECOND).unlink(), [(SECOND, "is missing")]),
    "no config": (
        lambda folder: (folder / "config.json").unlink(),
        [("config.json", "is missing")],
    ),
    "no defaults": (
        lambda folder: (folder / "generation_config.json").unlink(),
        [("generation_config.json", "is missing")],
    ),
    "another file": (
        put("model-00004.safetensors", b""),
        [("model-00004.safetensors", "not list")],
    ),
    "another config": (
        edit_bytes("config.json", lambda data: data.replace(b'window": 16', b'window": 17')),
        [("config.json", "changed"), ("another model", "sliding window")],
    ),
    "a broken config": (
        edit_bytes("config.json", lambda data: data.replace(b":", b";")),
        [("config.json", "changed")],
    ),
    "a shorter tensor": (
        shorten_tensor,
        [(WEIGHT, "U32 [63, "), ("layers.0.self_attn.q_proj.weight", "[63, ")],
    ),
    "a lost tensor": (
        rehashed(arrays(lambda found: found.pop(WEIGHT))),
        [("layers.0.self_attn.q_proj.weight", "missing"), (shards.INDEX, WEIGHT)],
    ),
    "another tensor": (
        rehashed(
            arrays(lambda found: found.update({"more": mx.zeros((2, 2))})), index("more", FIRST)
        ),
        [("more", "not in the manifest")],
    ),
    "a misplaced tensor": (
        rehashed(index(WEIGHT, SECOND)),
        [(shards.INDEX, WEIGHT, FIRST, SECOND)],
    ),
    "other bits in the manifest": (
        other_bits(MANIFEST, "tensors", WEIGHT),
        [(WEIGHT, "U32 [64, 12]", "U32 [64, 16]")],
    ),
    "other bits in the config": (
        rehashed(other_bits("config.json", "quantization", Q_PROJ)),
        [("layers.0.self_attn.q_proj.weight", "[64, 12]", "[64, 16]")],
    ),
    "a broken manifest": (put(MANIFEST, "{"), [(MANIFEST, "JSON")]),
    "a later manifest": (set_values({"schema": 2}, MANIFEST), [(MANIFEST, "schema 2")]),
    "a changed drafter": (
        edit_bytes("drafter/model.safetensors", lambda data: data[:-1] + b"\x7f"),
        [("drafter/model.safetensors", "has changed")],
    ),
}


@table(DAMAGES)
def test_every_fault_is_named(case: tuple[Edit, list[tuple[str, ...]]], folder: Path) -> None:
    damage, expected = case
    damage(folder)
    faults = faults_of(folder)
    for words in expected:
        assert any(all(word in fault for word in words) for fault in faults), (words, faults)
    assert len(faults) == len(expected), faults
    assert not any("\n" in fault for fault in faults)


def test_a_new_conversion_has_no_faults(kind: str, converted: Converted) -> None:
    for bits in ("none", "4", "mxfp4"):
        out = converted(kind, Options(bits=bits))
        target, drafter = verify(out)
        assert target.faults == drafter.faults == []
        assert target.num_tensors > drafter.num_tensors > 0
        assert faults_of(out / "drafter") == []


def test_all_faults_are_named_at_once(folder: Path) -> None:
    for name in ("a changed byte", "another file", "another config", "a changed drafter"):
        DAMAGES[name][0](folder)
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


def test_the_command_prints_what_was_checked(whole: Path, mgm_here: Mgm) -> None:
    done = mgm_here("verify", whole)
    assert (done.returncode, done.stderr) == (0, "")
    target, drafter = done.stdout.splitlines()
    assert target.startswith(f"{whole}: ")
    assert "6 files as in manifest.json" in target
    assert drafter.startswith(f"{whole / 'drafter'}: ")


def test_the_command_lists_faults_and_exits_with_5(folder: Path, mgm_here: Mgm) -> None:
    DAMAGES["a file cut short"][0](folder)
    DAMAGES["another file"][0](folder)
    done = mgm_here("verify", folder, "--quality")  # not measured with faults
    assert done.returncode == 5
    assert len(done.stdout.splitlines()) == 2
    assert done.stderr.startswith(f"mgm: {folder}: 2 faults; ")
    assert done.stderr.count("\n") == 1
    done = mgm_here("verify", folder, "--json")
    found = json.loads(done.stdout)
    assert done.returncode == 5
    assert not found["ok"]
    assert len(found["faults"]) == 2
    assert found["target"]["manifest"]


def test_wrong_arguments_are_refused(folder: Path, mgm_here: Mgm) -> None:
    for arguments, code, word in (
        (("nowhere",), 3, "no folder"),
        ((folder, "--tokens", "9"), 2, "--quality"),
    ):
        done = mgm_here("verify", *arguments)
        assert_refused(done, code, word)
