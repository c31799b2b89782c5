"""`mgm list` and `mgm rm`, on caches in every state."""

import json
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pexpect
import pytest

from helpers.command import MGM, Here, assert_one_line, environment
from helpers.fake_hub import (
    COMMIT,
    DRAFTER,
    DRAFTER_CONFIG,
    DRAFTER_FILES,
    NAME,
    NEWER,
    TARGET_CONFIG,
    TARGET_FILES,
    HubCache,
    empty_hub_cache,  # noqa: F401 - the fixture `hub_cache`
    folder_files,
    model_files,
    needed,
)
from helpers.weight_files import few_weights
from mlx_gemma_mtp.errors import ModelNotFoundError, UsageError
from mlx_gemma_mtp.files import converted, folders, hub
from mlx_gemma_mtp.files import hub_cache as cached
from mlx_gemma_mtp.files.find import find_pair
from mlx_gemma_mtp.files.names import DEMO, DEMO_DRAFTER

OTHER_FILES = TARGET_FILES | {"model-2.safetensors": b"w" * 9000}


def test_the_list_shows_each_target_with_its_drafter(hub_cache: HubCache, mgm_here: Here) -> None:
    # What the files hold counts, not what config.json says.
    smaller = TARGET_CONFIG | {"hidden_size": 1536}
    quantized = model_files(smaller | {"quantization": {"bits": 3}}, few_weights(1536, 4))
    left_over = model_files(TARGET_CONFIG | {"quantization": {"bits": 4}}, few_weights(2560, 16))
    inside = TARGET_FILES | {
        f"drafter/{path}": body for path, body in needed(DRAFTER_FILES).items()
    }
    other = model_files(DRAFTER_CONFIG | {"backbone_hidden_size": 3840})
    for name, files in {
        "a/pair": TARGET_FILES,
        "a/pair-assistant": DRAFTER_FILES,
        "b/alone": quantized,
        "b/left": left_over,
        "c/inside": inside,
        "d/llama": model_files({"model_type": "llama"}),
        "e/half": {"config.json": TARGET_FILES["config.json"]},
        "f/lone-assistant": DRAFTER_FILES,
        "g/mismatch": model_files(smaller),
        "g/mismatch-assistant": other,
        "i/broken": model_files(TARGET_CONFIG | {"num_hidden_layers": 0}),
    }.items():
        hub_cache.add(name, files)
    hub_cache.add("h/detached", TARGET_FILES, NEWER, ref="")

    found = {model.name: model for model in cached.models()}
    assert list(found) == [
        *("demo", "a/pair", "b/alone", "b/left", "c/inside", "e/half", "f/lone-assistant"),
        *("g/mismatch", f"h/detached@{NEWER}", "i/broken"),
    ]
    pair = found["a/pair"]
    assert (pair.folder, pair.kind, pair.bits) == (hub_cache.snapshot("a/pair"), "E4B", 16)
    bodies = {*TARGET_FILES.values(), COMMIT}  # and refs/main
    assert pair.size_bytes == sum(len(body) for body in bodies)
    assert pair.modified == pytest.approx(time.time(), abs=600)
    assert pair.problem is None
    assert pair.drafter is not None
    assert (pair.drafter.name, pair.drafter.problem) == ("a/pair-assistant", None)
    assert (found["b/alone"].bits, found["b/alone"].drafter) == (4, None)
    assert found["b/left"].bits == 16
    assert found["c/inside"].drafter is not None
    assert found["c/inside"].drafter.folder == hub_cache.snapshot("c/inside") / "drafter"
    assert "mgm pull e/half" in str(found["e/half"].problem)
    assert found["f/lone-assistant"].is_drafter
    assert found["g/mismatch"].drafter is not None
    assert "another model" in str(found["g/mismatch"].drafter.problem)
    assert "layer_types must list 0 layers" in str(found["i/broken"].problem)
    for model in found.values():  # its name finds the folder and the same drafter
        if model.problem is None and not model.is_drafter:
            folder, drafter = find_pair(model.name, "auto")
            assert folder == model.folder
            usable = model.drafter if model.drafter and not model.drafter.problem else None
            assert (drafter and drafter.resolve()) == (usable and usable.folder.resolve())
    assert hub_cache.network == []

    shown = mgm_here("list").stdout
    assert re.search(r"^ a/pair +16 +1\.5 MB +1\.0 MB +just now$", shown, re.MULTILINE)
    assert re.search(r"^ b/alone +4 +\d+\.\d kB +none ", shown, re.MULTILINE)
    assert re.search(r"^ e/half .*unusable", shown, re.MULTILINE)
    assert "e/half: incomplete (tokenizer.json, weights missing)" in shown
    assert re.search(r"^ g/mismatch .* [kM]B, unusable", shown, re.MULTILINE)


