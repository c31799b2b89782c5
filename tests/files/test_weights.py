"""The same model from every layout of files; quantized and cast while it is loaded."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx_lm import utils as mlx_lm

from helpers.arrays import (
    AFFINE,
    assert_same_bits,
    cast,
    parameters,
    quantize_arrays,
    read_arrays,
    to_mlx_names,
    write,
)
from helpers.checkpoints import CENTROID_KINDS, VOCAB, PairPaths, make_pair, to_global_spelling
from helpers.logits import assert_logits_agree, capped_logits, logits, logits_of_mlx_lm
from mlx_gemma_mtp import SamplingParams, load
from mlx_gemma_mtp.files.checkpoint import read_config
from mlx_gemma_mtp.files.weights import load_drafter, load_target, num_bytes
from mlx_gemma_mtp.model.config import TargetConfig
from mlx_gemma_mtp.model.target import Target

pytestmark = pytest.mark.torch

MOE = "26B-A4B"
LAYOUTS: dict[str, dict[str, bool]] = {
    "text-only, sharded": {"sharded": True},
    "text-only, older spelling": {"older_spelling": True},
    "with towers": {"multimodal": True},
    "with towers, sharded": {"multimodal": True, "sharded": True},
    "with towers, older spelling": {"multimodal": True, "older_spelling": True},
}


@pytest.fixture(scope="module")
def plain(kind: str, tmp_path_factory: pytest.TempPathFactory, seed: int) -> PairPaths:
    """This kind's pair in the simplest layout: text-only names, one file each."""
    return make_pair(kind, tmp_path_factory.mktemp("plain"), seed)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_logits_bit_for_bit(
    plain: PairPaths, kind: str, layout: str, tmp_path: Path, seed: int
) -> None:
    options = dict(LAYOUTS[layout])
    older_spelling = options.pop("older_spelling", False)
    other = make_pair(kind, tmp_path, seed, **options)
    if older_spelling:
        for folder in other:
            to_global_spelling(folder)
            assert "per_layer_config" not in (folder / "config.json").read_text()
    names = read_arrays(other.target)
    num_files = len(list(other.target.glob("*.safetensors")))
    assert (num_files > 1) == options.get("sharded", False)
    assert any("vision" in name for name in names) == options.get("multimodal", False)
    assert "model.language_model.norm.weight" in names or not options.get("multimodal")

    targets = [load_target(pair.target) for pair in (plain, other)]
    np.testing.assert_array_equal(logits(targets[0]), logits(targets[1]))
    drafters = [
        load_drafter(pair.drafter, target.config)
        for pair, target in zip((plain, other), targets, strict=True)
    ]
    assert drafters[0].config == drafters[1].config
    assert_same_bits(*drafters)


@pytest.mark.parametrize("kind", ["E2B", "E4B"])
def test_key_value_weights_of_layers_that_share_them_are_not_read(
    kind: str, tmp_path: Path, seed: int
) -> None:
    pair = make_pair(kind, tmp_path, seed, multimodal=True)
    target = load_target(pair.target)
    shared = [i for i, layer in enumerate(target.config.layers) if not layer.owns_kv]
    assert shared
    for index in shared:
        stem = f"layers.{index}.self_attn."
        assert f"model.language_model.{stem}k_proj.weight" in read_arrays(pair.target)
        assert {name for name in parameters(target) if name.startswith(stem)} == {
            f"{stem}{part}.weight" for part in ("q_proj", "q_norm", "o_proj")
        }


OVERRIDES: dict[str, dict[str, Any] | None] = {
    "router.proj": {"group_size": 64, "bits": 8},
    "layers.1.mlp.down_proj": {"group_size": 32, "bits": 8},
    "layers.2.experts.switch_glu.gate_proj": {"group_size": 32, "bits": 8},
    "layers.2.experts.switch_glu.up_proj": {"group_size": 32, "bits": 8},
    "layers.2.self_attn.q_proj": {"group_size": 32, "bits": 4, "mode": "mxfp4"},
    "layers.0.mlp.gate_proj": None,  # not quantized
}


def override(path: str) -> dict[str, Any] | None:
    """Return the format of the module with this name in an MLX checkpoint."""
    for suffix, own in OVERRIDES.items():
        if path.endswith(suffix):
            return None if own is None else AFFINE | own
    return AFFINE


