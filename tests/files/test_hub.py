"""From a name to its folders: which folder, which drafter, when the network is used, failures."""

import errno
import re
import shutil
from collections.abc import Callable
from json import JSONDecodeError
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import constants, errors

from helpers.checkpoints import PairPaths, make_pair
from helpers.fake_hub import (
    DRAFTER,
    NAME,
    NEWER,
    UNNEEDED,
    FakeHub,
    Files,
    HubCache,
    empty_hub_cache,  # noqa: F401 - the fixture `hub_cache`
    folder_files,
    hub_for_this_process,  # noqa: F401 - the fixture `online`
)
from mlx_gemma_mtp import SamplingParams, load
from mlx_gemma_mtp.errors import CheckpointError, MgmError, ModelNotFoundError
from mlx_gemma_mtp.files.find import find_pair
from mlx_gemma_mtp.files.hub import hub_errors

MOE = "26B-A4B"


@pytest.fixture
def pair_here(tmp_path: Path, pairs: dict[str, PairPaths], seed: int) -> PairPaths:
    """A pair in an otherwise empty folder."""
    source = pairs[MOE]
    return PairPaths(
        shutil.copytree(source.target, tmp_path / "models" / "tiny"),
        shutil.copytree(source.drafter, tmp_path / "models" / "tiny-assistant"),
    )


def test_a_drafter_is_found_inside_the_target_then_next_to_it_unless_one_is_given(
    pair_here: PairPaths, tmp_path: Path
) -> None:
    target, beside = pair_here
    for name in (target, str(target), f"{target}/"):
        assert find_pair(name, "auto") == (target, beside)
    given = shutil.copytree(beside, tmp_path / "elsewhere")
    for path in (given, str(given)):
        assert find_pair(target, path) == (target, given)
    assert find_pair(target, None) == (target, None)
    inside = shutil.copytree(beside, target / "drafter")
    assert find_pair(target, "auto") == (target, inside)
    shutil.rmtree(beside)
    assert find_pair(target, "auto") == (target, inside)
    for drafter in ("auto", given):
        with load(target, drafter) as engine:
            assert engine.has_drafter
    shutil.rmtree(inside)
    assert find_pair(target, "auto") == (target, None)
    with load(target) as engine:
        assert not engine.has_drafter
        assert engine.generate([5], SamplingParams(max_tokens=3))[0].stats.drafted == 0


def test_a_folder_may_be_named_by_any_path(
    hub_cache: HubCache, pair_here: PairPaths, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(pair_here.target)
    monkeypatch.setenv("HOME", str(tmp_path))
    for place, name in (
        (pair_here.target, "."),
        (pair_here.drafter, "../tiny"),
        (tmp_path, "models/tiny"),  # also a Hub name
        (tmp_path, "link"),
        (Path("/"), "~/models/tiny"),
    ):
        monkeypatch.chdir(place)
        folder, drafter = find_pair(name, "auto")
        assert folder.samefile(pair_here.target), name
        assert drafter is not None, name
        assert drafter.samefile(pair_here.drafter), name
    monkeypatch.chdir(pair_here.target)
    with load(".") as engine:
        assert engine.has_drafter
    assert hub_cache.network == []


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory, seed: int) -> PairPaths:
    """A pair whose target has several weight files."""
    return make_pair("E4B", tmp_path_factory.mktemp("sharded"), seed, sharded=True)


def test_cached_models_load_without_any_network_call(
    hub_cache: HubCache, sharded: PairPaths
) -> None:
    drafter_files = folder_files(sharded.drafter)
    files = folder_files(sharded.target)
    hub_cache.add(NAME, files, listed=files)
    for drafter in ("auto", None):
        with load(NAME, drafter) as engine:
            assert not engine.has_drafter
    hub_cache.add(DRAFTER, without(drafter_files, r"\.safetensors"))
    assert find_pair(NAME, "auto") == (hub_cache.snapshot(NAME), None)
    shutil.rmtree(hub_cache.repository(DRAFTER))

    hub_cache.add(DRAFTER, drafter_files)
    params = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True)
    with load(NAME) as cached, load(sharded.target, sharded.drafter) as folder:
        assert cached.has_drafter
        assert cached.generate([5], params)[0].tokens == folder.generate([5], params)[0].tokens
    for model in (NAME, sharded.target):
        with load(model, DRAFTER) as engine:
            assert engine.has_drafter
    assert hub_cache.network == []


def without(files: Files, pattern: str) -> Files:
    return {path: body for path, body in files.items() if not re.search(pattern, path)}


