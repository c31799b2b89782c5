"""The files next to converted weights: manifest, model card, tokenizer and template."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from mlx_gemma_mtp.convert import shards
from mlx_gemma_mtp.convert.card import with_quality
from mlx_gemma_mtp.convert.conversion import convert
from mlx_gemma_mtp.convert.manifest import UNLISTED, read_manifest
from mlx_gemma_mtp.convert.plan import Options

from helpers.checkpoints import PairPaths
from helpers.converted import MOE, Converted, read_arrays
from mlx_gemma_mtp import SamplingParams, load


def test_the_manifest_lists_files_and_tensors(kind: str, converted: Converted) -> None:
    out = converted(kind, Options())
    for folder, of, source in (
        (out, "target", "target"),
        (out / "drafter", "drafter", "target-assistant"),
    ):
        found = read_manifest(folder)
        assert (found.kind, found.source.name, found.source.revision) == (of, source, None)
        there = {path.name for path in folder.iterdir() if path.is_file()} - set(UNLISTED)
        assert found.files.keys() == there
        for name, record in found.files.items():
            data = (folder / name).read_bytes()
            assert record.bytes == len(data)
            assert record.sha256 == hashlib.sha256(data).hexdigest()
        arrays = read_arrays(folder)
        assert {
            name for name in arrays if not name.endswith((".scales", ".biases"))
        } == found.tensors.keys()
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
    found = read_manifest(tmp_path / "out")
    assert (found.source.name, found.source.revision) == ("google/gemma-4-tiny-it", commit)
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
