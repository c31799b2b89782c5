"""Converting keeps the weights: MLX's names, MLX's bits, whatever the slices and the files."""

import json
import re
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx_gemma_mtp.convert import slices
from mlx_gemma_mtp.convert.conversion import convert
from mlx_gemma_mtp.convert.formats import FIXED, NAMES, parse_format, quantize
from mlx_gemma_mtp.convert.manifest import read_manifest
from mlx_gemma_mtp.convert.plan import Options

from helpers.arrays import Arrays, parameters, read_arrays, write
from helpers.checkpoints import CENTROID_KINDS, COMMON, KINDS, PairPaths
from helpers.converted import MOE, Converted, assert_mlx_lm_agrees, assert_same_arrays, hashes
from helpers.logits import logits
from mlx_gemma_mtp import SamplingParams, load
from mlx_gemma_mtp.files.checkpoint import INDEX, read_config
from mlx_gemma_mtp.files.weights import load_drafter, load_target
from mlx_gemma_mtp.model.config import TargetConfig
from mlx_gemma_mtp.model.target import Target

TOWERS_IN = ("E2B", "12B", MOE)
TOWERS = ("vision_tower", "audio_tower", "embed_vision", "embed_audio", "vision_embedder")


def renamed(source: Path, config: TargetConfig) -> Arrays:
    """Return the text model's arrays by the names that mlx-lm gives them."""
    arrays: Arrays = {}
    for name, array in read_arrays(source).items():
        if any(tower in name for tower in TOWERS):
            continue
        layer = re.search(r"layers\.(\d+)\.self_attn\.(k_proj|v_proj|k_norm)", name)
        if layer and not config.layers[int(layer[1])].owns_kv:
            continue
        name = name.replace("model.language_model.", "language_model.model.")
        stem, _, last = name.rpartition(".")
        if last == "gate_up_proj":
            gate, up = mx.split(array, 2, axis=1)
            arrays[f"{stem}.switch_glu.gate_proj.weight"] = gate
            arrays[f"{stem}.switch_glu.up_proj.weight"] = up
        elif name.endswith(".experts.down_proj"):
            arrays[f"{stem}.switch_glu.down_proj.weight"] = array
        else:
            arrays[name] = array
    return arrays


def test_unquantized_weights_keep_every_bit_and_load_in_mlx_lm(
    pair: PairPaths, kind: str, converted: Converted
) -> None:
    out = converted(kind, Options(bits="none"))
    source = load_target(pair.target)
    assert_same_arrays(read_arrays(out), renamed(pair.target, source.config))  # without towers
    assert any("vision" in name for name in read_arrays(pair.target)) == (kind in TOWERS_IN)
    assert_same_arrays(read_arrays(out / "drafter"), read_arrays(pair.drafter))
    assert TargetConfig.from_dict(read_config(out)) == source.config
    assert "quantization" not in read_config(out)
    target = load_target(out)
    np.testing.assert_array_equal(logits(target), logits(source))
    assert_mlx_lm_agrees(out, target)


@pytest.mark.parametrize("kind", ["E2B", MOE])
def test_a_converted_pair_can_be_converted_again(
    kind: str, converted: Converted, out: Path
) -> None:
    convert(converted(kind, Options(bits="none")), out, Options())
    assert hashes(out) == hashes(converted(kind, Options()))


def in_memory(model: nn.Module, records: dict[str, Any]) -> None:
    """Quantize a loaded model as the manifest of its converted twin says."""

    def format_of(path: str, module: nn.Module) -> dict[str, Any] | bool:
        if not hasattr(module, "to_quantized"):
            return False
        path = path.replace("experts.", "experts.switch_glu.").replace("gate_up", "gate")
        (record,) = (r for name, r in records.items() if name.endswith(f"model.{path}.weight"))
        keys = ("bits", "group_size", "mode")
        return record.bits is not None and {key: getattr(record, key) for key in keys}

    nn.quantize(model, class_predicate=format_of)


