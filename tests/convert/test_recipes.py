"""Plans: which weight gets which format, and how large the output becomes, before it is written."""

import re
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx_gemma_mtp.bench.synthetic import settings
from mlx_gemma_mtp.convert.conversion import default_out, prepare
from mlx_gemma_mtp.convert.formats import FIXED, parse_format, quantize
from mlx_gemma_mtp.convert.manifest import Origin, read_manifest
from mlx_gemma_mtp.convert.plan import Options, Plan, plan_drafter, plan_target
from mlx_gemma_mtp.convert.report import dry_run
from mlx_gemma_mtp.convert.source import Source
from rich.filesize import decimal

from helpers.arrays import parameters, read_arrays
from helpers.checkpoints import CENTROID_KINDS, PairPaths
from helpers.converted import MOE, Converted, assert_mlx_lm_agrees
from mlx_gemma_mtp import memory
from mlx_gemma_mtp.files.tensors import StoredTensor
from mlx_gemma_mtp.files.weights import load_drafter, load_target
from mlx_gemma_mtp.model.config import DrafterConfig, TargetConfig
from mlx_gemma_mtp.model.drafter import Drafter
from mlx_gemma_mtp.model.target import Target

# Parameters in billions, of the target and of the drafter.
PUBLISHED = {"E2B": (4.63, 0.0777), "E4B": (7.46, 0.0785), "12B": (11.91, 0.4229)}
PUBLISHED |= {"26B-A4B": (25.23, 0.4197), "31B": (30.70, 0.4695)}

FITTING = [("4", "mixed"), ("4", "uniform"), ("8", "mixed"), ("nvfp4", "mixed"), ("none", "mixed")]
SENSITIVE = r"router\.proj$|embed_tokens|centroids$"


def headers_of(config: dict[str, Any]) -> Source:
    """Return a published checkpoint's config and headers, without weights."""
    if config["model_type"] == "gemma4_assistant":
        arrays = parameters(Drafter(DrafterConfig.from_dict(config)))
    else:
        arrays = parameters(Target(TargetConfig.from_dict(config)))
    tensors, path = {}, Path("nowhere")
    for name, array in arrays.items():
        code, size = ("I64", 8) if name.endswith("token_ordering") else ("BF16", 2)
        tensors[name] = StoredTensor(name, code, array.shape, path, 0, array.size * size)
    return Source(Origin("published", None), path, config, tensors)


def published(size: str, options: Options) -> tuple[Plan, Plan]:
    of_target, of_drafter = settings(size)
    target = plan_target(headers_of(of_target), options)
    return target, plan_drafter(headers_of(of_drafter), target, options)


@pytest.mark.slow
@pytest.mark.parametrize("size", PUBLISHED)
def test_every_format_fits_every_published_shape(size: str) -> None:
    sizes = {}
    for bits, recipe in FITTING:
        target, drafter = published(size, Options(bits=bits, recipe=recipe))
        sizes[bits, recipe] = target.nbytes
        for plan, billions in zip((target, drafter), PUBLISHED[size], strict=True):
            assert plan.num_weights / 1e9 == pytest.approx(billions, rel=2e-3)
            for one in plan.parameters if bits != "none" else ():
                if one.quantizable and re.search(SENSITIVE, one.path):
                    assert one.format is None or one.format.bits >= 8, one.path
                    whole = plan is drafter and size in CENTROID_KINDS
                    assert (one.format is None) == (whole and one.path == "embed_tokens"), one.path
                if one.path.endswith("router.proj"):
                    assert one.format == parse_format("8/64")
            large = [one for one in plan.shards if one.nbytes > Options().shard_bytes + 2**20]
            assert all(len(shard.places) <= 3 for shard in large)
    assert sizes["none", "mixed"] == pytest.approx(2e9 * PUBLISHED[size][0], rel=2e-3)
    assert sizes["4", "uniform"] < sizes["4", "mixed"] < 1.12 * sizes["4", "uniform"]


