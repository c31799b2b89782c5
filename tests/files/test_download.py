"""Downloads from a fake Hub: interrupted ones continue, in another run or next to one."""

import json
import struct
import threading
import time
from pathlib import Path

import pytest
from huggingface_hub import constants

from helpers.fake_hub import (
    DRAFTER,
    DRAFTER_FILES,
    NAME,
    NEWER,
    TARGET_FILES,
    UNNEEDED,
    FakeHub,
    HubCache,
    empty_hub_cache,  # noqa: F401 - the fixture `hub_cache`
    folder_files,
    hub_for_this_process,  # noqa: F401 - the fixture `online`
    needed,
)
from mlx_gemma_mtp.engine.pair import check_downloads
from mlx_gemma_mtp.errors import CheckpointError, MgmError, ModelNotFoundError
from mlx_gemma_mtp.files import hub
from mlx_gemma_mtp.files.checkpoint import read_config
from mlx_gemma_mtp.files.download import fetch, snapshot
from mlx_gemma_mtp.files.find import find_pair
from mlx_gemma_mtp.files.names import DEMO, DEMO_DRAFTER
from mlx_gemma_mtp.files.plan import Download, RemoteFile, look_up, plan_download
from mlx_gemma_mtp.files.preview import previews
from mlx_gemma_mtp.memory import read_pair

WEIGHTS = TARGET_FILES["model.safetensors"]


def weights_of(found: Download) -> RemoteFile:
    return next(file for file in found.files if file.path == "model.safetensors")


def leave_part(found: Download, content: bytes) -> Path:
    """Leave the start of the weights, as an interrupted download does."""
    part = weights_of(found).part
    part.parent.mkdir(parents=True)
    part.write_bytes(content)
    return part


def test_a_download_continues_the_bytes_of_an_interrupted_one(online: FakeHub) -> None:
    online.add(NAME, TARGET_FILES)
    part = leave_part(look_up(NAME), WEIGHTS[:700_000])
    found = look_up(NAME)
    assert found.total - found.missing == 700_000
    came: list[int] = []
    assert fetch(found, came.append) == online.cache.snapshot(NAME)
    assert online.ranges == ["model.safetensors bytes=700000-"]
    assert sum(came) == found.missing
    assert folder_files(online.cache.snapshot(NAME)) == needed(TARGET_FILES)
    assert not part.exists()


@pytest.mark.parametrize("what", ["other bytes", "too long"])
def test_a_damaged_part_is_found_out_and_the_next_run_starts_over(
    online: FakeHub, what: str
) -> None:
    online.add(NAME, TARGET_FILES)
    leave_part(look_up(NAME), {"other bytes": b"?" * 1000, "too long": WEIGHTS + b"?"}[what])
    if what == "other bytes":
        with pytest.raises(MgmError, match=r"model.safetensors .* arrived damaged: run this again"):
            snapshot(NAME)
    snapshot(NAME)
    assert folder_files(online.cache.snapshot(NAME)) == needed(TARGET_FILES)


def test_a_server_that_ignores_ranges_sends_what_is_missing_all_the_same(online: FakeHub) -> None:
    online.add(NAME, TARGET_FILES)
    online.ranged = False
    leave_part(look_up(NAME), WEIGHTS[:700_000])
    snapshot(NAME)
    assert folder_files(online.cache.snapshot(NAME)) == needed(TARGET_FILES)


def test_two_downloads_at_once_fetch_each_byte_once(online: FakeHub) -> None:
    online.add(NAME, TARGET_FILES)
    online.stall["model.safetensors"] = 500_000
    found = [look_up(NAME), look_up(NAME)]
    came: list[list[int]] = [[], []]
    runs = [
        threading.Thread(target=fetch, args=(one, bytes_of.append))
        for one, bytes_of in zip(found, came, strict=True)
    ]
    runs[0].start()
    assert online.stalled.wait(20)
    runs[1].start()
    time.sleep(0.7)  # longer than it waits between two looks at the other's part
    online.stall.clear()
    online.resume.set()
    for run in runs:
        run.join(30)
    assert online.ranges == ["model.safetensors bytes=0-"]
    assert folder_files(online.cache.snapshot(NAME)) == needed(TARGET_FILES)
    assert [sum(one) for one in came] == [one.missing for one in found]


def test_files_in_other_subfolders_are_neither_fetched_nor_missed(
    online: FakeHub,
) -> None:
    wanted = {"drafter/config.json": b"{}", "additional_chat_templates/tool_use.jinja": b"{}"}
    unneeded = {"drafter/original/a.json": b"", "additional_chat_templates/a/b.jinja": b""}
    online.add(NAME, TARGET_FILES | wanted | unneeded)
    folder = snapshot(NAME)
    got = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert got == needed(TARGET_FILES).keys() | wanted.keys()
    assert hub.missing_files(folder) == []
    assert hub.from_cache(NAME) == folder


REQUIRED = ["config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja"]


@pytest.mark.parametrize("path", [*REQUIRED, "model.safetensors"])
def test_each_file_that_the_hub_lists_is_missed_then_fetched_from_the_same_commit(
    online: FakeHub, path: str
) -> None:
    online.add(NAME, TARGET_FILES | {"config.json": TARGET_FILES["config.json"] + b" "}, NEWER)
    online.add(NAME, TARGET_FILES)
    online.cache.add(NAME, without(path), listed=TARGET_FILES)
    assert hub.from_cache(NAME) is None
    assert find_pair(NAME, None)[0] == online.cache.snapshot(NAME)
    assert hub.missing_files(online.cache.snapshot(NAME)) == []


