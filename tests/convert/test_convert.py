"""Converting: the same weights under MLX's names, quantized as MLX does, whatever the slices."""

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_gemma_mtp.bench.synthetic import settings
from mlx_gemma_mtp.convert import output, shards
from mlx_gemma_mtp.convert.card import with_quality
from mlx_gemma_mtp.convert.conversion import convert, default_out, prepare
from mlx_gemma_mtp.convert.dry_run import dry_run
from mlx_gemma_mtp.convert.formats import FIXED, NAMES, parse_format, quantize
from mlx_gemma_mtp.convert.manifest import UNLISTED, read_manifest
from mlx_gemma_mtp.convert.plan import Options, Plan, plan_drafter, plan_target
from mlx_gemma_mtp.convert.source import Source, SourceTensor
from mlx_lm import utils as mlx_lm
from rich.filesize import decimal

from helpers.checkpoints import KINDS, PairPaths
from helpers.logits import assert_logits_agree, capped_logits, logits, logits_of_mlx_lm
from mlx_gemma_mtp import SamplingParams, load, memory
from mlx_gemma_mtp.files.weights import load_drafter, load_target
from mlx_gemma_mtp.model.config import DrafterConfig, TargetConfig
from mlx_gemma_mtp.model.drafter import Drafter
from mlx_gemma_mtp.model.target import Target

MOE = "26B-A4B"
AS_IT_IS = Options(bits="none")
TOWERS = ("vision_tower", "audio_tower", "embed_vision", "embed_audio", "vision_embedder")
Arrays = dict[str, mx.array]


def read_arrays(folder: Path) -> Arrays:
    """All arrays of a checkpoint under the names in its files."""
    found: Arrays = {}
    for path in folder.glob("*.safetensors"):
        found |= mx.load(str(path))
    return found


def read_config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of the weights of a converted pair."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*.safetensors"))
    }


def assert_same_arrays(found: Arrays, expected: Arrays) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype, name
        assert mx.array_equal(found[name], array), name


def parameters(model: nn.Module) -> Arrays:
    return dict(tree_flatten(model.parameters()))


def assert_mlx_lm_agrees(folder: Path, target: Target) -> None:
    """mlx-lm's own model computes the same, as its own loader reads the folder."""
    model, _ = mlx_lm.load_model(folder)
    assert_logits_agree(logits_of_mlx_lm(model), capped_logits(target))


@pytest.fixture(scope="module")
def converted(
    pairs: dict[str, PairPaths], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, Options], Path]:
    """Every kind's pair, converted as asked, once."""
    made: dict[tuple[str, Options], Path] = {}

    def of(kind: str, options: Options) -> Path:
        if (kind, options) not in made:
            out = tmp_path_factory.mktemp(kind) / "out"
            convert(pairs[kind].target, out, options)
            made[kind, options] = out
        return made[kind, options]

    return of


Converted = Callable[[str, Options], Path]


# Names and bits


def renamed(source: Path, config: TargetConfig) -> Arrays:
    """What mlx-lm makes of a Transformers checkpoint's names, the text model's part."""
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


def test_unquantized_every_bit_stays_under_its_new_name(
    pair: PairPaths, kind: str, converted: Converted
) -> None:
    out = converted(kind, AS_IT_IS)
    source = load_target(pair.target)
    assert_same_arrays(read_arrays(out), renamed(pair.target, source.config))
    assert_same_arrays(read_arrays(out / "drafter"), read_arrays(pair.drafter))
    assert TargetConfig.from_dict(read_config(out)) == source.config
    assert "quantization" not in read_config(out)
    np.testing.assert_array_equal(logits(load_target(out)), logits(source))


@pytest.mark.parametrize("kind", ["E2B", MOE])
def test_what_was_converted_is_a_source_as_well(
    kind: str, converted: Converted, tmp_path: Path
) -> None:
    convert(converted(kind, AS_IT_IS), tmp_path / "again", Options())
    assert hashes(tmp_path / "again") == hashes(converted(kind, Options()))