def formats(plan: Plan, pattern: str) -> dict[str, str]:
    return {
        one.path: "none" if one.format is None else one.format.name
        for one in plan.parameters
        if one.quantizable and re.fullmatch(pattern, one.path)
    }


def test_the_mixed_recipe_gives_sensitive_weights_more_bits() -> None:
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


def test_rules_of_the_command_line_come_first_also_without_bits(converted: Converted) -> None:
    rules = ("layers.{1,3}.mlp.*=none", "*.o_proj=8/32", "drafter.pre_projection=mxfp4")
    out = converted(MOE, Options(rules=rules))
    found, stem = read_manifest(out), "language_model.model.layers"
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
    chosen = FIXED["q4_0"]

    def kept(packed: mx.array, *affine: mx.array) -> np.ndarray:
        exact = [part.astype(mx.float32) for part in affine]  # as products with them are summed
        return np.array(mx.dequantize(packed, *exact, group_size=32, bits=4))

    np.testing.assert_array_equal(kept(*quantize(weights, chosen)), grid)
    assert np.abs(kept(*mx.quantize(weights, 32, 4)) - grid).max() > 0.01
    zeros = quantize(mx.zeros((2, 64), mx.bfloat16), chosen)
    assert not mx.dequantize(*zeros, group_size=32, bits=4).any().item()


@pytest.mark.parametrize("kind", ["E2B", MOE])
def test_a_dry_run_knows_the_output_without_reading_weights(
    kind: str, pairs: dict[str, PairPaths], converted: Converted, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nbytes(folder: Path) -> int:
        return sum(array.nbytes for array in read_arrays(folder).values())

    out, unquantized = converted(kind, Options()), converted(kind, Options(bits="none"))
    with monkeypatch.context() as patch:
        patch.setattr(np, "fromfile", Mock(side_effect=AssertionError("weights are read")))
        plans = prepare(pairs[kind].target, Options(), headers_only=True)
        found = dry_run(plans, Options())
    for plan, folder in zip(plans, (out, out / "drafter"), strict=True):
        assert plan.nbytes == nbytes(folder)
        assert f"{read_manifest(folder).bits_per_weight:.2f} bits per weight" in found
        assert f"| {decimal(plan.nbytes)} |" in re.sub(" +", " ", found)
    left_out = nbytes(pairs[kind].target) - nbytes(unquantized)
    assert plans[0].left_out == left_out > 0
    assert f"left out: {decimal(left_out)}" in found

    configs: Any = [plan.config for plan in plans]
    pair = memory.Pair(*configs, *(plan.nbytes for plan in plans), dtype_bytes=4)
    need = pair.needs(1024, 4)
    cells = [cell.strip() for cell in found.splitlines()[-1].split("|")]
    assert cells[1] == "1,024"  # the tiny models' whole context
    assert cells[3] == f"{decimal(need)}: 8 GB Mac"


def test_the_outputs_name_and_the_drafters_bits_follow_from_the_options(tmp_path: Path) -> None:
    expected = {"2": "4", "4": "4", "nvfp4": "4", "5": "8", "mxfp8": "8", "q4_0": "q4_0"}
    for bits, of_drafter in (expected | {"none": "none"}).items():
        assert Options(bits=bits).bits_of_drafter == of_drafter
    assert Options(bits="4", drafter_bits="none").bits_of_drafter == "none"
    for source, options, name in (
        ("google/gemma-4-31B-it", Options(), "gemma-4-31B-it-4bit"),
        ("google/gemma-4-31B-it@abc", Options(bits="mxfp4"), "gemma-4-31B-it-mxfp4"),
        (f"{tmp_path}/mine/", Options(bits="none", dtype="bfloat16"), "mine-bf16"),
        ("demo", Options(bits="none"), "demo-mlx"),
    ):
        assert default_out(source, options) == Path(name)


@pytest.mark.parametrize("size", ["E2B", "26B-A4B"])
def test_a_plan_fits_a_terminal_of_80_columns(size: str) -> None:
    found = dry_run(published(size, Options()), Options())
    assert [line for line in found.splitlines() if len(line) > 80] == []
