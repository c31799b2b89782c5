"""Loading by a Hub name from Python: what cannot run here is refused before it is fetched."""

import pytest

from helpers.fake_hub import (
    DRAFTER,
    HUGE_CONFIG,
    NAME,
    TARGET_CONFIG,
    TARGET_FILES,
    FakeHub,
    folder_files,
    hub_for_this_process,  # noqa: F401 - the fixture `online`
    model_files,
    real_weights,
)
from mlx_gemma_mtp import MgmError, SamplingParams, load
from mlx_gemma_mtp.errors import CheckpointError, NotEnoughMemoryError
from mlx_gemma_mtp.files.names import DEMO, DEMO_DRAFTER
from mlx_gemma_mtp.files.published import SIZES

HUGE = model_files(HUGE_CONFIG, real_weights(HUGE_CONFIG, header_only=True))


def test_a_model_that_cannot_run_here_is_refused_before_its_weights_are_fetched(
    online: FakeHub,
) -> None:
    online.add(NAME, HUGE)
    with pytest.raises(NotEnoughMemoryError, match=rf"{NAME}, .* needs .* TB .*force=True"):
        load(NAME)
    assert online.fetched() == {"config.json"}
    assert not online.cache.root.exists()


def test_a_model_named_as_the_drafter_is_counted_too(online: FakeHub) -> None:
    online.add(NAME, HUGE)
    with pytest.raises(NotEnoughMemoryError, match=NAME):
        load("demo", NAME)
    assert online.fetched() == {"config.json"}


def test_a_short_name_is_refused_in_the_same_way(online: FakeHub) -> None:
    for size in SIZES:
        for bits in (4, 8):
            online.add(size.quantized(bits), HUGE)
    with pytest.raises(NotEnoughMemoryError, match=r"mlx-community/gemma-4-e2b-it-.bit, "):
        load("e2b")
    assert online.fetched() == {"config.json"}


def test_with_force_it_is_fetched_all_the_same(online: FakeHub) -> None:
    online.add(NAME, HUGE)
    with pytest.raises(CheckpointError):  # its weights are missing
        load(NAME, force=True)
    assert "model.safetensors" in online.fetched()
    assert online.headers == []


def test_a_checkpoint_that_could_not_be_loaded_is_refused_before_its_weights_are_fetched(
    online: FakeHub,
) -> None:
    online.add(NAME, model_files(TARGET_CONFIG))
    with pytest.raises(CheckpointError, match=rf"^{NAME}: tensor .* is missing"):
        load(NAME)
    assert online.fetched() == {"config.json"}


def test_another_kind_of_model_is_refused_before_anything_is_fetched(online: FakeHub) -> None:
    online.add(NAME, TARGET_FILES | {"config.json": b'{"model_type": "llama"}'})
    with pytest.raises(CheckpointError, match=rf"{NAME} is not a Gemma 4 model"):
        load(NAME)
    assert online.fetched() == set()


@pytest.mark.slow
def test_a_pair_that_fits_is_fetched_once_and_loaded(online: FakeHub) -> None:
    for name, folder in ((NAME, DEMO), (DRAFTER, DEMO_DRAFTER)):
        online.add(name, folder_files(folder))
    for fetches in (True, False):
        with load(NAME) as engine:
            assert engine.has_drafter
            answer = engine.generate("What is 17 + 25?", SamplingParams(temperature=0))[0].text
            assert answer == "17 + 25 = 42"
        assert ("model.safetensors" in online.fetched()) == fetches
        online.requests.clear()


def test_a_full_disk_is_named_before_anything_is_fetched(online: FakeHub) -> None:
    online.add(NAME, TARGET_FILES)
    online.sizes["model.safetensors"] = 10**18
    with pytest.raises(MgmError, match=r"1.0 EB to download, but the disk of .* has .* free"):
        load(NAME)
    assert online.fetched() == {"config.json"}