def test_the_towers_are_left_out(pairs: dict[str, PairPaths], converted: Converted) -> None:
    for kind in ("E2B", "12B", MOE):
        assert any("vision" in name for name in read_arrays(pairs[kind].target))
        assert not any("vision" in name for name in read_arrays(converted(kind, AS_IT_IS)))


def in_memory(model: nn.Module, records: dict[str, Any]) -> None:
    """Quantize a loaded model as a manifest says of its converted twin."""

    def format_of(path: str, module: nn.Module) -> dict[str, Any] | bool:
        if not hasattr(module, "to_quantized"):
            return False
        path = path.replace("experts.", "experts.switch_glu.").replace("gate_up", "gate")
        (record,) = (r for name, r in records.items() if name.endswith(f"model.{path}.weight"))
        if record.bits is None:
            return False
        return {"bits": record.bits, "group_size": record.group_size, "mode": record.mode}

    nn.quantize(model, class_predicate=format_of)


@pytest.mark.parametrize(("kind", "bits"), [*((kind, "4") for kind in KINDS), (MOE, "8")])
def test_quantized_it_equals_quantizing_in_memory_here_and_in_mlx_lm(
    pairs: dict[str, PairPaths], kind: str, bits: str, converted: Converted
) -> None:
    out, pair = converted(kind, Options(bits=bits)), pairs[kind]
    target, expected = load_target(out), load_target(pair.target)
    in_memory(expected, read_manifest(out).tensors)
    assert_same_arrays(parameters(target), parameters(expected))
    assert logits(target).tobytes() == logits(expected).tobytes()
    # Its vocabulary, head sizes and the rest are written where mlx-lm looks for them.
    assert_mlx_lm_agrees(out, target)

    drafter = load_drafter(out / "drafter", target.config)
    uniform = load_drafter(pair.drafter, target.config, bits=int(bits))
    assert_same_arrays(parameters(drafter), parameters(uniform))


def test_unquantized_mlx_lm_computes_the_same(kind: str, converted: Converted) -> None:
    out = converted(kind, AS_IT_IS)
    target = load_target(out)
    assert_mlx_lm_agrees(out, target)


@pytest.mark.parametrize("kind", ["E2B", MOE])
def test_uniform_equals_quantizing_while_loading(
    pairs: dict[str, PairPaths], kind: str, converted: Converted
) -> None:
    target = load_target(converted(kind, Options(recipe="uniform")))
    assert_same_arrays(parameters(target), parameters(load_target(pairs[kind].target, bits=4)))


@pytest.mark.parametrize("bits", ["3", "6", *FIXED])
def test_every_format_loads_as_it_was_written(
    bits: str, pairs: dict[str, PairPaths], converted: Converted
) -> None:
    group_size = None if bits in FIXED else 32
    out = converted(MOE, Options(bits=bits, group_size=group_size, recipe="uniform"))
    target = load_target(out)
    chosen = parse_format(bits, group_size)
    assert chosen is not None
    experts = target.layers[0].experts.gate_up_proj
    assert (experts.bits, experts.group_size, experts.mode) == (*chosen[1:], chosen.mode)
    if bits != "q4_0":
        expected = load_target(pairs[MOE].target)
        in_memory(expected, read_manifest(out).tensors)
        assert_same_arrays(parameters(target), parameters(expected))
    assert_mlx_lm_agrees(out, target)


@pytest.mark.parametrize("kind", ["E2B", "12B", MOE])  # 12B: projections of one input differ
def test_a_converted_pair_writes_text(kind: str, converted: Converted) -> None:
    params = SamplingParams(max_tokens=20, temperature=0, ignore_eos=True)
    with load(converted(kind, Options())) as engine:
        assert engine.has_drafter
        done = engine.generate([5, 6, 7], params)[0]
    assert len(done.tokens) == 20
    assert done.stats.drafted > 0