@pytest.mark.parametrize("kind", ["E2B", MOE])
@pytest.mark.parametrize("common_mode", ["affine", None])  # older converters leave it out
def test_an_mlx_checkpoint_equals_quantizing_in_memory_as_its_block_says(
    kind: str, common_mode: str | None, tmp_path: Path, seed: int
) -> None:
    plain = make_pair(kind, tmp_path, seed).target
    arrays = quantize_arrays(to_mlx_names(plain), override)
    modules = {name.removesuffix(".weight") for name in to_mlx_names(plain)}
    block: dict[str, Any] = dict(AFFINE)
    if common_mode is None:
        del block["mode"]
    for module in modules:
        if (own := override(module)) != AFFINE:
            block[module] = False if own is None else own
    config = {"model_type": "gemma4", "text_config": read_config(plain), "quantization": block}
    found = load_target(write(tmp_path / "mlx", config, arrays))

    def in_memory(path: str, module: nn.Module) -> dict[str, Any] | bool:
        if not hasattr(module, "to_quantized"):
            return False
        theirs = path.replace("experts.gate_up_proj", "experts.switch_glu.gate_proj")
        return override(theirs) or False

    expected = load_target(plain)
    nn.quantize(expected, class_predicate=in_memory)
    assert_same_bits(found, expected)
    np.testing.assert_array_equal(logits(found), logits(expected))
    assert found.layers[1].mlp.down_proj.bits == 8
    assert isinstance(found.layers[0].mlp.gate_proj, nn.Linear)
    if kind == MOE:
        assert found.layers[0].router.proj.bits == 8
        assert found.layers[2].experts.gate_up_proj.group_size == 32


@pytest.mark.parametrize(
    ("kind", "wrapped", "bits"),
    [
        ("E2B", False, None),
        ("E2B", True, 4),
        ("12B", True, None),
        ("12B", True, 8),
        (MOE, True, None),
        (MOE, False, 4),
        (MOE, True, 8),
        ("31B", False, None),
        ("31B", True, 4),
    ],
)
def test_a_checkpoint_of_mlx_lm_gives_the_same_logits_as_in_mlx_lm(
    kind: str, wrapped: bool, bits: int | None, tmp_path: Path, seed: int
) -> None:
    source, folder = make_pair(kind, tmp_path, seed, multimodal=wrapped).target, tmp_path / "saved"
    to_global_spelling(source)  # mlx-lm does not read per_layer_config
    config = read_config(source)
    # Transformers omits values that equal its defaults; mlx-lm's defaults are E2B's.
    text = config.get("text_config", config)
    text |= {
        key: text.get(key, 0) for key in ("hidden_size_per_layer_input", "use_double_wide_mlp")
    }
    (source / "config.json").write_text(json.dumps(config))
    model, config = mlx_lm.load_model(source, model_config={"vocab_size": VOCAB})
    if bits is not None:
        model, config = mlx_lm.quantize_model(model, config, 64, bits)
    mlx_lm.save_model(folder, model)
    mlx_lm.save_config(config, folder / "config.json")

    assert any(name.startswith("language_model.") for name in read_arrays(folder)) == wrapped
    assert ("quantization" in read_config(folder)) == (bits is not None)
    assert_logits_agree(capped_logits(load_target(folder)), logits_of_mlx_lm(model))


EIGHT_BIT = ("router.proj", "embed_tokens", "embed_tokens_per_layer", "masked_embedding.centroids")


def bits_of(model: nn.Module) -> dict[str, int]:
    """Return the bits of every module with a matrix; 0 if it is not quantized."""
    return {
        path: getattr(module, "bits", 0)
        for path, module in model.named_modules()
        if "weight" in module and module.weight.ndim > 1
    }


@pytest.mark.parametrize("bits", [4, 8])
def test_bits_quantizes_like_quantizing_the_loaded_model(
    pair: PairPaths, kind: str, bits: int
) -> None:
    def in_memory(path: str, module: nn.Module) -> dict[str, int] | bool:
        own = {"group_size": 64, "bits": 8 if path.endswith(EIGHT_BIT) else bits}
        return hasattr(module, "to_quantized") and own

    target = load_target(pair.target, bits=bits)
    expected = load_target(pair.target)
    nn.quantize(expected, class_predicate=in_memory)
    assert_same_bits(target, expected)
    np.testing.assert_array_equal(logits(target), logits(expected))

    drafter = load_drafter(pair.drafter, target.config, bits=bits)
    expected_drafter = load_drafter(pair.drafter, target.config)
    nn.quantize(expected_drafter, class_predicate=in_memory)
    assert_same_bits(drafter, expected_drafter)

    for model in (target, drafter):
        for path, found in bits_of(model).items():
            assert found == (8 if path.endswith(EIGHT_BIT) else bits), path
    assert ("embed_tokens_per_layer" in bits_of(target)) == (kind in ("E2B", "E4B"))
    assert ("layers.0.router.proj" in bits_of(target)) == (kind == MOE)
    assert ("masked_embedding.centroids" in bits_of(drafter)) == (kind in CENTROID_KINDS)


def test_a_pair_quantized_while_loading_generates(pair: PairPaths) -> None:
    with load(pair.target, bits=4) as engine:
        assert engine.has_drafter
        params = SamplingParams(max_tokens=20, temperature=0, ignore_eos=True)
        done = engine.generate([5, 6, 7], params)[0]
    assert len(done.tokens) == 20
    assert done.stats.drafted > 0


LARGE = {
    "model_type": "gemma4_text",
    "vocab_size": 256,
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
}  # 64 MiB in float32, enough to measure


