"""Weights that are damaged, missing or of a wrong shape are refused in one line that names them."""

import json
import shutil
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from helpers.broken import GREEDY, change_arrays, each, load_refusal, refused_or_fine, set_values
from helpers.checkpoints import PairPaths, make_pair
from mlx_gemma_mtp import load
from mlx_gemma_mtp.errors import UsageError

WEIGHTS, NORM = "model.safetensors", "model.norm.weight"


def length(size: int) -> bytes:
    """How a safetensors file starts: the length of its header."""
    return struct.pack("<Q", size)


# What becomes of a file's bytes, given the length of its header.
DAMAGED: dict[str, Callable[[bytes, int], bytes]] = {
    "empty": lambda blob, size: b"",
    "cut in the length": lambda blob, size: blob[:7],
    "cut after the length": lambda blob, size: blob[:8],
    "cut in the header": lambda blob, size: blob[: 8 + size // 2],
    "cut after the header": lambda blob, size: blob[: 8 + size],
    "cut in the data": lambda blob, size: blob[: len(blob) // 2],
    "one byte short": lambda blob, size: blob[:-1],
    "one byte too many": lambda blob, size: blob + b"x",
    "a web page": lambda blob, size: b"<html>404</html>",
    "a Git LFS pointer": lambda blob, size: b"version https://git-lfs.github.com/spec/v1\nsize 1\n",
    "zeros": lambda blob, size: bytes(4096),
    "header of length 0": lambda blob, size: length(0) + blob[8:],
    "header one byte shorter": lambda blob, size: length(size - 1) + blob[8:],
    "header one byte longer": lambda blob, size: length(size + 1) + blob[8:],
    "header longer than the file": lambda blob, size: length(10**9) + blob[8:],
    "header of 2**63 bytes": lambda blob, size: length(2**63) + blob[8:],
    "header of 2**64 - 1 bytes": lambda blob, size: length(2**64 - 1) + blob[8:],
    "header not text": lambda blob, size: blob[:8] + b"\xff" * size + blob[8 + size :],
    "header a deep nest": lambda blob, size: length(10**5) + b"[" * 10**5 + bytes(9),
}
HEADERS: dict[str, list[Any]] = {  # what it is replaced by, or one of its entries
    "header": [[1], {}],
    "entry": [None, []],
    "metadata": [5],
    "dtype": [..., "Q7", "F16", 5],
    "shape": [..., "x", None, [-64], [10**9]],
    "data_offsets": [..., [256, 0], [-256, 0], ["a", "b"], [0], [10**15, 10**15 + 256], [0, 4]],
}


@pytest.mark.parametrize("case", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_weight_file_is_refused(
    broken: PairPaths, case: Callable[[bytes, int], bytes]
) -> None:
    path = broken.target / WEIGHTS
    blob = path.read_bytes()
    path.write_bytes(case(blob, struct.unpack("<Q", blob[:8])[0]))
    load_refusal(broken.target, None)


@each(HEADERS)
def test_a_wrong_header_of_a_weight_file_is_refused(
    broken: PairPaths, name: str, value: Any
) -> None:
    path = broken.target / WEIGHTS
    blob = path.read_bytes()
    end = 8 + struct.unpack("<Q", blob[:8])[0]
    header = json.loads(blob[8:end])
    if name == "header":
        header = value
    elif name in ("entry", "metadata"):
        header[{"entry": NORM, "metadata": "__metadata__"}[name]] = value
    elif value is ...:
        del header[NORM][name]
    else:
        header[NORM][name] = value
    written = json.dumps(header).encode()
    path.write_bytes(length(len(written)) + written + blob[end:])
    load_refusal(broken.target, None)


def test_a_flipped_byte_in_a_header_is_refused_or_does_no_harm(
    broken: PairPaths, rng: np.random.Generator
) -> None:
    blob = (broken.target / WEIGHTS).read_bytes()
    (size,) = struct.unpack("<Q", blob[:8])
    for _ in range(40):
        at, byte = int(rng.integers(8 + size)), int(rng.integers(256))
        (broken.target / WEIGHTS).write_bytes(blob[:at] + bytes([byte]) + blob[at + 1 :])
        refused_or_fine(broken.target, None)


WRONG_INDEX = [
    *("{", "[]", "{}", '{"weight_map": ["model.safetensors"]}', '{"weight_map": {}}'),
    '{"weight_map": {"model.norm.weight": 5}}',
    '{"weight_map": {"model.norm.weight": "."}}',  # a folder
]


@pytest.mark.parametrize("index", WRONG_INDEX)
def test_a_wrong_index_of_shards_is_refused(broken: PairPaths, index: str) -> None:
    (broken.target / f"{WEIGHTS}.index.json").write_text(index)
    load_refusal(broken.target, None)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    folder = make_pair("26B-A4B", tmp_path, 1, sharded=True).target
    for shard in sorted(folder.glob("*.safetensors")):
        away = shard.rename(tmp_path / shard.name)
        assert shard.name in load_refusal(folder, None)
        away.rename(shard)
    shard = max(folder.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-100])
    assert shard.name in load_refusal(folder, None)


TENSORS = (
    *("embed_tokens.weight", "norm.weight", "layers.4.layer_scalar"),
    *("layers.0.self_attn.q_proj.weight", "layers.5.self_attn.k_norm.weight"),
    *("layers.3.router.per_expert_scale", "layers.2.experts.gate_up_proj"),
    "layers.2.experts.down_proj",
)
DRAFTER_TENSORS = ("model.embed_tokens.weight", "pre_projection.weight", "model.norm.weight")


@pytest.mark.parametrize("name", TENSORS)
def test_a_missing_or_misshapen_tensor_is_named(broken: PairPaths, name: str) -> None:
    words, tensor = [name], f"model.{name}"

    def double_first(arrays: dict[str, mx.array]) -> None:
        wrong = mx.concatenate([arrays[tensor], arrays[tensor][:1]])
        words.extend(str(list(array.shape)) for array in (arrays[tensor], wrong))
        arrays[tensor] = wrong

    change_arrays(double_first)(broken.target)
    message = load_refusal(broken.target, None)
    assert all(word in message for word in words), message
    change_arrays(lambda arrays: arrays.pop(tensor))(broken.target)
    message = load_refusal(broken.target, None)
    assert name in message
    assert "missing" in message


@pytest.mark.parametrize("name", DRAFTER_TENSORS)
def test_a_missing_or_misshapen_tensor_of_a_drafter_is_named(broken: PairPaths, name: str) -> None:
    change_arrays(lambda arrays: arrays.update({name: arrays[name][..., :-1]}))(broken.drafter)
    assert name.removeprefix("model.") in load_refusal(broken.target)
    change_arrays(lambda arrays: arrays.pop(name))(broken.drafter)
    assert name.removeprefix("model.") in load_refusal(broken.target)


@pytest.mark.parametrize("wrong", [lambda ids: -ids - 1, lambda ids: ids + 1, lambda ids: ids / 1])
def test_token_ids_of_a_drafters_head_must_be_token_ids(
    pairs: dict[str, PairPaths], tmp_path: Path, wrong: Callable[[mx.array], mx.array]
) -> None:
    name, target = "masked_embedding.token_ordering", pairs["E2B"].target
    drafter = shutil.copytree(pairs["E2B"].drafter, tmp_path / "drafter")
    change_arrays(lambda arrays: arrays.update({name: wrong(arrays[name])}))(drafter)
    assert name in load_refusal(target, drafter)


@pytest.mark.parametrize("dtype", [mx.int32, mx.uint8])  # MLX reads FP8 weights as uint8
def test_integers_for_weights_are_refused(broken: PairPaths, dtype: mx.Dtype) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    change_arrays(lambda arrays: arrays.update({name: arrays[name].astype(dtype)}))(broken.target)
    assert name.removeprefix("model.") in load_refusal(broken.target, None)


Q4 = {"group_size": 64, "bits": 4}
UP_PROJ = "model.layers.1.mlp.up_proj"


def named_parts(stem: str, parts: Sequence[mx.array]) -> dict[str, mx.array]:
    labels = zip(("weight", "scales", "biases"), parts, strict=True)
    return {stem + label: part for label, part in labels}


def quantized(folder: Path, block: dict[str, Any]) -> None:
    """Turn the checkpoint into an MLX one of 4 bits, with this quantization block."""

    def change(arrays: dict[str, mx.array]) -> None:
        for name in [name for name in arrays if name.endswith("_proj.weight")]:
            arrays |= named_parts(name.removesuffix("weight"), mx.quantize(arrays[name], **Q4))

    change_arrays(change)(folder)
    set_values({"quantization": block})(folder)


def assert_works(target: Path) -> None:
    with load(target, None) as engine:
        assert len(engine.generate([5], GREEDY)[0].tokens) == 6


def test_bits_for_a_quantized_checkpoint_are_refused(broken: PairPaths) -> None:
    quantized(broken.target, Q4)
    assert_works(broken.target)
    for bits in (4, 8):
        assert "quantized already" in load_refusal(broken.target, None, bits=bits, kind=UsageError)


def test_widths_that_do_not_divide_by_the_group_size_are_named(broken: PairPaths) -> None:
    def narrow(arrays: dict[str, mx.array]) -> None:
        for name in [name for name in arrays if ".mlp." in name]:
            down = "down_proj" in name
            arrays[name] = arrays[name][:, :96] if down else arrays[name][:96]

    change_arrays(narrow)(broken.target)
    set_values({"intermediate_size": 96})(broken.target)
    assert_works(broken.target)
    for bits in (4, 8):
        message = load_refusal(broken.target, None, bits=bits)
        assert "mlp.down_proj" in message
        assert "96" in message


def test_a_quantization_block_of_an_unknown_mode_is_refused(broken: PairPaths) -> None:
    quantized(broken.target, Q4 | {"mode": "x"})
    assert "'x'" in load_refusal(broken.target, None)


@pytest.mark.parametrize("part", ["scales", "biases", "weight", "packed weight"])
def test_a_quantized_module_without_all_its_parts_is_refused(broken: PairPaths, part: str) -> None:
    def take(arrays: dict[str, mx.array]) -> None:
        if part == "packed weight":
            arrays[f"{UP_PROJ}.weight"] = mx.zeros((128, 64))
        else:
            del arrays[f"{UP_PROJ}.{part}"]

    quantized(broken.target, Q4)
    change_arrays(take)(broken.target)
    assert "layers.1.mlp.up_proj" in load_refusal(broken.target, None)


def test_a_model_that_cannot_be_loaded_leaves_the_others_alone(
    tiny: PairPaths, broken: PairPaths
) -> None:
    change_arrays(lambda arrays: arrays.pop("model.norm.weight"))(broken.target)
    with load(tiny.target) as engine:
        before = engine.generate([5, 6], GREEDY)[0].tokens
        memory = mx.get_active_memory()
        for _ in range(3):
            load_refusal(broken.target)
        assert engine.generate([5, 6], GREEDY)[0].tokens == before
        assert mx.get_active_memory() <= memory + 1_000_000