MIXED = [*((kind, Options()) for kind in KINDS), (MOE, Options(bits="8"))]
OTHERS = [Options(bits=bits, group_size=32, recipe="uniform") for bits in ("3", "6")]
OTHERS += [Options(bits=bits, recipe="uniform") for bits in FIXED]
CASES = [*MIXED, *((MOE, options) for options in OTHERS)]


@pytest.mark.parametrize(
    ("kind", "options"), CASES, ids=[f"{kind}-{options.bits}" for kind, options in CASES]
)
def test_quantized_weights_equal_those_quantized_in_memory_and_load_in_mlx_lm(
    kind: str, options: Options, pairs: dict[str, PairPaths], converted: Converted
) -> None:
    out, pair = converted(kind, options), pairs[kind]
    target, expected = load_target(out), load_target(pair.target)
    # Vocabulary, head sizes and so on are where mlx-lm looks for them.
    assert_mlx_lm_agrees(out, target)
    if options.bits != "q4_0":  # which MLX cannot quantize to
        in_memory(expected, read_manifest(out).tensors)
        assert_same_arrays(parameters(target), parameters(expected))
        assert logits(target).tobytes() == logits(expected).tobytes()
    if options in OTHERS:
        experts = target.layers[0].experts.gate_up_proj
        found = {"bits": experts.bits, "group_size": experts.group_size, "mode": experts.mode}
        chosen = parse_format(options.bits, options.group_size)
        assert chosen is not None
        assert found == chosen.block
        return
    params = SamplingParams(max_tokens=20, temperature=0, ignore_eos=True)
    with load(out) as engine:
        done = engine.generate([5, 6, 7], params)[0]
    assert len(done.tokens) == 20
    assert done.stats.drafted > 0
    drafter = load_drafter(out / "drafter", target.config)
    uniform = load_drafter(pair.drafter, target.config, bits=int(options.bits))
    if kind in CENTROID_KINDS:  # whose table mlx-vlm can't read if it is quantized
        uniform.embed_tokens = load_drafter(pair.drafter, target.config).embed_tokens
    assert_same_arrays(parameters(drafter), parameters(uniform))
    if kind in ("E2B", MOE) and options.bits == "4":  # the uniform recipe is that of loading
        target = load_target(converted(kind, Options(recipe="uniform")))
        assert_same_arrays(parameters(target), parameters(load_target(pair.target, bits=4)))


def test_a_drafters_config_has_the_keys_that_mlx_vlm_reads(
    pairs: dict[str, PairPaths], converted: Converted
) -> None:
    needed = {"hidden_size_per_layer_input": 0, "use_double_wide_mlp": False}
    needed |= {"global_head_dim": COMMON["global_head_dim"], "num_kv_shared_layers": 4}
    assert "global_head_dim" not in read_config(pairs["E2B"].drafter)["text_config"]
    text = read_config(converted("E2B", Options()) / "drafter")["text_config"]
    assert {key: text.get(key) for key in needed} == needed


def test_another_type_is_cast_before_it_is_quantized(
    pairs: dict[str, PairPaths], converted: Converted
) -> None:
    out = converted("E2B", Options(dtype="bfloat16", recipe="uniform", drafter_bits="none"))
    name, found = "layers.0.mlp.up_proj", read_arrays(out)
    stored = read_arrays(pairs["E2B"].target)[f"model.language_model.{name}.weight"]
    parts = mx.quantize(stored.astype(mx.bfloat16))
    for suffix, part in zip(("weight", "scales", "biases"), parts, strict=True):
        written = found[f"language_model.model.{name}.{suffix}"]
        assert written.dtype == part.dtype
        assert mx.array_equal(written, part)
    assert {array.dtype for array in found.values()} == {mx.bfloat16, mx.uint32}
    assert read_config(pairs["E2B"].target)["dtype"] == "float32"
    assert read_config(out)["dtype"] == "bfloat16"
    drafter = read_arrays(out / "drafter")
    assert drafter["masked_embedding.token_ordering"].dtype == mx.int64  # numbers of tokens
    assert drafter["model.norm.weight"].dtype == mx.bfloat16