def test_another_type_is_cast_before_it_is_quantized(
    pairs: dict[str, PairPaths], converted: Converted
) -> None:
    out = converted("E2B", Options(dtype="bfloat16", recipe="uniform", drafter_bits="none"))
    arrays = read_arrays(pairs["E2B"].target)
    name = "layers.0.mlp.up_proj.weight"
    stored = arrays[f"model.language_model.{name}"].astype(mx.bfloat16)
    found = read_arrays(out)
    for suffix, part in zip(("weight", "scales", "biases"), mx.quantize(stored), strict=True):
        written = found[f"language_model.model.{name.removesuffix('weight')}{suffix}"]
        assert written.dtype == part.dtype
        assert mx.array_equal(written, part)
    assert {array.dtype for array in found.values()} == {mx.bfloat16, mx.uint32}
    assert read_config(pairs["E2B"].target)["dtype"] == "float32"
    assert read_config(out)["dtype"] == "bfloat16"
    drafter = read_arrays(out / "drafter")
    assert drafter["masked_embedding.token_ordering"].dtype == mx.int64  # numbers of tokens
    assert drafter["model.norm.weight"].dtype == mx.bfloat16


# Slices


@pytest.mark.parametrize("name", [name for name in NAMES if name != "none"])
@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float32])
def test_rows_quantized_apart_have_the_bits_of_rows_quantized_together(
    name: str, dtype: mx.Dtype, rng: np.random.Generator
) -> None:
    chosen = parse_format(name)
    assert chosen is not None
    whole = mx.array(rng.standard_normal((67, 256), np.float32)).astype(dtype)
    slices = [quantize(whole[row : row + 5], chosen) for row in range(0, 67, 5)]
    for part, *pieces in zip(quantize(whole, chosen), *slices, strict=True):
        assert mx.array_equal(part, mx.concatenate(pieces))
    if name != "q4_0":
        mode = {"group_size": chosen.group_size, "bits": chosen.bits, "mode": chosen.mode}
        for part, expected in zip(quantize(whole, chosen), mx.quantize(whole, **mode), strict=True):
            assert mx.array_equal(part, expected)


