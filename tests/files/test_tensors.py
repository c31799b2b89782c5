"""Which file a tensor comes from, under which name, and that none is passed over."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from helpers.arrays import AFFINE, Arrays, assert_same_bits, parameters, read_arrays, write
from helpers.broken import load_refusal
from helpers.logits import logits
from helpers.random_pair import SHAPE
from helpers.stored import CONFIG, quantized, rewritten
from mlx_gemma_mtp.errors import CheckpointError
from mlx_gemma_mtp.files.checkpoint import INDEX, WHOLE
from mlx_gemma_mtp.files.tensors import canonical_name, read_tensors
from mlx_gemma_mtp.files.weights import load_drafter, load_target, loading_bytes, open_target
from mlx_gemma_mtp.model.config import DrafterConfig, TargetConfig
from mlx_gemma_mtp.model.drafter import Drafter

NORM, EMBEDDING, HEAD = "model.norm.weight", "model.embed_tokens.weight", "lm_head.weight"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


@pytest.fixture(name="shards")
def in_two_files(mixture: Path, tmp_path: Path) -> Path:
    """The mixture in two files with an index; the first file holds the layers."""
    folder, arrays = tmp_path / "shards", read_arrays(mixture)
    folder.mkdir()
    shutil.copy(mixture / "config.json", folder)
    files = {name: FIRST if ".layers." in name else SECOND for name in arrays}
    for file in (FIRST, SECOND):
        mine = {name: array for name, array in arrays.items() if files[name] == file}
        mx.save_safetensors(str(folder / file), mine)
    (folder / INDEX).write_text(json.dumps({"weight_map": files}))
    return folder


def add(path: Path, arrays: Arrays) -> None:
    """Add tensors to a file."""
    stored = dict(mx.load(str(path)))
    mx.eval(stored)
    mx.save_safetensors(str(path), stored | arrays)


STALE = {NORM: mx.zeros((SHAPE["hidden_size"],))}


def test_the_index_decides_which_file_a_tensor_comes_from(mixture: Path, shards: Path) -> None:
    add(shards / FIRST, STALE)
    assert read_tensors(shards)["norm.weight"].path.name == SECOND
    assert_same_bits(load_target(shards), load_target(mixture))
    listed = json.loads((shards / INDEX).read_text())
    listed["weight_map"][NORM] = FIRST
    (shards / INDEX).write_text(json.dumps(listed))
    assert load_target(shards).norm.weight.sum().item() == 0


def test_a_tensor_twice_is_refused_if_nothing_decides(mixture: Path, shards: Path) -> None:
    add(shards / FIRST, STALE)
    (shards / INDEX).unlink()
    message = load_refusal(shards, None)
    assert all(word in message for word in ("norm.weight", FIRST, SECOND, "remove"))


def test_a_tensor_under_two_names_is_refused(mixture: Path, tmp_path: Path) -> None:
    other = {"model.language_model.norm.weight": STALE[NORM]}
    folder = rewritten(mixture, tmp_path / "two", lambda arrays: arrays.update(other))
    assert "model.language_model.norm.weight" in load_refusal(folder, None)


def test_a_whole_file_next_to_shards_is_refused_unless_one_of_them_is_incomplete(
    mixture: Path, shards: Path
) -> None:
    shutil.copy(mixture / WHOLE, shards)
    assert WHOLE in load_refusal(shards, None)  # with an index
    (shards / INDEX).rename(shards / "index")
    assert WHOLE in load_refusal(shards, None)
    (shards / "index").rename(shards / INDEX)  # what an index is left of
    for shard in (FIRST, SECOND):
        (shards / shard).unlink()
    assert_same_bits(load_target(shards), load_target(mixture))
    (shards / WHOLE).unlink()
    assert FIRST in load_refusal(shards, None)


@pytest.mark.parametrize(
    "prefix",
    [
        *("model.language_model.", "language_model.model.", "language_model.", "", "model.model."),
        *("base_model.model.model.", "module.model.", "_orig_mod.model.", "model._orig_mod."),
        *("model.model.model.", "language_model.model.language_model."),
    ],
)
def test_prefixes_of_other_tools_are_read(mixture: Path, tmp_path: Path, prefix: str) -> None:
    def rename(arrays: Arrays) -> None:
        for name in list(arrays):
            arrays[name.replace("model.", prefix, 1)] = arrays.pop(name)

    folder = rewritten(mixture, tmp_path / "renamed", rename)
    assert read_tensors(folder).keys() == read_tensors(mixture).keys()
    assert canonical_name(f"{prefix}lm_head.weight".replace("model._", "_")) == HEAD


UNKNOWN = {
    "an adapter's matrix": "model.layers.0.self_attn.q_proj.lora_A.weight",
    "an adapter's head": "base_model.model.lm_head.modules_to_save.default.weight",
    "a layer under an adapter": "model.layers.0.self_attn.q_proj.base_layer.weight",
    "a bias": "model.layers.0.self_attn.q_proj.bias",
    "sinks": "model.layers.3.self_attn.sinks",
    "a layer too many": "model.layers.4.mlp.up_proj.weight",
    "a module of another kind": "model.per_layer_model_projection.weight",
    "a module within the language model": "model.language_model.embed_scale",
    "scales of nothing": "model.layers.0.input_layernorm.scales",
    "an expert too few": "model.layers.0.experts.1.down_proj.weight",
}


@pytest.mark.parametrize("case", UNKNOWN)
def test_a_tensor_that_the_text_model_has_no_place_for_is_refused(
    mixture: Path, tmp_path: Path, case: str
) -> None:
    more = {UNKNOWN[case]: mx.ones((64, 64))}
    folder = rewritten(mixture, tmp_path / "more", lambda arrays: arrays.update(more))
    message = load_refusal(folder, None)
    assert canonical_name(UNKNOWN[case]) in message.replace("base_model.model.", "")
    assert "download" not in message


@pytest.mark.parametrize("prefix", ["transformer.", "model.text_model."])
def test_names_of_another_tool_are_named_not_called_missing(
    mixture: Path, tmp_path: Path, prefix: str
) -> None:
    def rename(arrays: Arrays) -> None:
        for name in list(arrays):
            arrays[f"{prefix}{name}"] = arrays.pop(name)

    message = load_refusal(rewritten(mixture, tmp_path / "renamed", rename), None)
    assert f"only such as {prefix.removeprefix('model.')}" in message
    assert "missing" not in message


HARMLESS = (
    *("model.vision_tower.x.weight", "model.audio_tower.y.qweight", "embed_vision.weight"),
    *("model.layers.0.self_attn.rotary_emb.inv_freq", "score.weight", "v_head.summary.bias"),
    *("model.layers.3.self_attn.v_proj.weight", "model.layers.0.mlp.up_proj.input_max"),
)


def test_tensors_that_no_text_needs_are_left_in_their_files(mixture: Path, tmp_path: Path) -> None:
    more = {name: mx.ones((64, 64)) for name in HARMLESS}
    folder = rewritten(mixture, tmp_path / "more", lambda arrays: arrays.update(more))
    assert_same_bits(load_target(folder), load_target(mixture))


@pytest.mark.parametrize("adapter", ["adapter_model.safetensors", "adapters.safetensors"])
def test_an_adapter_is_refused_by_name(mixture: Path, tmp_path: Path, adapter: str) -> None:
    (tmp_path / adapter).write_bytes(b"")
    for _ in range(3):  # alone, with a config, next to whole weights
        message = load_refusal(tmp_path, None)
        assert adapter in message
        assert "merge it" in message
        added = "config.json" if not (tmp_path / "config.json").exists() else WHOLE
        shutil.copy(mixture / added, tmp_path)


@pytest.mark.parametrize(
    ("file", "kind"), [("x-Q4_K_M.gguf", "GGUF"), ("pytorch_model.bin", "PyTorch")]
)
def test_other_formats_are_named(mixture: Path, tmp_path: Path, file: str, kind: str) -> None:
    (tmp_path / file).write_bytes(b"")
    assert kind in load_refusal(tmp_path, None)
    shutil.copy(mixture / "config.json", tmp_path)
    assert kind in load_refusal(tmp_path, None)
    google_s = shutil.copytree(tmp_path, tmp_path / "gemma-4-12B-it-qat-q4_0-gguf")
    message = load_refusal(google_s, None)
    assert message.endswith("use google/gemma-4-12B-it-qat-q4_0-unquantized")


# How a stored head is changed, and whether it is then another one than the embedding.
HEADS: dict[str, tuple[dict[str, Any], Callable[[mx.array], mx.array], bool]] = {
    "another": ({}, lambda head: mx.roll(head, 1, axis=0), True),
    "another, flag true": ({"tie_word_embeddings": True}, lambda head: -head, True),
    "another, flag false": ({"tie_word_embeddings": False}, lambda head: -head, True),
    "the same": ({}, lambda head: head, False),
    "the same, flag false": ({"tie_word_embeddings": False}, lambda head: head, False),
    "one number differs": ({}, lambda head: mx.concatenate([head[:-1], -head[-1:]]), True),
}


@pytest.mark.parametrize("in_8_bits", [False, True])
@pytest.mark.parametrize("case", HEADS)
def test_a_head_of_its_own_is_used_and_one_that_is_the_embedding_is_not_loaded(
    mixture: Path, tmp_path: Path, case: str, in_8_bits: bool
) -> None:
    settings, change, differs = HEADS[case]

    def add_head(arrays: Arrays) -> None:
        arrays[HEAD] = change(arrays[EMBEDDING])
        if in_8_bits:
            for name in (HEAD, EMBEDDING):
                arrays |= quantized(arrays, name, **AFFINE | {"bits": 8})

    folder = rewritten(mixture, tmp_path / "head", add_head, **settings)
    found, plain = load_target(folder), load_target(mixture)
    if in_8_bits:
        nn.quantize(plain, bits=8, class_predicate=lambda path, _: path == "embed_tokens")
    assert ("lm_head" in found) == differs
    hidden = mx.random.normal((3, SHAPE["hidden_size"]))
    stored = read_arrays(folder)
    head = [stored[f"lm_head.{part}"] for part in ("weight", "scales", "biases") if in_8_bits]
    weight = mx.dequantize(*head, bits=8) if in_8_bits else stored[HEAD]
    expected = hidden @ weight.T
    np.testing.assert_allclose(np.array(found.logits(hidden)), np.array(expected), atol=1e-4)
    if not differs:
        assert_same_bits(found, plain)
        np.testing.assert_array_equal(logits(found), logits(plain))


def test_a_head_of_its_own_is_counted_and_quantized(mixture: Path, tmp_path: Path) -> None:
    def add_head(arrays: Arrays) -> None:
        arrays[HEAD] = -arrays[EMBEDDING]

    folder = rewritten(mixture, tmp_path / "head", add_head)
    sizes = [loading_bytes(open_target(one), one) for one in (folder, mixture)]
    assert sizes[0] - sizes[1] == read_arrays(folder)[HEAD].nbytes
    assert load_target(folder, bits=4).lm_head.bits == 8


@pytest.mark.parametrize("multimodal", [False, True])
def test_an_untied_head_that_is_missing_is_refused(
    mixture: Path, tmp_path: Path, multimodal: bool
) -> None:
    def stored(top: bool, text: bool) -> Path:
        config = CONFIG | {"tie_word_embeddings": text}
        if multimodal:
            config = {"model_type": "gemma4", "text_config": config, "tie_word_embeddings": top}
        folder = shutil.copytree(mixture, tmp_path / f"{top} {text}")
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    assert "tie_word_embeddings" in load_refusal(stored(False, False), None)
    if multimodal:  # the flag of the whole counts, as in Transformers
        assert "tie_word_embeddings" in load_refusal(stored(False, True), None)
        load_target(stored(True, False))


def test_a_drafter_with_a_head_of_its_own_is_refused(tmp_path: Path) -> None:
    config = {
        "model_type": "gemma4_assistant",
        "text_config": SHAPE | {"num_kv_shared_layers": 4},
        "backbone_hidden_size": SHAPE["hidden_size"],
    }
    target = TargetConfig.from_dict(CONFIG)
    drawn = parameters(Drafter(DrafterConfig.from_dict(config)))
    arrays = {f"model.{name}": array for name, array in drawn.items()}
    plain = write(tmp_path / "plain", config, arrays)

    def with_head(name: str, factor: float) -> Path:
        head = {HEAD: factor * arrays[EMBEDDING]}
        return rewritten(plain, tmp_path / name, lambda arrays: arrays.update(head))

    load_drafter(with_head("same", 1), target)
    with pytest.raises(CheckpointError, match=r"lm_head\.weight"):
        load_drafter(with_head("other", 2), target)