def test_the_list_shows_converted_models_until_they_are_gone(
    hub_cache: HubCache, mgm_here: Here, tmp_path: Path
) -> None:
    out, elsewhere = tmp_path / "tiny-4bit", tmp_path / "away"
    for path in (out, out / "drafter"):
        shutil.copytree(DEMO_DRAFTER if path.name == "drafter" else DEMO, path)
        converted.remember(out)
    written = max(path.stat().st_mtime for path in out.glob("*.safetensors"))
    [found] = [model for model in cached.models() if model.name == "./tiny-4bit"]
    assert find_pair(found.name, "auto") == (Path("tiny-4bit"), out / "drafter")
    assert found.drafter is not None
    assert found.problem is found.drafter.problem is None
    os.utime(out / "model-00001-of-00002.safetensors", (written + 9e8, written))  # was read
    assert [model.modified for model in cached.models() if model == found] == [written]
    assert_one_line(mgm_here("rm", found.name, "--yes"), 2, "delete the folder yourself")
    out.rename(elsewhere)
    assert [model.name for model in cached.models()] == ["demo"]
    folders.converted_file().write_text("{")
    assert converted.remembered() == []


@pytest.mark.parametrize("place", ["inside", "next to it", "in the cache"])
def test_the_list_shows_the_drafter_that_a_chat_would_take(
    hub_cache: HubCache, tmp_path: Path, place: str
) -> None:
    out = tmp_path / "models"
    for name, body in needed(TARGET_FILES).items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(body)
    converted.remember(out)
    if place == "in the cache":
        hub_cache.add("me/any-name-assistant", DRAFTER_FILES)
    else:
        folder = out / "assistant" if place == "inside" else tmp_path / "mine-drafter"
        folder.mkdir()
        for name, body in needed(DRAFTER_FILES).items():
            (folder / name).write_bytes(body)
    [found] = [model for model in cached.models() if model.name == "./models"]
    assert found.drafter is not None
    assert found.drafter.folder == find_pair(out, "auto")[1]


def strange_things(root: Path) -> None:
    """Everything odd that was seen in a cache, and more."""
    cache = HubCache(root)
    (root / "models--file--file").write_text("")
    (root / "models--").mkdir()
    (root / "models--empty--empty").mkdir()
    (root / "models--one-word" / "snapshots" / COMMIT).mkdir(parents=True)
    (root / "models--a--..").mkdir()
    (root / "models--link--loop").symlink_to("models--link--loop")
    (root / ".locks").mkdir()
    (root / "version.txt").write_text("1")
    for name, reference in {"a/binary": b"\xff\xfe", "a/null": b"\0", "a/none": b"0" * 40}.items():
        cache.add(name, TARGET_FILES)
        (cache.repository(name) / "refs" / "main").write_bytes(reference)
    cache.add("a/folder", TARGET_FILES)
    (cache.repository("a/folder") / "refs" / "main").unlink()
    (cache.repository("a/folder") / "refs" / "main").mkdir()
    for name, config in {"b/text": b"hello", "b/list": b"[]", "b/latin": b'{"a": "\xff"}'}.items():
        cache.add(name, TARGET_FILES | {"config.json": config})
    odd = {"num_hidden_layers": "six"}, {"quantization": 4}, {"dtype": {}}, {"text_config": 3}
    for i, part in enumerate(odd):
        cache.add(f"c/odd{i}", model_files(TARGET_CONFIG | part))
    cache.add("d/target", TARGET_FILES)
    cache.add("d/target-assistant", TARGET_FILES)
    for blob in (cache.add("e/blobs", TARGET_FILES).parents[1] / "blobs").iterdir():
        if blob.stat().st_size >= 5000:
            blob.unlink()
    snapshots = cache.add("f/file", TARGET_FILES).parent
    (snapshots / "file").write_text("")


SPOILT: dict[str, Callable[[Path], object]] = {
    "no cache": Path.rmdir,
    "a file": lambda root: (root.rmdir(), root.write_text("")),
    "strange things": strange_things,
}


@pytest.mark.parametrize("what", SPOILT)
def test_the_list_copes_with_any_state_of_the_cache(
    hub_cache: HubCache, mgm_here: Here, what: str
) -> None:
    SPOILT[what](hub_cache.root)
    if hub_cache.root.is_dir():
        hub_cache.add(NAME, TARGET_FILES)
        hub_cache.add(DRAFTER, DRAFTER_FILES)
    found = {one.name: one.problem for one in cached.models()}
    assert next(iter(found)) == "demo"
    assert found.get(NAME, "") == (None if hub_cache.root.is_dir() else "")
    for name in ("a/binary", "a/null", "a/none", "a/folder", "b/text", "e/blobs"):
        assert hub.from_cache(name) is None  # so it would be downloaded
    listed = json.loads(mgm_here("list", "--json").stdout)
    assert [model["name"] for model in listed["models"]] == list(found)
    assert mgm_here("list").returncode == 0
    assert hub_cache.network == []


