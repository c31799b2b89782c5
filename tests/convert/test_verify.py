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
from mlx_gemma_mtp.convert import shards
from mlx_gemma_mtp.convert.card import with_quality
from mlx_gemma_mtp.convert.conversion import convert
from mlx_gemma_mtp.convert.manifest import MANIFEST, UNLISTED, Origin, read_manifest
from mlx_gemma_mtp.convert.plan import Options
from mlx_gemma_mtp.convert.verify import source_of, verify

from helpers.arrays import read_arrays
from helpers.broken import Edit, change_arrays, put, set_values, table
from helpers.checkpoints import PairPaths
from helpers.command import Here
from helpers.converted import MOE, Converted, assert_refused
from mlx_gemma_mtp import SamplingParams, load
from mlx_gemma_mtp.errors import ModelNotFoundError, UsageError

FIRST = "model-00001-of-00003.safetensors"
SECOND = "model-00002-of-00003.safetensors"
DEFAULTS = "generation_config.json"
Q_PROJ = "language_model.model.layers.0.self_attn.q_proj"
WEIGHT = f"{Q_PROJ}.weight"


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


EIGHT_BITS = {"bits": 8, "group_size": 64, "mode": "affine"}  # of a tensor of 6
shorten_tensor = rehashed(arrays(lambda found: found.update({WEIGHT: found[WEIGHT][:-1]})))
# An edit of a folder -> words of the lines that must name it, one line for each fault.
DAMAGES: dict[str, tuple[Edit, list[tuple[str, ...]]]] = {
    "a changed byte": (
        edit_bytes(SECOND, lambda data: data[:-100] + bytes([data[-100] ^ 1]) + data[-99:]),
        [(SECOND, "has changed")],
    ),
    "a file cut short": (
        edit_bytes(SECOND, lambda data: data[:-3]),
        [(SECOND, "by 3 bytes")],
    ),
    "a longer file": (
        edit_bytes(DEFAULTS, lambda data: data + b"\n"),
        [(DEFAULTS, "too long by 1 bytes")],
    ),
    "a missing shard": (remove(SECOND), [(SECOND, "is missing")]),
    "no config": (remove("config.json"), [("config.json", "is missing")]),
    "no defaults": (remove(DEFAULTS), [(DEFAULTS, "is missing")]),
    "another file": (put("model-00004.safetensors", ""), [("00004.safetensors", "not list")]),
    "another config": (
        edit_bytes("config.json", lambda data: data.replace(b'window": 16', b'window": 17')),
        [("config.json", "changed"), ("another model", "sliding window")],
    ),
    "a broken config": (put("config.json", "{"), [("config.json", "cut short")]),
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
            arrays(lambda found: found.update({"more": mx.zeros((2, 2))})),
            entry(shards.INDEX, "weight_map", "more", FIRST),
        ),
        [("more", "not in the manifest")],
    ),
    "a misplaced tensor": (
        rehashed(entry(shards.INDEX, "weight_map", WEIGHT, SECOND)),
        [(shards.INDEX, WEIGHT, FIRST, SECOND)],
    ),
    "other bits in the manifest": (
        entry(MANIFEST, "tensors", WEIGHT, EIGHT_BITS),
        [(WEIGHT, "U32 [64, 12]", "U32 [64, 16]")],
    ),
    "other bits in the config": (
        rehashed(entry("config.json", "quantization", Q_PROJ, EIGHT_BITS)),
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
    assert "layers.0.self_attn.q_proj.weight" in fault


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


def test_the_manifest_lists_files_and_tensors(kind: str, converted: Converted) -> None:
    out = converted(kind, Options())
    for folder, of, source in (
        (out, "target", "target"),
        (out / "drafter", "drafter", "target-assistant"),
    ):
        found = read_manifest(folder)
        assert (found.kind, found.source) == (of, Origin(source, None))
        there = {path.name for path in folder.iterdir() if path.is_file()} - set(UNLISTED)
        assert found.files.keys() == there
        for name, record in found.files.items():
            data = (folder / name).read_bytes()
            assert record.bytes == len(data)
            assert record.sha256 == hashlib.sha256(data).hexdigest()
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


def test_the_manifest_names_repository_and_commit(
    pairs: dict[str, PairPaths], tmp_path: Path
) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = tmp_path / "models--google--gemma-4-tiny-it" / "snapshots" / commit
    shutil.copytree(pairs[MOE].target, snapshot)
    convert(snapshot, tmp_path / "out", Options(), drafter=pairs[MOE].drafter)
    assert read_manifest(tmp_path / "out").source == Origin("google/gemma-4-tiny-it", commit)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "base_model: google/gemma-4-tiny-it" in card
    assert commit in card


def test_the_card_takes_quality_and_replaces_it(converted: Converted) -> None:
    card = (converted(MOE, Options()) / "README.md").read_text()
    assert "mgm chat --model out" in card
    assert "`*.router.proj`" in card
    once = with_quality(card, "Perplexity 7.1")
    assert "Not measured" not in once
    twice = with_quality(once, "Perplexity 7.2")
    assert "Perplexity 7.1" not in twice
    assert twice.count("Perplexity 7.2") == 1
    assert twice.replace("Perplexity 7.2", "Perplexity 7.1") == once
    assert with_quality("# Mine\n", "Perplexity 7").startswith("# Mine\n\n## Quality\n")


@pytest.mark.slow
def test_tokenizer_and_template_are_copied(tmp_path: Path) -> None:
    convert("demo", tmp_path / "demo", Options(bits="8"))
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]  # nothing unfinished is left
    assert {path.name for path in (tmp_path / "demo").iterdir()} == {
        *("README.md", "chat_template.jinja", "config.json", "drafter", "generation_config.json"),
        *("manifest.json", "model.safetensors", shards.INDEX),
        *("tokenizer.json", "tokenizer_config.json"),
    }
    with load(tmp_path / "demo") as engine:
        done = engine.generate("What is 17 + 25?", SamplingParams(temperature=0))[0]
    assert done.text == "17 + 25 = 42"
    assert done.stats.accepted > 0