def without(*paths: str) -> dict[str, bytes]:
    return {path: body for path, body in TARGET_FILES.items() if path not in (*paths, *UNNEEDED)}


def test_weights_that_are_cached_are_not_replaced_by_newer_ones_to_get_a_tokenizer(
    online: FakeHub,
) -> None:
    online.add(NAME, TARGET_FILES)
    online.add(NAME, TARGET_FILES | {"README.md": b"newer"}, NEWER)
    online.cache.add(NAME, without("tokenizer.json"))
    assert find_pair(NAME, None)[0] == online.cache.snapshot(NAME)
    assert online.fetched() == {"tokenizer.json"}
    assert [one.commit for one in plan_download(NAME, None)] == [NEWER]


def test_an_optional_file_is_not_missed(hub_cache: HubCache) -> None:
    optional = ("README.md", "processor_config.json", "special_tokens_map.json")
    hub_cache.add(NAME, without(*optional), listed=[*TARGET_FILES, *optional])
    assert hub.from_cache(NAME) == hub_cache.snapshot(NAME)


def test_without_a_jinja_file_a_template_in_another_file_is_missed(hub_cache: HubCache) -> None:
    files = without("chat_template.jinja")
    hub_cache.add(NAME, files, listed=[*files, "processor_config.json"])
    assert hub.missing_files(hub_cache.snapshot(NAME)) == ["processor_config.json"]


def test_without_a_listing_a_template_is_asked_for_once_and_its_absence_is_no_error(
    online: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = without("chat_template.jinja", "generation_config.json")
    online.add(NAME, base)
    online.cache.add(NAME, base)
    for asks in (True, False):
        assert find_pair(NAME, None)[0] == online.cache.snapshot(NAME)
        assert bool(online.requests) == asks
        online.requests.clear()
    (online.cache.repository(NAME) / "trees").rename(online.cache.root / "away")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert find_pair(NAME, None)[0] == online.cache.snapshot(NAME)


@pytest.mark.parametrize("path", ["tokenizer_config.json", "chat_template.json"])
def test_a_template_in_another_file_is_enough_without_a_listing(
    hub_cache: HubCache, path: str
) -> None:
    hub_cache.add(NAME, without("chat_template.jinja") | {path: b'{"chat_template": "x"}'})
    assert find_pair(NAME, None)[0] == hub_cache.snapshot(NAME)
    assert hub_cache.network == []


def test_an_incomplete_model_is_named_offline_with_the_command(hub_cache: HubCache) -> None:
    hub_cache.add(NAME, without("tokenizer.json"))
    with pytest.raises(ModelNotFoundError, match=rf"tokenizer.json missing.*mgm pull {NAME}"):
        find_pair(NAME, None)


@pytest.mark.parametrize("ranged", [True, False])
def test_a_preview_needs_what_the_real_files_need_and_takes_no_room(
    online: FakeHub, *, ranged: bool
) -> None:
    online.ranged = ranged
    names = ["google/gemma-4-demo-it", "google/gemma-4-demo-it-assistant"]
    for name, folder in zip(names, (DEMO, DEMO_DRAFTER), strict=True):
        online.add(name, folder_files(folder))
    with previews(plan_download(names[0])) as folders:
        assert read_pair(*folders) == read_pair(DEMO, DEMO_DRAFTER)
        assert read_config(folders[0]) == read_config(DEMO)
        files = [path.stat() for one in folders for path in one.glob("*.safetensors")]
    assert sum(file.st_size for file in files) > 20_000_000
    assert sum(512 * file.st_blocks for file in files) < 500_000
    assert online.ranges == []


def test_a_long_header_and_a_damaged_one_are_read_as_far_as_they_go(online: FakeHub) -> None:
    long = json.dumps({"__metadata__": {"note": "x" * 300_000}}).encode()
    for name, start, words in (
        ("me/long", struct.pack("<Q", len(long)) + long, "no tensors"),
        ("me/damaged", struct.pack("<Q", 2**60) + b"?" * 300_000, "me/damaged/model.safetensors"),
    ):
        online.add(name, TARGET_FILES | {"model.safetensors": start})
        with previews(plan_download(name, None)) as [folder]:
            assert (folder / "model.safetensors").read_bytes() == start
        with pytest.raises(CheckpointError, match=words):
            find_pair(name, None, check_downloads)


def test_weights_that_are_cached_are_not_asked_for_again_to_look_at_them(online: FakeHub) -> None:
    online.add(NAME, TARGET_FILES)
    online.cache.add(NAME, without("tokenizer.json"))
    with previews(plan_download(NAME, None)) as folders:
        assert folders == [online.cache.snapshot(NAME)]
    assert online.headers == []


def test_the_drafter_to_download_is_found_by_what_the_target_is(online: FakeHub) -> None:
    drafter = "google/gemma-4-E4B-it-assistant"
    online.add("someone/my-tune", TARGET_FILES)
    online.add(drafter, DRAFTER_FILES)
    online.add(DRAFTER, DRAFTER_FILES)
    assert [one.name for one in plan_download("someone/my-tune")] == ["someone/my-tune", drafter]