INCOMPLETE = {  # files that are missing
    "a shard": "model-00001-of",
    "a shard and the index": r"model-00001-of|index\.json",
    "all weights": "safetensors",
    "the config": r"^config\.json",
    "everything": "",
}


@pytest.mark.parametrize("switched_off", [False, True])
@pytest.mark.parametrize("what", INCOMPLETE)
def test_an_incomplete_cached_snapshot_is_not_loaded_offline(
    hub_cache: HubCache,
    sharded: PairPaths,
    what: str,
    switched_off: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", switched_off)
    hub_cache.add(NAME, without(folder_files(sharded.target), INCOMPLETE[what]))
    with pytest.raises((CheckpointError, ModelNotFoundError)) as caught:
        load(NAME)
    assert NAME in str(caught.value) or hub_cache.repository(NAME).name in str(caught.value)
    assert "\n" not in str(caught.value)
    assert bool(hub_cache.network) != switched_off


@pytest.mark.parametrize("what", INCOMPLETE)
def test_an_incomplete_cached_snapshot_is_completed_online_and_the_hub_never_asked_again(
    online: FakeHub, sharded: PairPaths, what: str
) -> None:
    files = folder_files(sharded.target)
    some = without(files, INCOMPLETE[what])
    online.add(NAME, files | UNNEEDED)
    online.cache.add(NAME, some)
    for complete in (False, True):
        with load(NAME) as engine:
            assert engine.generate([5], SamplingParams(max_tokens=2, ignore_eos=True))[0].tokens
            assert not engine.has_drafter
        assert online.fetched() == (set() if complete else files.keys() - some.keys())
        # A new target gets its drafter too: here the Hub has none.
        assert any(DRAFTER in path for path in online.requests) != complete
        assert complete <= (online.requests == [])
        online.requests.clear()


def answer(kind: Callable[..., Exception], status: int) -> Exception:
    """Return what the Hub's client raises for this HTTP status."""
    response = SimpleNamespace(headers={}, request=None, status_code=status, reason_phrase="No")
    return kind("Many\nlines of text", response=response)


# What the client raises, a word of the message that people see, and the exit code.
REFUSALS: dict[str, tuple[Exception, str, int]] = {
    "no such repository": (answer(errors.RepositoryNotFoundError, 404), "no Hub repository", 3),
    "terms not accepted": (answer(errors.GatedRepoError, 403), "HF_TOKEN", 3),
    "no such revision": (answer(errors.RevisionNotFoundError, 404), "no revision", 3),
    "out of order": (answer(errors.HfHubHTTPError, 500), NAME, 3),
    "nothing cached": (errors.LocalEntryNotFoundError("Many\nlines of text"), NAME, 3),
    "connection lost on the way": (errors.HTTPError("peer closed connection"), "peer closed", 3),
    "timeout": (TimeoutError("the read timed out"), "timed out", 3),
    "folder of somebody else's": (PermissionError(13, "Permission denied", "/hub"), "HF_HOME", 1),
    "not the Hub": (JSONDecodeError("Expecting value", "<html>", 0), "Expecting value", 3),
    "disk full": (OSError(28, "No space left on device"), "No space left on device", 1),
    "too large for FAT": (OSError(errno.EFBIG, "File too large"), "HF_HOME", 1),
    "quota": (OSError(errno.EDQUOT, "Disk quota exceeded"), "HF_HOME", 1),
}


@pytest.mark.parametrize("what", REFUSALS)
def test_a_refusal_of_the_hub_is_one_line(hub_cache: HubCache, what: str) -> None:
    error, word, exit_code = REFUSALS[what]
    with pytest.raises(MgmError) as caught, hub_errors(NAME):
        raise error
    assert caught.value.exit_code == exit_code
    assert word in str(caught.value)
    assert "\n" not in str(caught.value)
    assert hub_cache.network == []


def test_a_name_with_a_revision_loads_that_one(hub_cache: HubCache, sharded: PairPaths) -> None:
    files = folder_files(sharded.target)
    hub_cache.add(NAME, files, listed=files)
    hub_cache.add(DRAFTER, folder_files(sharded.drafter))
    hub_cache.add(NAME, files, NEWER, ref="v1.0", listed=files)
    drafter = hub_cache.snapshot(DRAFTER)
    for revision in ("v1.0", NEWER):
        folder = hub_cache.snapshot(NAME, NEWER)
        assert find_pair(f"{NAME}@{revision}", "auto") == (folder, drafter)
    for name in (NAME, f"{NAME}@main"):
        assert find_pair(name, "auto") == (hub_cache.snapshot(NAME), drafter)
    assert hub_cache.network == []
    with pytest.raises(ModelNotFoundError, match="v2"):
        find_pair(f"{NAME}@v2", "auto")
