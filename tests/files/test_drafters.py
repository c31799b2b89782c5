"""The drafter of a target: found by what both are, under the names that people have on disk."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from mlx_gemma_mtp.bench.synthetic import settings

from helpers.fake_hub import (
    HubCache,
    empty_hub_cache,  # noqa: F401 - the fixture `hub_cache`
    model_files,
)
from helpers.weight_files import few_weights
from mlx_gemma_mtp.files.drafters import Target, googles, to_pull
from mlx_gemma_mtp.files.find import find_pair
from mlx_gemma_mtp.files.published import SIZES, size_within

GOOGLE = "google/gemma-4-{}-it{}-assistant"
QAT = "-qat-q4_0-unquantized"
# Targets as people have them, and the drafter to take if all of these drafters are there.
PAIRS = {
    "google/gemma-4-E4B-it": "google/gemma-4-E4B-it-assistant",
    "google/gemma-4-E4B-it-qat-q4_0-unquantized": GOOGLE.format("E4B", QAT),
    "mlx-community/gemma-4-e2b-it-4bit": "mlx-community/gemma-4-E2B-it-assistant-bf16",
    "mlx-community/gemma-4-E2B-it-bf16": "mlx-community/gemma-4-E2B-it-assistant-bf16",
    "mlx-community/gemma-4-26b-a4b-it-4bit": "mlx-community/gemma-4-26B-A4B-it-assistant-bf16",
    "mlx-community/gemma-4-26B-A4B-it-qat-4bit": (
        "mlx-community/gemma-4-26B-A4B-it-qat-assistant-4bit"
    ),
    "mlx-community/gemma-4-12B-it-4bit": "mlx-community/gemma-4-12B-it-assistant-4bit",
    "mlx-community/gemma-4-12B-it-8bit": "mlx-community/gemma-4-12B-it-assistant-4bit",
    "mlx-community/gemma-4-12B-it-bf16": "mlx-community/gemma-4-12B-it-assistant-bf16",
    "mlx-community/gemma-4-e4b-it-OptiQ-4bit": "google/gemma-4-E4B-it-assistant",
    "mlx-community/gemma-4-E4B-it-qat-OptiQ-4bit": GOOGLE.format("E4B", QAT),
    "unsloth/gemma-4-E4B-it-UD-MLX-4bit": "google/gemma-4-E4B-it-assistant",
    "lmstudio-community/gemma-4-31B-it-MLX-8bit": "google/gemma-4-31B-it-assistant",
    "agentmish/gemma-4-12B-it-mlx-8bit": "agentmish/gemma-4-12B-it-assistant-mlx-bf16",
    "somebody/medicine-31b-v2-4bit": "google/gemma-4-31B-it-assistant",
    "somebody/medicine-e4b-qat-4bit": GOOGLE.format("E4B", QAT),
}
DRAFTERS = sorted({*PAIRS.values(), GOOGLE.format("31B", QAT), GOOGLE.format("12B", "")})


def config(name: str) -> dict[str, Any]:
    """Return a config of the published shape that this name stands for."""
    size = size_within(name)
    assert size is not None
    return settings(size.kind)["assistant" in name] | {"dtype": "bfloat16"}


def files(name: str) -> dict[str, bytes]:
    """Return the files of a model of this name, with one row of weights in the bits it says."""
    found = config(name)
    width = found.get("text_config", found)["hidden_size"]
    bits = next((bits for bits in (4, 8) if f"{bits}bit" in name), 16)
    return model_files(found, few_weights(width, bits))


def put(name: str, folder: Path) -> Path:
    """Write a model without weights worth the name to a folder."""
    folder.mkdir(parents=True)
    for path in ("config.json", "model.safetensors"):
        (folder / path).write_bytes(files(name)[path])
    return folder


@pytest.fixture
def cache(hub_cache: HubCache) -> HubCache:
    """A cache with all the drafters, of all sizes."""
    for name in DRAFTERS:
        hub_cache.add(name, files(name))
    return hub_cache


@pytest.mark.parametrize("target", PAIRS)
def test_a_cached_target_gets_the_drafter_that_is_nearest_to_it(
    cache: HubCache, target: str
) -> None:
    cache.add(target, files(target))
    assert find_pair(target, "auto")[1] == cache.snapshot(PAIRS[target])
    assert cache.network == []


@pytest.mark.parametrize("size", SIZES, ids=lambda size: size.kind)
def test_a_drafter_of_another_size_is_never_taken(hub_cache: HubCache, size: Any) -> None:
    hub_cache.add(size.original, files(size.original))
    for other in SIZES:
        if other != size:
            hub_cache.add(other.drafter(), files(other.drafter()))
    # Not even under the name that would be right.
    wrong = next(other for other in SIZES if other != size)
    hub_cache.add(size.drafter(), files(wrong.drafter()))
    assert find_pair(size.original, "auto")[1] is None
    assert hub_cache.network == []


def test_without_its_own_drafter_a_target_takes_one_for_the_same_size(hub_cache: HubCache) -> None:
    target, qat = "me/gemma-4-E4B-it-tuned-8bit", "me/gemma-4-E4B-it-qat-4bit"
    for name in (target, qat):
        hub_cache.add(name, files(name))
    last = None
    for drafter in (  # each is nearer to the first target than those before it
        "another/medicine-e4b-assistant",
        GOOGLE.format("E4B", QAT),
        "mlx-community/gemma-4-E4B-it-assistant-4bit",
        "mlx-community/gemma-4-E4B-it-assistant-8bit",
        "me/gemma-4-E4B-it-assistant-4bit",
        "me/gemma-4-E4B-it-tuned-assistant",
    ):
        assert find_pair(target, "auto")[1] == last
        last = hub_cache.add(drafter, files(drafter))
    assert find_pair(target, "auto")[1] == last
    assert find_pair(qat, "auto")[1] == hub_cache.snapshot(GOOGLE.format("E4B", QAT))


@pytest.mark.parametrize("form", ["base_model: {}", "base_model:\n- {}\n- 3"])
def test_the_model_card_names_the_model_that_a_renamed_one_comes_from(
    cache: HubCache, form: str
) -> None:
    base = "google/gemma-4-E4B-it-qat-q4_0-unquantized"
    card = f"---\nlicense: apache-2.0\n{form.format(base)}\n---\n# Mine\n"
    cache.add("me/my-e4b-4bit", files("my-e4b-4bit") | {"README.md": card.encode()})
    assert find_pair("me/my-e4b-4bit", "auto")[1] == cache.snapshot(GOOGLE.format("E4B", QAT))


def test_a_drafter_of_the_model_that_the_card_names_comes_before_googles(cache: HubCache) -> None:
    card = b"---\nbase_model: somebody/medicine-e4b\n---\n"
    cache.add("me/mine-4bit", files("e4b-4bit") | {"README.md": card})
    assert find_pair("me/mine-4bit", "auto")[1] == cache.snapshot(GOOGLE.format("E4B", ""))
    own = cache.add("somebody/medicine-e4b-assistant", files("e4b-assistant"))
    assert find_pair("me/mine-4bit", "auto")[1] == own


@pytest.mark.parametrize(
    "card", [b"", b"---\nbase_model: [\n---\n", b"---\n- 1\n---\n", b"---\nbase_model: \xff\n---\n"]
)
def test_a_damaged_model_card_does_not_matter(cache: HubCache, card: bytes) -> None:
    cache.add("me/my-e4b-4bit", files("my-e4b-4bit") | {"README.md": card})
    assert find_pair("me/my-e4b-4bit", "auto")[1] == cache.snapshot(GOOGLE.format("E4B", ""))


PLACES = {  # of a target and its drafter
    "side by side": ("gemma-4-31b-it-4bit", "gemma-4-31B-it-assistant-bf16"),
    "named after it": ("tuned-31b", "tuned-31b-assistant"),
    "target and assistant": ("31b/target", "31b/assistant"),
    "target and drafter": ("31b/target", "31b/drafter"),
    "drafter inside": ("31b", "31b/drafter"),
    "assistant inside": ("31b", "31b/assistant"),
    "other publisher": ("lmstudio/gemma-4-31B-it-MLX-4bit", "google/gemma-4-31B-it-assistant"),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_folder_gets_the_drafter_that_is_kept_with_it(
    hub_cache: HubCache, tmp_path: Path, place: str
) -> None:
    target, drafter = (tmp_path / "models" / path for path in PLACES[place])
    put("31B", target)
    put("31B-assistant", drafter)
    put("E4B-assistant", target.parent / "other-assistant")
    (target.parent / "empty-assistant").mkdir()
    (target.parent / "assistant.txt").write_text("")
    assert find_pair(target, "auto") == (target, drafter)
    shutil.rmtree(drafter)
    assert find_pair(target, "auto") == (target, None)
    # Then the cache's.
    cached = hub_cache.add(GOOGLE.format("31B", ""), files("31B-assistant"))
    assert find_pair(target, "auto") == (target, cached)
    assert hub_cache.network == []


def test_a_folder_of_the_cache_counts_under_its_hub_name(cache: HubCache) -> None:
    name = "mlx-community/gemma-4-26B-A4B-it-qat-4bit"
    folder = cache.add(name, files(name))
    assert find_pair(folder, "auto")[1] == cache.snapshot(PAIRS[name])


def test_the_names_to_pull_are_the_targets_own_then_googles() -> None:
    quantized = "mlx-community/gemma-4-E2B-it-qat-4bit"
    plain, qat = GOOGLE.format("E2B", ""), GOOGLE.format("E2B", QAT)
    shape = config(quantized)
    for raw in (shape, {"text_config": shape}):
        assert to_pull(Target(quantized, raw)) == [f"{quantized}-assistant", qat, plain]
        assert googles(Target("mine", raw)) == (plain, SIZES[0].drafter_bytes)
    assert to_pull(Target("google/gemma-4-E2B-it", shape)) == [plain]
    assert to_pull(Target("my-folder", shape)) == [plain]
    assert to_pull(Target("my-folder", shape, [quantized])) == [qat, plain]
    assert to_pull(Target("me/model", {"hidden_size": 1})) == ["me/model-assistant"]
    assert googles(Target("me/model", {"hidden_size": 1})) is None