def test_rm_removes_the_pair_and_touches_nothing_else(hub_cache: HubCache, mgm_here: Here) -> None:
    # A renamed repository has the same commit; and names that start alike.
    for name in ("google/renamed", f"{NAME}-2", f"{NAME}-assistant-2", "google/gemma-4-tiny"):
        hub_cache.add(name, TARGET_FILES)
    (hub_cache.root / "datasets--google--gemma-4-tiny-it").mkdir()
    (hub_cache.root / "models--odd--odd").mkdir()
    others = folder_files(hub_cache.root)
    hub_cache.add(NAME, TARGET_FILES)
    hub_cache.add(NAME, OTHER_FILES, NEWER, ref="v2")
    hub_cache.add(DRAFTER, DRAFTER_FILES)
    part = hub_cache.repository(NAME) / "blobs" / "abc.01234567.incomplete"
    part.write_bytes(b"p" * 1000)

    assert cached.removable(NAME) == [NAME, DRAFTER]
    bodies = {*TARGET_FILES.values(), *OTHER_FILES.values(), COMMIT, NEWER}  # and the two refs
    size = sum(len(body) for body in bodies) + 1000
    assert cached.size_on_disk(hub_cache.repository(NAME)) == size
    done = mgm_here("rm", NAME, "--yes")
    assert done.returncode == 0
    removed = re.findall(r"^removed (\S+), [\d.]+ MB freed$", done.stdout, re.MULTILINE)
    assert removed == [NAME, DRAFTER]
    assert folder_files(hub_cache.root) == others
    assert not hub_cache.repository(NAME).exists()
    assert not hub_cache.repository(DRAFTER).exists()

    hub_cache.add(NAME, TARGET_FILES)
    hub_cache.add(DRAFTER, DRAFTER_FILES)
    with_target = folder_files(hub_cache.root)
    assert mgm_here("rm", DRAFTER, "-y").returncode == 0
    assert folder_files(hub_cache.root) == {
        path: body for path, body in with_target.items() if "tiny-it-assistant/" not in path
    }


def test_rm_removes_half_a_download_and_damaged_repositories(hub_cache: HubCache) -> None:
    strange_things(hub_cache.root)
    blobs = hub_cache.repository(NAME) / "blobs"
    blobs.mkdir(parents=True)
    (blobs / "abc.incomplete").write_bytes(b"p" * 1000)
    assert cached.size_on_disk(hub_cache.repository(NAME)) == 1000
    for name in (NAME, "a/binary", "a/folder", "e/blobs", "f/file", "empty/empty"):
        for one in cached.removable(name):
            cached.remove(one)
        assert not hub_cache.repository(name).exists()


def test_rm_of_an_unknown_name_suggests_near_ones(hub_cache: HubCache) -> None:
    hub_cache.add(NAME, TARGET_FILES)
    before = folder_files(hub_cache.root)
    with pytest.raises(ModelNotFoundError, match=f"did you mean {NAME}"):
        cached.removable("google/gemma-4-tiny")
    with pytest.raises(ModelNotFoundError, match="mgm list"):
        cached.removable("qwen")
    for name in ("demo", str(hub_cache.root)):
        with pytest.raises(UsageError):
            cached.removable(name)
    assert folder_files(hub_cache.root) == before


def test_rm_reports_in_one_line_that_it_cannot_remove(
    hub_cache: HubCache, mgm_here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub_cache.add(NAME, TARGET_FILES)

    def refuse(path: object, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(shutil, "rmtree", refuse)
    assert_one_line(mgm_here("rm", NAME, "--yes"), 1, f"{NAME} cannot be removed ([Errno 13]")


def test_rm_asks_at_a_terminal_and_refuses_without_one(hub_cache: HubCache, mgm_here: Here) -> None:
    hub_cache.add(NAME, TARGET_FILES)
    assert_one_line(mgm_here("rm", NAME), 2, "--yes")
    for answer, removed in (("n", False), ("y", True)):
        assert hub_cache.repository(NAME).exists()
        variables = environment() | {"HF_HUB_CACHE": str(hub_cache.root)}
        child = pexpect.spawn(MGM[0], [*MGM[1:], "rm", NAME], env=variables, encoding="utf-8")
        child.expect_exact("?", timeout=60)
        assert NAME in child.before
        assert hub_cache.repository(NAME).exists()
        child.sendline(answer)
        assert child.wait() == (not removed)
        assert hub_cache.repository(NAME).exists() != removed
