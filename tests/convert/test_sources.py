"""What converting takes as full-precision weights: the same that loading takes, by the tensors."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_gemma_mtp.convert.conversion import convert
from mlx_gemma_mtp.convert.manifest import Origin
from mlx_gemma_mtp.convert.plan import Options, plan_target
from mlx_gemma_mtp.convert.source import Source
from mlx_gemma_mtp.convert.streamed import final_hidden
from mlx_gemma_mtp.convert.verify import verify

from helpers.arrays import Arrays, assert_same_bits, read_arrays
from helpers.broken import refusal
from helpers.command import Here
from helpers.converted import assert_mlx_lm_agrees, assert_same_arrays, hashes
from helpers.logits import logits, text
from helpers.stored import CONFIG, WIDTH, quantized, rewritten
from mlx_gemma_mtp.engine.worker import mlx_worker
from mlx_gemma_mtp.errors import CheckpointError, UsageError
from mlx_gemma_mtp.files.checkpoint import INDEX, read_config
from mlx_gemma_mtp.files.tensors import StoredTensor
from mlx_gemma_mtp.files.weights import load_target

EMBEDDING, HEAD, Q_PROJ = "embed_tokens", "lm_head.weight", "layers.0.self_attn.q_proj"
COMPRESSED = {"config_groups": {"group_0": {"weights": {"num_bits": 4}}}, "format": "q4_0"}
UNQUANTIZED = Options(bits="none")


@pytest.fixture(scope="session", name="done")
def converted_mixture(mixture: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The mixture in 4 bits."""
    out = tmp_path_factory.mktemp("done") / "out"
    convert(mixture, out, Options(), drafter=None)
    return out


def converted(source: Path, out: Path, options: Options | None = None) -> Path:
    convert(source, out, options or Options(), drafter=None)
    return out


@pytest.mark.parametrize(
    "left_over",
    [
        {"quantization": {"group_size": 64, "bits": 4, "mode": "affine"}},
        {"quantization_config": COMPRESSED},
        {"quantization_config": {"quant_method": "compressed-tensors"} | COMPRESSED},
    ],
)
def test_unquantized_weights_convert_whatever_block_was_left_in_their_config(
    left_over: dict[str, Any], mixture: Path, done: Path, tmp_path: Path
) -> None:
    source = rewritten(mixture, tmp_path / "left", **left_over)
    assert hashes(converted(source, tmp_path / "out")) == hashes(done)
    found = read_config(converted(source, tmp_path / "whole", UNQUANTIZED))
    assert not found.keys() & {"quantization", "quantization_config"}


def pack(suffix: str, dtype: mx.Dtype) -> Callable[[Arrays], None]:
    def change(arrays: Arrays) -> None:
        stem = f"model.{Q_PROJ}."
        packed = arrays.pop(f"{stem}weight")
        arrays[stem + suffix] = mx.zeros(packed.shape, dtype)
        arrays[f"{stem}weight_scale"] = mx.ones((len(packed), 1))

    return change


PACKED = {
    "compressed": (pack("weight_packed", mx.int32), "compressed-tensors"),
    "int8": (pack("weight", mx.int8), "I8"),
    "MLX's": (
        lambda arrays: arrays.update(quantized(arrays, f"model.{Q_PROJ}.weight")),
        "already quantized",
    ),
    "an adapter": (
        lambda arrays: arrays.update({f"model.{Q_PROJ}.lora_A.weight": mx.zeros((8, WIDTH))}),
        "adapter",
    ),
    "a bias": (
        lambda arrays: arrays.update({f"model.{Q_PROJ}.bias": mx.zeros((WIDTH,))}),
        "doesn't have",
    ),
}


@pytest.mark.parametrize(("change", "word"), PACKED.values(), ids=PACKED.keys())
def test_weights_that_are_packed_or_not_all_understood_are_refused_by_name(
    change: Callable[[Arrays], None], word: str, mixture: Path, tmp_path: Path
) -> None:
    source = rewritten(mixture, tmp_path / "source", change)
    message = refusal(CheckpointError, lambda: converted(source, tmp_path / "out"))
    assert word in message
    assert not (tmp_path / "out.partial").exists()
    faults = verify(source)[0].faults
    assert faults == ([] if word == "already quantized" else [message])


def other_head(arrays: Arrays) -> None:
    arrays[HEAD] = arrays[f"model.{EMBEDDING}.weight"][::-1]