@pytest.mark.parametrize("kind", ["E2B", MOE])
def test_neither_slices_nor_files_change_a_bit(
    kind: str,
    pairs: dict[str, PairPaths],
    converted: Converted,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = converted(kind, Options())
    monkeypatch.setattr(output, "SLICE_BYTES", 9000)  # some rows
    convert(pairs[kind].target, tmp_path / "sliced", Options())
    assert hashes(tmp_path / "sliced") == hashes(whole)

    monkeypatch.setattr(shards, "SHARD_BYTES", 200_000)
    out = tmp_path / "sharded"
    convert(pairs[kind].target, out, Options())
    assert_same_arrays(read_arrays(out), read_arrays(whole))
    files = sorted(out.glob("*.safetensors"))
    assert [path.name for path in files] == [
        f"model-{n:05d}-of-{len(files):05d}.safetensors" for n in range(1, len(files) + 1)
    ]
    assert len(files) >= 3
    index = json.loads((out / shards.INDEX).read_text())
    where = {name: path.name for path in files for name in mx.load(str(path))}
    assert index["weight_map"] == where
    assert index["metadata"]["total_size"] == sum(a.nbytes for a in read_arrays(out).values())
    np.testing.assert_array_equal(logits(load_target(out)), logits(load_target(whole)))


def test_arrays_begin_where_readers_that_map_files_want_them(converted: Converted) -> None:
    for options in (Options(dtype="bfloat16"), Options(bits="mxfp4")):
        path = converted(MOE, options) / "model.safetensors"
        start = int.from_bytes(path.read_bytes()[:8], "little")
        header = json.loads(path.read_bytes()[8 : 8 + start])
        assert header.pop("__metadata__") == {"format": "mlx"}
        arrays = mx.load(str(path))
        for name, entry in header.items():
            assert (8 + start + entry["data_offsets"][0]) % arrays[name].dtype.size == 0, name


def test_converting_holds_a_few_slices_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = {
        "model_type": "gemma4_text",
        "vocab_size": 512,
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "global_head_dim": 64,
        "hidden_size_per_layer_input": 0,
        "enable_moe_block": True,
        "num_experts": 16,
        "top_k_experts": 2,
        "moe_intermediate_size": 192,
    }
    source = tmp_path / "large"
    source.mkdir()
    (source / "config.json").write_text(json.dumps(raw))
    tensors = parameters(Target(TargetConfig.from_dict(raw)))
    arrays = {f"model.{name}": array for name, array in tensors.items()}
    mx.save_safetensors(str(source / "model.safetensors"), arrays)
    size = sum(array.nbytes for array in arrays.values())
    largest = max(array.nbytes for array in arrays.values())
    del arrays, tensors
    monkeypatch.setattr(output, "SLICE_BYTES", 2**18)
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    convert(source, tmp_path / "out", Options(), drafter=None)
    peak = mx.get_peak_memory() - before
    assert size > 30e6
    assert peak < output.LANES * 5 * 2**18 < 2 * largest
    assert mx.get_active_memory() - before < 2**18


# Recipes

# Parameters in billions, of the target and of the drafter.
PUBLISHED = {
    "E2B": (4.63, 0.0777),
    "E4B": (7.46, 0.0785),
    "12B": (11.91, 0.4229),
    "26B-A4B": (25.23, 0.4197),
    "31B": (30.70, 0.4695),
}


def headers_of(config: dict[str, Any]) -> Source:
    """A published checkpoint's config and headers; there are no weights."""
    drafter = config["model_type"] == "gemma4_assistant"
    model = (
        Drafter(DrafterConfig.from_dict(config))
        if drafter
        else Target(TargetConfig.from_dict(config))
    )
    tensors = {}
    for name, array in parameters(model).items():
        code = "I64" if name.endswith("token_ordering") else "BF16"
        nbytes = array.size * (8 if code == "I64" else 2)
        tensors[name] = SourceTensor(f"model.{name}", code, array.shape, Path("nowhere"), 0, nbytes)
    return Source(Path("nowhere"), config, tensors)


def published(size: str, options: Options) -> tuple[Plan, Plan]:
    of_target, of_drafter = settings(size)
    target = plan_target(headers_of(of_target), options)
    return target, plan_drafter(headers_of(of_drafter), target, options)


@pytest.mark.parametrize("size", PUBLISHED)
def test_every_format_fits_every_published_shape(size: str) -> None:
    sizes = {}
    for bits, recipe in FITTING:
        target, drafter = published(size, Options(bits=bits, recipe=recipe))
        sizes[bits, recipe] = target.nbytes
        for plan, billions in zip((target, drafter), PUBLISHED[size], strict=True):
            assert plan.parameters / 1e9 == pytest.approx(billions, rel=2e-3)
            for made in plan.outputs:
                held = 16 if made.format is None else made.format.bits
                if bits != "none" and made.quantizable and re.search(SENSITIVE, made.path):
                    assert held >= 8, made.path
                if bits != "none" and made.path.endswith("router.proj"):
                    assert made.format == parse_format("8/64")
            assert all(
                shard.nbytes <= shards.SHARD_BYTES + 2**20 or len(shard.places) <= 3
                for shard in plan.shards
            )
    assert sizes["none", "mixed"] == pytest.approx(2e9 * PUBLISHED[size][0], rel=2e-3)
    assert sizes["4", "uniform"] < sizes["4", "mixed"] < 1.12 * sizes["4", "uniform"]


FITTING = [("4", "mixed"), ("4", "uniform"), ("8", "mixed"), ("nvfp4", "mixed"), ("none", "mixed")]
SENSITIVE = r"router\.proj$|embed_tokens|centroids$"


def formats(plan: Plan, pattern: str) -> dict[str, str]:
    return {
        made.path: "none" if made.format is None else made.format.name
        for made in plan.outputs
        if made.quantizable and re.fullmatch(pattern, made.path)
    }


def test_mixed_keeps_more_of_what_counts_most() -> None:
    dense, drafter = published("31B", Options())
    down = formats(dense, r"layers\.\d+\.mlp\.down_proj")
    raised = [int(path.split(".")[1]) for path, chosen in down.items() if chosen == "6/64"]
    assert raised[:9] == [0, 1, 2, 3, 4, 5, 6, 9, 12]
    assert raised[-9:] == [51, *range(52, 60)]
    assert set(down.values()) == {"6/64", "4/64"}
    for path, chosen in formats(dense, r"layers\.\d+\.self_attn\.v_proj").items():
        assert chosen == down[path.replace("self_attn.v", "mlp.down")], path
    assert set(formats(dense, r".*(up|gate|q|o)_proj").values()) == {"4/64"}
    assert set(formats(drafter, "layers.*").values()) == {"4/64"}

    mixture, _ = published(MOE, Options())
    assert set(formats(mixture, r".*\.self_attn\..*").values()) == {"6/64"}
    assert set(formats(mixture, r".*\.experts\.switch_glu\.(gate|up)_proj").values()) == {"4/64"}

    small, _ = published("E4B", Options())
    assert set(formats(small, r".*per_layer_.*").values()) == {"8/64"}
    assert set(formats(small, r"layers\.(0|41)\.self_attn\..*").values()) == {"8/64"}
    qat, _ = published("E4B", Options(bits="q4_0"))
    assert set(formats(qat, r"layers\.\d+\.(self_attn|mlp)\..*").values()) == {"q4_0"}


def test_a_rule_of_the_command_line_comes_first(
    pairs: dict[str, PairPaths], converted: Converted
) -> None:
    rules = ("layers.{1,3}.mlp.*=none", "*.o_proj=8/32", "drafter.pre_projection=mxfp4")
    out = converted(MOE, Options(rules=rules))
    found = read_manifest(out)
    stem = "language_model.model.layers"
    for layer in range(6):
        up = found.tensors[f"{stem}.{layer}.mlp.up_proj.weight"]
        assert up.bits == (None if layer in (1, 3) else 4)
        o = found.tensors[f"{stem}.{layer}.self_attn.o_proj.weight"]
        assert (o.bits, o.group_size) == (8, 32)
    assert found.recipe.rules[:2] == (("layers.{1,3}.mlp.*", "none"), ("*.o_proj", "8/32"))
    assert read_manifest(out / "drafter").tensors["pre_projection.weight"].mode == "mxfp4"
    target = load_target(out)
    assert isinstance(target.layers[1].mlp.up_proj, nn.Linear)
    assert target.layers[0].self_attn.o_proj.group_size == 32
    load_drafter(out / "drafter", target.config)
    assert_mlx_lm_agrees(out, target)


def test_with_none_a_rule_alone_quantizes(converted: Converted) -> None:
    out = converted("E2B", Options(bits="none", rules=("embed_tokens_per_layer=8/32",)))
    target = load_target(out)
    assert target.embed_tokens_per_layer.bits == 8
    assert isinstance(target.embed_tokens, nn.Embedding)
    assert_mlx_lm_agrees(out, target)


def test_q4_0_keeps_weights_that_lie_on_its_grid(rng: np.random.Generator) -> None:
    steps = rng.uniform(0.01, 0.1, (64, 4, 1)) * rng.choice([-1, 1], (64, 4, 1))
    levels = rng.integers(-7, 7, (64, 4, 32))
    levels[..., 5] = -8  # the number of largest size is the end of the grid
    steps = np.array(mx.array(steps).astype(mx.bfloat16).astype(mx.float32))
    grid = (steps * levels).reshape(64, 128).astype(np.float32)
    weights = mx.array(grid).astype(mx.bfloat16)
    chosen = parse_format("q4_0")
    assert chosen is not None

    def kept(packed: mx.array, *affine: mx.array) -> np.ndarray:
        exact = [part.astype(mx.float32) for part in affine]  # as products with them are summed
        return np.array(mx.dequantize(packed, *exact, group_size=32, bits=4))

    np.testing.assert_array_equal(kept(*quantize(weights, chosen)), grid)
    assert np.abs(kept(*mx.quantize(weights, 32, 4)) - grid).max() > 0.01
    zeros = quantize(mx.zeros((2, 64), mx.bfloat16), chosen)
    assert not mx.dequantize(*zeros, group_size=32, bits=4).any().item()


def test_a_drafters_bits_follow_its_targets() -> None:
    expected = {
        "2": "4",
        "4": "4",
        "nvfp4": "4",
        "5": "8",
        "mxfp8": "8",
        "q4_0": "q4_0",
        "none": "none",
    }
    for bits, of_drafter in expected.items():
        assert Options(bits=bits).bits_of_drafter == of_drafter
    assert Options(bits="4", drafter_bits="none").bits_of_drafter == "none"


# The plan


@pytest.mark.parametrize("kind", ["E2B", MOE])
def test_a_dry_run_knows_the_output_without_reading_weights(
    kind: str,
    pairs: dict[str, PairPaths],
    converted: Converted,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out, as_it_is = converted(kind, Options()), converted(kind, AS_IT_IS)

    def refuse(*_: object) -> None:
        raise AssertionError("weights are read")

    monkeypatch.setattr(output, "read_rows", refuse)
    planned = prepare(pairs[kind].target, Options(), headers_only=True)
    found = dry_run(planned)
    written = {
        model.kind: sum(array.nbytes for array in read_arrays(folder).values())
        for model, folder in zip(planned.models, (out, out / "drafter"), strict=True)
    }
    assert {model.kind: model.plan.nbytes for model in planned.models} == written
    for model, folder in zip(planned.models, (out, out / "drafter"), strict=True):
        bits = read_manifest(folder).bits_per_weight
        assert f"{bits:.2f} bits per weight" in found
        assert f"| {decimal(written[model.kind])}" in found
    whole, used = (
        sum(array.nbytes for array in read_arrays(folder).values())
        for folder in (pairs[kind].target, as_it_is)
    )
    assert planned.target.plan.left_out == whole - used > 0
    assert f"left out: {decimal(whole - used)}" in found

    target, drafter = (model.plan for model in planned.models)
    assert isinstance(target.config, TargetConfig)
    assert isinstance(drafter.config, DrafterConfig)
    pair = memory.Pair(target.config, drafter.config, target.nbytes, drafter.nbytes, dtype_bytes=4)
    need = pair.needs(1024, 4).total
    cells = [cell.strip() for cell in found.splitlines()[-1].split("|")]
    assert cells[1] == "1,024"  # all that the tiny models take
    assert cells[3] == f"{decimal(need)}: 8 GB Mac"


# What is written beside the weights


def test_the_manifest_says_what_is_there(kind: str, pair: PairPaths, converted: Converted) -> None:
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
        assert replace(found, created="") == replace(read_manifest(folder), created="")


def test_the_manifest_names_repository_and_commit(
    pairs: dict[str, PairPaths], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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


def test_the_card_takes_what_was_measured(converted: Converted) -> None:
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


def test_tokenizer_and_template_come_along(tmp_path: Path) -> None:
    convert("demo", tmp_path / "demo", Options(bits="8"))
    there = {path.name for path in (tmp_path / "demo").iterdir()}
    assert there == {
        *("README.md", "chat_template.jinja", "config.json", "drafter", "generation_config.json"),
        *("manifest.json", "model.safetensors", shards.INDEX),
        *("tokenizer.json", "tokenizer_config.json"),
    }
    with load(tmp_path / "demo") as engine:
        done = engine.generate("What is 17 + 25?", SamplingParams(temperature=0))[0]
    assert done.text == "17 + 25 = 42"
    assert done.stats.accepted > 0


def test_the_output_is_named_for_its_source_and_bits(tmp_path: Path) -> None:
    for source, options, expected in (
        ("google/gemma-4-31B-it", Options(), "gemma-4-31B-it-4bit"),
        ("google/gemma-4-31B-it@abc", Options(bits="mxfp4"), "gemma-4-31B-it-mxfp4"),
        (f"{tmp_path}/mine/", Options(bits="none", dtype="bfloat16"), "mine-bf16"),
        ("demo", Options(bits="none"), "demo-mlx"),
    ):
        assert default_out(source, options) == Path(expected)


@pytest.fixture(autouse=True)
def no_leftovers(tmp_path: Path) -> Iterator[None]:
    """Nothing of a conversion stays but its output."""
    yield
    assert not list(tmp_path.glob("*.partial"))