def peak_of(job: Callable[[], Target]) -> tuple[int, int]:
    """Return the most bytes held during a load, and those held afterwards."""
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    target = job()
    kept = mx.get_active_memory() - before
    assert kept >= 0.9 * num_bytes(target)
    return mx.get_peak_memory() - before, kept


def test_quantizing_or_converting_while_loading_never_holds_the_model_twice(tmp_path: Path) -> None:
    arrays = {
        "model." + (name.removesuffix(".weight") if ".experts." in name else name): array
        for name, array in parameters(Target(TargetConfig.from_dict(LARGE))).items()
    }
    large = write(tmp_path / "large", LARGE, arrays)
    full = sum(array.nbytes for array in arrays.values())
    del arrays
    peak, kept = peak_of(lambda: load_target(large, bits=4))
    assert kept < 0.25 * full
    assert peak < kept + 1.5 * full / 6  # layers

    half = cast(large, tmp_path / "bfloat16", mx.bfloat16)
    peak, kept = peak_of(lambda: load_target(half))
    assert kept < 1.05 * full
    assert peak < kept + 1.5 * full / 6


@pytest.fixture
def on_cpu() -> Iterator[None]:
    """MLX's CPU backend, even if there is a GPU."""
    before = mx.default_device()
    mx.set_default_device(mx.cpu)
    yield
    mx.set_default_device(before)


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize("kind", ["E2B", MOE])  # a centroid head's integers; experts
def test_on_the_cpu_everything_floating_is_float32(kind: str, tmp_path: Path, seed: int) -> None:
    source = make_pair(kind, tmp_path / "float32", seed)
    pair = PairPaths(
        cast(source.target, tmp_path / "target", mx.bfloat16),
        cast(source.drafter, tmp_path / "target-assistant", mx.bfloat16),
    )
    target = load_target(pair.target)
    drafter = load_drafter(pair.drafter, target.config)
    for model in (target, drafter):
        for name, array in parameters(model).items():
            is_index = name.endswith("token_ordering")
            assert array.dtype == (mx.int32 if is_index else mx.float32), name
    assert logits(target).dtype == np.float32
    rounded = load_target(cast(source.target, tmp_path / "rounded", mx.bfloat16, mx.float32))
    np.testing.assert_array_equal(logits(target), logits(rounded))

    with load(pair.target) as engine:
        assert engine.has_drafter
        params = SamplingParams(max_tokens=20, temperature=0, ignore_eos=True)
        assert len(engine.generate([5, 6, 7], params)[0].tokens) == 20


@pytest.mark.usefixtures("on_cpu")
def test_a_quantized_mixture_in_bfloat16_runs_on_the_cpu(tmp_path: Path, seed: int) -> None:
    plain = make_pair(MOE, tmp_path, seed).target
    half = cast(plain, tmp_path / "bfloat16", mx.bfloat16)
    arrays = quantize_arrays(to_mlx_names(half), lambda _: AFFINE)
    assert arrays["language_model.model.layers.0.mlp.up_proj.scales"].dtype == mx.bfloat16
    config = {"model_type": "gemma4", "text_config": read_config(half), "quantization": AFFINE}
    stored = write(tmp_path / "mlx", config, arrays)
    target = load_target(stored)
    assert {array.dtype for array in parameters(target).values()} == {mx.float32, mx.uint32}
    expected = load_target(cast(stored, tmp_path / "float32", mx.float32))
    np.testing.assert_array_equal(logits(target), logits(expected))


def test_generation_defaults_come_with_the_checkpoint(
    pairs: dict[str, PairPaths], tmp_path: Path
) -> None:
    folder = shutil.copytree(pairs[MOE].target, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    for section in (config, config.get("text_config", {})):
        section.pop("eos_token_id", None)  # it ends outputs too
    (folder / "config.json").write_text(json.dumps(config))

    def text(stored: dict[str, Any], **settings: Any) -> list[int]:
        (folder / "generation_config.json").write_text(json.dumps(stored))
        with load(folder, None) as engine:
            return engine.generate([5, 6], SamplingParams(max_tokens=12, **settings))[0].tokens

    greedy = text({}, temperature=0, ignore_eos=True)
    assert text({"temperature": 0}, ignore_eos=True) == greedy
    assert text({"do_sample": False, "temperature": 1.0}, ignore_eos=True) == greedy
    assert text({"top_k": 1}, ignore_eos=True) == greedy
    assert text({"top_k": None, "top_p": 1e-9}, ignore_eos=True) == greedy
    assert text({}, seed=1, ignore_eos=True) == text({}, seed=1, temperature=1, ignore_eos=True)
    assert text({"suppress_tokens": greedy[:1]}, temperature=0)[0] != greedy[0]
    up_to = greedy.index(greedy[6]) + 1
    unused = next(token for token in range(VOCAB) if token not in greedy)
    for eos in (greedy[6], [greedy[6], unused]):
        assert text({"eos_token_id": eos}, temperature=0) == greedy[:up_to]
        assert text({"eos_token_id": eos}, temperature=0, ignore_eos=True) == greedy