def test_an_output_head_of_its_own_is_converted(mixture: Path, tmp_path: Path) -> None:
    source = rewritten(mixture, tmp_path / "source", other_head, tie_word_embeddings=True)
    whole = converted(source, tmp_path / "whole", UNQUANTIZED)
    target = load_target(whole)
    assert_same_bits(target, load_target(source))
    assert not np.array_equal(logits(target), logits(load_target(mixture)))
    assert_mlx_lm_agrees(whole, target)
    small = load_target(converted(source, tmp_path / "small"))
    assert small.lm_head.bits == 8
    assert_mlx_lm_agrees(tmp_path / "small", small)
    assert [one.faults for one in verify(tmp_path / "small")] == [[]]

    def streamed() -> np.ndarray:  # as its quality is measured
        model, hidden = final_hidden(tmp_path / "small", text())
        return np.array(model.logits(hidden)[0])

    np.testing.assert_allclose(mlx_worker().run(streamed), logits(small), atol=1e-4)


def test_a_head_that_is_the_embedding_is_left_out(
    mixture: Path, done: Path, tmp_path: Path
) -> None:
    def same_head(arrays: Arrays) -> None:
        arrays[HEAD] = arrays[f"model.{EMBEDDING}.weight"]

    source = rewritten(mixture, tmp_path / "source", same_head, tie_word_embeddings=False)
    out = converted(source, tmp_path / "out")
    assert_same_arrays(read_arrays(out), read_arrays(done))
    assert read_config(out)["tie_word_embeddings"] is True


def test_a_head_on_the_hub_must_be_downloaded_to_be_compared() -> None:
    path = Path("me/model")
    head = StoredTensor(HEAD, "F32", (1, 1), path / "model.safetensors", 0, 4)
    source = Source(Origin("me/model", None), path, CONFIG, {HEAD: head})
    message = refusal(UsageError, lambda: plan_target(source, Options()))
    assert "mgm pull me/model" in message


def test_experts_that_are_stored_one_by_one_convert(
    mixture: Path, done: Path, tmp_path: Path
) -> None:
    def take_apart(arrays: Arrays) -> None:
        for name in [name for name in arrays if ".experts." in name]:
            stem, _, part = name.rpartition(".")
            whole = arrays.pop(name)
            halves = {part: whole}
            if part == "gate_up_proj":
                halves = dict(zip(("gate_proj", "up_proj"), mx.split(whole, 2, 1), strict=True))
            for half, array in halves.items():
                for expert, one in enumerate(array):
                    arrays[f"{stem}.{expert}.{half}.weight"] = one

    source = rewritten(mixture, tmp_path / "source", take_apart)
    assert hashes(converted(source, tmp_path / "out")) == hashes(done)
    sliced = converted(source, tmp_path / "sliced", Options(slice_bytes=9000))  # some rows
    assert hashes(sliced) == hashes(done)


def test_the_index_decides_which_file_a_converted_tensor_comes_from(
    mixture: Path, done: Path, tmp_path: Path
) -> None:
    source, arrays = tmp_path / "source", read_arrays(mixture)
    source.mkdir()
    shutil.copy(mixture / "config.json", source)
    first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    mx.save_safetensors(str(source / first), arrays)
    mx.save_safetensors(str(source / second), {"model.norm.weight": mx.zeros((WIDTH,))})
    (source / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(arrays, first)}))
    assert hashes(converted(source, tmp_path / "out")) == hashes(done)
    assert verify(source)[0].faults == []


def test_an_index_that_loading_ignores_is_not_a_fault(mixture: Path, tmp_path: Path) -> None:
    source = shutil.copytree(mixture, tmp_path / "source")
    gone = dict.fromkeys(read_arrays(mixture), "model-00001-of-00002.safetensors")
    (source / INDEX).write_text(json.dumps({"weight_map": gone}))
    assert verify(source)[0].faults == []


def test_templates_and_tokenizers_are_copied_and_other_tools_settings_are_not(
    mixture: Path, tmp_path: Path
) -> None:
    source = shutil.copytree(mixture, tmp_path / "source")
    kept = {"generation_config.json", "chat_template.json", "processor_config.json"}
    kept |= {"tokenizer_config.json", "added_tokens.json", "chat_template.jinja", "tokenizer.model"}
    others = {"hf_quant_config.json", "quantize_config.json", "pytorch_model.bin.index.json"}
    for name in kept | others:
        (source / name).write_text("{}")
    found = {path.name for path in converted(source, tmp_path / "out").iterdir()}
    assert found >= kept
    assert not found & others


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_float16_is_warned_of(dtype: str, mixture: Path, tmp_path: Path, mgm_here: Here) -> None:
    options = ("--dtype", dtype, "--drafter", "none", "--out", tmp_path / "out")
    done = mgm_here("convert", mixture, *options)
    assert done.returncode == 0, done.stderr
    assert ("float16" in done.stderr) == ("overflow" in done.stderr) == (dtype == "float16")