@pytest.mark.parametrize("name", [name for name in NAMES if name != "none"])
@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float32])
def test_rows_quantized_apart_have_the_bits_of_rows_quantized_together(
    name: str, dtype: mx.Dtype, rng: np.random.Generator
) -> None:
    chosen = parse_format(name)
    assert chosen is not None
    whole = mx.array(rng.standard_normal((67, 256), np.float32)).astype(dtype)
    slices = [quantize(whole[row : row + 5], chosen) for row in range(0, 67, 5)]
    by_mlx = mx.quantize(whole, **chosen.block)
    for part, expected, *pieces in zip(quantize(whole, chosen), by_mlx, *slices, strict=True):
        assert mx.array_equal(part, mx.concatenate(pieces))
        assert name == "q4_0" or mx.array_equal(part, expected)


@pytest.mark.parametrize("kind", ["E2B", MOE])
def test_neither_slices_nor_files_change_a_bit(
    kind: str, pairs: dict[str, PairPaths], converted: Converted, tmp_path: Path
) -> None:
    whole = converted(kind, Options())
    convert(pairs[kind].target, tmp_path / "sliced", Options(slice_bytes=9000))  # some rows
    assert hashes(tmp_path / "sliced") == hashes(whole)

    out = tmp_path / "sharded"
    convert(pairs[kind].target, out, Options(shard_bytes=200_000))
    assert_same_arrays(read_arrays(out), read_arrays(whole))
    files = sorted(out.glob("*.safetensors"))
    count = len(files)
    assert count >= 3
    assert files == [out / f"model-{n + 1:05d}-of-{count:05d}.safetensors" for n in range(count)]
    index = json.loads((out / INDEX).read_text())
    assert index["weight_map"] == {name: path.name for path in files for name in mx.load(str(path))}
    assert index["metadata"]["total_size"] == sum(a.nbytes for a in read_arrays(out).values())
    np.testing.assert_array_equal(logits(load_target(out)), logits(load_target(whole)))


def test_arrays_start_at_multiples_of_their_types_size(converted: Converted) -> None:
    for options in (Options(dtype="bfloat16"), Options(bits="mxfp4")):
        path = converted(MOE, options) / "model.safetensors"
        start = int.from_bytes(path.read_bytes()[:8], "little")
        header = json.loads(path.read_bytes()[8 : 8 + start])
        assert header.pop("__metadata__") == {"format": "mlx"}
        arrays = mx.load(str(path))
        for name, entry in header.items():
            assert (8 + start + entry["data_offsets"][0]) % arrays[name].dtype.size == 0, name


def test_converting_holds_only_a_few_slices_in_memory(tmp_path: Path) -> None:
    raw: dict[str, Any] = {"model_type": "gemma4_text", "vocab_size": 512}
    raw |= {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 6}
    raw |= {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size_per_layer_input": 0}
    raw |= {"head_dim": 64, "global_head_dim": 64, "enable_moe_block": True}
    raw |= {"num_experts": 16, "top_k_experts": 2, "moe_intermediate_size": 192}
    tensors = parameters(Target(TargetConfig.from_dict(raw)))
    arrays = {f"model.{name}": array for name, array in tensors.items()}
    source = write(tmp_path / "large", raw, arrays)
    size = sum(array.nbytes for array in arrays.values())
    largest = max(array.nbytes for array in arrays.values())
    del arrays, tensors
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    convert(source, tmp_path / "out", Options(slice_bytes=2**18), drafter=None)
    peak = mx.get_peak_memory() - before
    assert size > 30e6
    assert peak < slices.LANES * 5 * 2**18 < 2 * largest
    assert mx.get_active_memory() - before < 2**18
