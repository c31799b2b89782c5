"""A converted folder has what its manifest lists, and `mgm verify` names every fault."""

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
from mlx_gemma_mtp.convert.card import with_quality
from mlx_gemma_mtp.convert.conversion import convert
from mlx_gemma_mtp.convert.manifest import MANIFEST, UNLISTED, FileRecord, Origin, read_manifest
from mlx_gemma_mtp.convert.plan import Options
from mlx_gemma_mtp.convert.verify import source_of, verify

from helpers.arrays import read_arrays
from helpers.broken import Edit, change_arrays, put, set_values, table
from helpers.checkpoints import PairPaths
from helpers.command import Here
from helpers.converted import MOE, Converted, assert_refused
from mlx_gemma_mtp.errors import ModelNotFoundError, UsageError
from mlx_gemma_mtp.files.checkpoint import INDEX

FIRST = "model-00001-of-00003.safetensors"
SECOND = "model-00002-of-00003.safetensors"
DEFAULTS = "generation_config.json"
Q_PROJ = "language_model.model.layers.0.self_attn.q_proj"
WEIGHT = f"{Q_PROJ}.weight"
OWN_NAME = "layers.0.self_attn.q_proj.weight"
DRAFTER = "drafter/model.safetensors"


@pytest.fixture(scope="module")
def whole(pairs: dict[str, PairPaths], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A converted pair whose target is in three files."""
    out = tmp_path_factory.mktemp("whole") / "out"
    convert(pairs[MOE].target, out, Options(shard_bytes=250_000))
    return out


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy of it, to be damaged."""
    return shutil.copytree(whole, tmp_path / "out")


def faults_of(folder: Path) -> list[str]:
    return [fault for verdict in verify(folder) for fault in verdict.faults]


def edit_bytes(name: str, edit: Callable[[bytes], bytes]) -> Edit:
    return lambda folder: (folder / name).write_bytes(edit((folder / name).read_bytes()))


def flip(data: bytes) -> bytes:
    return data[:-100] + bytes([data[-100] ^ 1]) + data[-99:]


def remove(name: str) -> Edit:
    return lambda folder: (folder / name).unlink()


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


def entry(file: str, block: str, name: str, value: Any) -> Edit:
    """Set an entry of a block in a JSON file; its other keys stay if it is an object."""

    def edit(folder: Path) -> None:
        content = json.loads((folder / file).read_text())
        own = content[block].get(name)
        content[block][name] = own | value if isinstance(own, dict) else value
        (folder / file).write_text(json.dumps(content))

    return edit


def indexed(name: str, file: str) -> Edit:
    return entry(INDEX, "weight_map", name, file)


EIGHT_BITS = {"bits": 8, "group_size": 64, "mode": "affine"}  # of a tensor of 6
shorten_tensor = rehashed(arrays(lambda found: found.update({WEIGHT: found[WEIGHT][:-1]})))
# An edit of a folder -> words of the lines that must name it, one line for each fault.
DAMAGES: dict[str, tuple[Any, ...]] = {
    "a changed byte": (edit_bytes(SECOND, flip), (SECOND, "has changed")),
    "a file cut short": (
        edit_bytes(SECOND, lambda old: old[:-3]),
        (SECOND, "cut short by 3 bytes"),
    ),
    "a longer file": (edit_bytes(DEFAULTS, lambda old: old + b"!"), (DEFAULTS, "long by 1 bytes")),
    "a missing shard": (remove(SECOND), (SECOND, "is missing")),
    "no config": (remove("config.json"), ("config.json", "is missing")),
    "no defaults": (remove(DEFAULTS), (DEFAULTS, "is missing")),
    "another file": (put("model-00004.safetensors", ""), ("00004.safetensors", "not list")),
    "another config": (
        edit_bytes("config.json", lambda old: old.replace(b'window": 16', b'window": 17')),
        ("config.json", "changed"),
        ("another model", "sliding window"),
    ),
    "a broken config": (put("config.json", "{"), ("config.json", "cut short")),
    "a shorter tensor": (shorten_tensor, (WEIGHT, "U32 [63, "), (OWN_NAME, "[63, ")),
    "a lost tensor": (
        rehashed(arrays(lambda found: found.pop(WEIGHT))),
        (OWN_NAME, "missing"),
        (INDEX, WEIGHT),
    ),
    "another tensor": (
        rehashed(arrays(lambda found: found.update(more=mx.zeros((2, 2)))), indexed("more", FIRST)),
        ("more", "not in the manifest"),
    ),
    "a misplaced tensor": (rehashed(indexed(WEIGHT, SECOND)), (INDEX, WEIGHT, FIRST, SECOND)),
    "other bits in the manifest": (
        entry(MANIFEST, "tensors", WEIGHT, EIGHT_BITS),
        (WEIGHT, "U32 [64, 12]", "U32 [64, 16]"),
    ),
    "a broken manifest": (put(MANIFEST, "{"), (MANIFEST, "JSON")),
    "a later manifest": (set_values({"schema": 2}, MANIFEST), (MANIFEST, "schema 2")),
    "a changed drafter": (edit_bytes(DRAFTER, flip), (DRAFTER, "has changed")),
}


@table(DAMAGES)
def test_every_fault_is_named(case: tuple[Any, ...], folder: Path) -> None:
    damage, *expected = case
    damage(folder)
    faults = faults_of(folder)
    for words in expected:
        assert any(all(word in fault for word in words) for fault in faults), (words, faults)
    assert len(faults) == len(expected), faults
    assert not any("\n" in fault for fault in faults)


def test_a_drafter_of_another_model_is_named_and_other_files_may_change(
    folder: Path, converted: Converted
) -> None:
    shutil.rmtree(folder / "drafter")
    (folder / "README.md").write_text("mine")
    (folder / ".DS_Store").write_text("")
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
    assert OWN_NAME in fault


def test_the_source_is_the_one_in_the_manifest(whole: Path) -> None:
    verdict, manifest = verify(whole)[0], read_manifest(whole)

    def source(name: str, revision: str | None) -> str:
        other = replace(manifest, source=Origin(name, revision))
        return source_of(verdict._replace(manifest=other))

    assert source("gemma-4-demo-it", None) == "demo"
    with pytest.raises(UsageError, match=r"folder called target: .*--source"):
        source("target", None)
    with pytest.raises(ModelNotFoundError, match="mgm pull google/none --revision abc"):
        source("google/none", "abc")
    with pytest.raises(UsageError, match="--source"):
        source_of(verdict._replace(manifest=None))


def test_the_command_prints_what_was_checked(whole: Path, mgm_here: Here) -> None:
    done = mgm_here("verify", whole)
    assert (done.returncode, done.stderr) == (0, "")
    target, drafter = done.stdout.splitlines()
    assert target.startswith(f"{whole}: ")
    assert "6 files as in manifest.json" in target
    assert drafter.startswith(f"{whole / 'drafter'}: ")
    assert_refused(mgm_here("verify", "nowhere"), 3, "no folder")
    assert_refused(mgm_here("verify", whole, "--tokens", "9"), 2, "--quality")


def test_the_command_lists_all_faults_and_exits_with_5(folder: Path, mgm_here: Here) -> None:
    for name in ("a changed byte", "another file", "another config", "a changed drafter"):
        DAMAGES[name][0](folder)
    done = mgm_here("verify", folder, "--quality")  # not measured with faults
    assert (done.returncode, len(done.stdout.splitlines())) == (5, 5)
    assert done.stderr.startswith(f"mgm: {folder}: 5 faults; ")
    assert done.stderr.count("\n") == 1
    done = mgm_here("verify", folder, "--json")
    found = json.loads(done.stdout)
    assert (done.returncode, found["ok"], len(found["faults"])) == (5, False, 5)
    assert found["target"]["manifest"]


def test_a_new_conversion_has_no_faults_and_what_its_manifest_lists(
    kind: str, converted: Converted
) -> None:
    for bits in ("none", "4", "mxfp4"):
        out = converted(kind, Options(bits=bits))
        target, drafter = verify(out)
        assert target.faults == drafter.faults == faults_of(out / "drafter") == []
        assert target.num_tensors > drafter.num_tensors > 0

    out = converted(kind, Options())
    for folder, source in ((out, "target"), (out / "drafter", "target-assistant")):
        found = read_manifest(folder)
        assert found.kind == ("target" if folder == out else "drafter")
        assert found.source == Origin(source, None)
        there = {path.name for path in folder.iterdir() if path.is_file()} - set(UNLISTED)
        assert found.files.keys() == there
        for name, record in found.files.items():
            data = (folder / name).read_bytes()
            assert record == FileRecord(len(data), hashlib.sha256(data).hexdigest())
        arrays = read_arrays(folder)
        quantized = {name for name in arrays if name.endswith((".scales", ".biases"))}
        assert arrays.keys() - quantized == found.tensors.keys()
        nbytes = sum(array.nbytes for array in arrays.values())
        assert found.bits_per_weight == pytest.approx(8 * nbytes / found.parameters, abs=1e-4)
        for name, record in found.tensors.items():
            width = record.shape[-1]
            packed = width if record.bits is None else width * record.bits // 32
            assert arrays[name].shape == (*record.shape[:-1], packed)
        assert json.loads(found.to_json()) == json.loads((folder / "manifest.json").read_text())


def test_the_card_names_repository_and_commit_and_takes_quality(
    pairs: dict[str, PairPaths], tmp_path: Path, out: Path
) -> None:
    snapshot = tmp_path / "models--google--gemma-4-tiny-it" / "snapshots" / "0123abc"
    shutil.copytree(pairs[MOE].target, snapshot)
    convert(snapshot, out, Options(), drafter=pairs[MOE].drafter)
    assert read_manifest(out).source == Origin("google/gemma-4-tiny-it", "0123abc")
    card = (out / "README.md").read_text()
    assert "base_model: google/gemma-4-tiny-it" in card
    assert "at commit `0123abc`" in card
    assert "mgm chat --model out" in card
    assert "`*.router.proj`" in card
    once = with_quality(card, "Perplexity 7.1")
    assert "Not measured" not in once
    twice = with_quality(once, "Perplexity 7.2")
    assert "Perplexity 7.1" not in twice
    assert twice.count("Perplexity 7.2") == 1
    assert twice.replace("Perplexity 7.2", "Perplexity 7.1") == once
    assert with_quality("# Mine\n", "Perplexity 7").startswith("# Mine\n\n## Quality\n")


def test_tokenizer_and_template_are_copied(converted: Converted) -> None:
    out = converted("demo", Options(bits="8"))
    assert [path.name for path in out.parent.iterdir()] == ["out"]  # nothing unfinished is left
    assert {path.name for path in out.iterdir()} == {
        *("README.md", "chat_template.jinja", "config.json", "drafter", "generation_config.json"),
        *("manifest.json", "model.safetensors", INDEX),
        *("tokenizer.json", "tokenizer_config.json"),
    }
