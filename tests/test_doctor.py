"""`mgm doctor`: what it reports, why a model would not draft, and its exit codes."""

import json
import os
import platform
import re
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import huggingface_hub
import mlx.core as mx
import pytest
from mlx_gemma_mtp.bench import synthetic

from helpers.command import Here, assert_plain, found
from helpers.fake_hub import (
    DRAFTER,
    DRAFTER_CONFIG,
    NAME,
    TARGET_CONFIG,
    HubCache,
    empty_hub_cache,  # noqa: F401 - the fixture `hub_cache`
    folder_files,
    model_files,
)
from mlx_gemma_mtp import device, doctor, memory
from mlx_gemma_mtp.check import SelfTest
from mlx_gemma_mtp.cli.doctor import conclude, print_report
from mlx_gemma_mtp.decode.acceptance import Acceptance
from mlx_gemma_mtp.decode.costs import Costs
from mlx_gemma_mtp.decode.depth import Depth
from mlx_gemma_mtp.decode.division import Shape
from mlx_gemma_mtp.decode.table import PassClass, PassTable
from mlx_gemma_mtp.files import folders, remembered
from mlx_gemma_mtp.files import hub_cache as cached
from mlx_gemma_mtp.files.checkpoint import read_target_config
from mlx_gemma_mtp.files.names import DEMO, DEMO_DRAFTER
from mlx_gemma_mtp.files.published import SHORT, SIZES
from mlx_gemma_mtp.model.config import TargetConfig

TARGET_FILES, DRAFTER_FILES = folder_files(DEMO), folder_files(DEMO_DRAFTER)
GOOD = SelfTest(10, [], 0.6)
BAD = replace(GOOD, differences=["temperature 1, batch 4, row 2: 7 tokens are the same, then ..."])


def report(hub_cache: HubCache) -> dict[str, doctor.Checked]:
    models = {one.model.name: one for one in doctor.examine().models}
    assert hub_cache.network == []
    return models


def test_the_report_shows_the_machine_and_its_models(
    hub_cache: HubCache, mgm_here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("MGM_DEBUG", "1")
    hub_cache.add(NAME, TARGET_FILES)
    hub_cache.add(DRAFTER, DRAFTER_FILES)
    done = mgm_here("doctor", "--no-self-test", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    shown = found(done)
    assert list(shown) == [
        *("schema", "chip", "system", "architecture", "memory_bytes", "available_bytes"),
        *("best_fit", "backend", "buffers", "versions", "cache", "depth", "variables", "models"),
        *("problems", "self_test", "healthy"),
    ]
    assert (shown["schema"], shown["healthy"], shown["self_test"]) == (2, True, None)
    assert shown["chip"] == mx.device_info()["device_name"]
    assert shown["available_bytes"] == pytest.approx(device.available(), rel=0.5)
    assert shown["memory_bytes"] >= shown["available_bytes"] > 0
    assert shown["backend"] == "cpu" or mx.default_device() != mx.Device(mx.cpu)
    assert shown["versions"]["python"] == platform.python_version()
    assert shown["versions"]["huggingface_hub"] == huggingface_hub.__version__
    assert shown["cache"] == {
        "path": str(hub_cache.root),
        "free_bytes": pytest.approx(shutil.disk_usage(hub_cache.root).free, rel=0.1),
        "writable": True,
    }
    assert shown["depth"]["path"].endswith("mgm/depth.json")
    assert shown["variables"] | {"HF_TOKEN": "set", "MGM_DEBUG": "1"} == shown["variables"]
    assert "hf_secret" not in done.stdout
    demo, model = shown["models"]
    assert (demo["name"], model["name"]) == ("demo", NAME)
    for one in (demo, model):
        assert one["needs_bytes"] > one["size_bytes"] / 2
        assert one["fits"] is True
        assert one["longest_context"] >= memory.LOAD_CONTEXT
        assert one["no_drafts"] is None

    done = mgm_here("doctor", "--no-self-test")
    assert done.returncode == 0
    assert_plain(done)
    assert re.search(rf"^  {NAME}: .*; up to [\d,]+ fit; drafter ready$", done.stdout, re.MULTILINE)
    assert done.stdout.endswith("no problems found\n")


def test_a_model_that_would_not_draft_has_a_reason(hub_cache: HubCache, mgm_here: Here) -> None:
    other = model_files(DRAFTER_CONFIG | {"backbone_hidden_size": 1536})
    for name, files in {
        "a/alone": TARGET_FILES,
        "b/mismatch": TARGET_FILES,
        "b/mismatch-assistant": other,
        "c/half": TARGET_FILES,
        "c/half-assistant": {"config.json": DRAFTER_FILES["config.json"]},
        "d/half": {"config.json": TARGET_FILES["config.json"]},
        "e/lone-assistant": other,
        "g/e4b": model_files(TARGET_CONFIG),
        "f/damaged": TARGET_FILES | {"model-00001-of-00002.safetensors": b"no such thing"},
    }.items():
        hub_cache.add(name, files)
    models = report(hub_cache)
    assert "no drafter in its folder, next to it or in" in str(models["a/alone"].no_drafts)
    [published] = [one for one in cached.models() if one.name == "g/e4b"]
    reason = doctor.why_no_drafts(published)
    expected = "no drafts: no drafter here: mgm pull google/gemma-4-E4B-it-assistant (158.0 MB)"
    assert reason == expected
    assert "belongs to another model" in str(models["b/mismatch"].no_drafts)
    assert "mgm pull c/half-assistant" in str(models["c/half"].no_drafts)
    assert models["d/half"].model.problem is not None
    assert models["d/half"].needs_bytes is None
    assert "e/lone-assistant" not in models
    assert "download it again" in str(models["f/damaged"].model.problem)
    done = mgm_here("doctor", "--no-self-test")
    assert done.returncode == 0
    assert re.search(r"^  d/half: .*mgm pull d/half", done.stdout, re.MULTILINE)
    assert re.search(r"^  a/alone: .*no drafts: no drafter in", done.stdout, re.MULTILINE)


def test_the_report_names_the_most_capable_model_that_fits(
    hub_cache: HubCache, mgm_here: Here
) -> None:
    best = doctor.examine().best_fit
    assert best.asked in SHORT
    assert best.needs <= best.available or best.asked == SHORT[0]
    done = mgm_here("doctor", "--no-self-test")
    assert re.search(rf"^best fit   .*mgm chat {best.asked}: {best.name}", done.stdout, re.M)
    assert hub_cache.network == []


def test_timings_count_only_on_the_machine_they_come_from(hub_cache: HubCache) -> None:
    folder = hub_cache.add(NAME, TARGET_FILES)
    hub_cache.add(f"{NAME}-assistant", DRAFTER_FILES)
    slow, fast = Costs(), Costs()
    for _ in range(20):
        for k in (0, 3):
            for batch, seconds in ((1, 0.01 * (1 + k)), (4, 0.01 * (1 + k)), (8, 0.01)):
                slow.add(Shape(batch, k, k + 1, batch * (k + 1), batch * (k + 1)), seconds)
            fast.add(Shape(1, k, k + 1, k + 1, k + 1), 0.01)
    pool = Acceptance.from_json([0.7] * 8)
    here = remembered.depth_key(folder.name, "0123456789ab")

    def reason(key: str, costs: Costs) -> str | None:
        folders.depth_file().unlink(missing_ok=True)
        remembered.save_depth(key, Depth(costs, pool))
        return report(hub_cache)[NAME].no_drafts

    assert reason(here, fast) is None
    assert "no drafts at batch 1 and 4: decoding without" in str(reason(here, slow))
    assert reason(here.replace(device.chip_name(), "Other Chip"), slow) is None
    assert reason(f"other{here}", slow) is None
    file = folders.depth_file()
    for odd in ("", "[]", file.read_text().replace('"costs"', '"c"')):
        file.write_text(odd)
        assert report(hub_cache)[NAME].no_drafts is None


def test_what_was_measured_of_a_model_is_shown(hub_cache: HubCache, mgm_here: Here) -> None:
    folder = hub_cache.add(NAME, TARGET_FILES)
    tables = [
        PassTable({1: 0.012345, 8: 0.5}, {1: 0.001}, {1: "pairs", 2: "pairs", 8: "all"}),
        PassTable({1: 1.0}, steps={1: 0.001}, classes=(PassClass(2, 64, 1, 9),), chunks=(64, 128)),
    ]
    for digest, table in zip(("0", "1"), tables, strict=True):
        remembered.save_table(remembered.depth_key(folder.name, digest), table)
    assert report(hub_cache)[NAME].tables == tuple(tables)
    shown = found(mgm_here("doctor", "--no-self-test", "--json"))
    kept = next(one for one in shown["models"] if one["name"] == NAME)["tables"]
    assert [PassTable.from_json(one) for one in kept] == tables
    lines = mgm_here("doctor", "--no-self-test").stdout.splitlines()
    start = next(n for n, line in enumerate(lines) if f"  {NAME}: " in line)
    assert [line.strip() for line in lines[start + 1 : start + 7]] == [
        "ms by tokens of a pass: 1: 12.3, 8: 500",
        "experts by tokens: pairs from 1, all from 8",
        "same bits: none of these passes",
        "ms by tokens of a pass: 1: 1000",
        "ms by rows of a draft: 1: 1",
        "same bits: 2 to 64 tokens of 1 to 9 per row; prompts by 64, 128",
    ]


def test_a_model_that_does_not_fit_is_reported(
    hub_cache: HubCache, capsys: pytest.CaptureFixture[str]
) -> None:
    demo = doctor.check(cached.models()[0], 1_000_000)
    assert demo.fits is False
    assert demo.needs_bytes is not None
    assert demo.needs_bytes > 1_000_000
    report = replace(doctor.examine(), models=[demo])
    print_report(report)
    shown = capsys.readouterr().out
    assert re.search(r"^  demo: .* MB for 2,048 tokens; does not fit", shown, re.MULTILINE)
    assert conclude(report, None, as_json=False) == 0  # the machine is healthy


def test_a_problem_of_the_machine_is_exit_code_1(
    hub_cache: HubCache, mgm_here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def problems() -> list[str]:
        done = mgm_here("doctor", "--no-self-test", "--json")
        shown = found(done)
        assert done.returncode == (1 if shown["problems"] else 0)
        assert shown["healthy"] == (not shown["problems"])
        return list(shown["problems"])

    assert problems() == []
    (tmp_path / "file").touch(mode=0o755)
    unusable = str(tmp_path / "file")
    with monkeypatch.context() as patch:
        patch.setenv("MGM_CACHE_DIR", f"{unusable}/mgm")
        patch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", unusable)
        downloads, timings = problems()
    assert "HF_HOME" in downloads
    assert "MGM_CACHE_DIR" in timings
    with monkeypatch.context() as patch:
        patch.setenv("MGM_DATA_DIR", f"{unusable}/mgm")
        chats, history = problems()
    assert f"{unusable}/mgm/sessions is not writable, so chats" in chats
    assert f"{unusable}/mgm is not writable, so the history" in history
    assert "MGM_DATA_DIR" in chats
    assert "MGM_DATA_DIR" in history
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda *_: False)
        assert len(problems()) == 4
    [problem] = doctor.examine(("mlx", "no-such-package")).problems
    assert "no-such-package" in problem
    with monkeypatch.context() as patch:
        patch.setattr(platform, "system", lambda: "Darwin")
        patch.setattr(mx, "default_device", lambda: mx.Device(mx.cpu))
        [problem] = problems()
        assert "no GPU" in problem


def test_the_conclusion_shows_the_self_test_and_has_its_exit_code(
    hub_cache: HubCache, capsys: pytest.CaptureFixture[str]
) -> None:
    report = doctor.examine()
    assert conclude(report, GOOD, as_json=False) == 0
    shown = capsys.readouterr().out
    assert "10 completions, the same" in shown

    assert conclude(report, BAD, as_json=False) == 5
    shown = capsys.readouterr().out
    assert "NOT the same" in shown
    assert f"problem: self-test: {BAD.differences[0]}\n" in shown
    assert conclude(report, BAD, as_json=True) == 5
    shown = json.loads(capsys.readouterr().out)
    assert (shown["healthy"], shown["self_test"]) == (False, asdict(BAD))

    failed = replace(report, problems=["the self-test failed: no kernel"])
    assert conclude(failed, None, as_json=True) == 1
    shown = json.loads(capsys.readouterr().out)
    assert (shown["self_test"], shown["problems"]) == (None, failed.problems)


def test_command_buffers_that_the_user_made_too_large_or_too_small_are_a_problem(
    hub_cache: HubCache, capsys: pytest.CaptureFixture[str]
) -> None:
    models = [
        (one.kind, TargetConfig.from_dict(synthetic.settings(one.kind)[0])) for one in SIZES[2:]
    ]
    models.insert(0, ("demo", read_target_config(DEMO)))
    gpu = "applegpu_g16s"
    advised = {"MLX_MAX_OPS_PER_BUFFER": "1000", "MLX_MAX_MB_PER_BUFFER": "1000"}
    [problem] = doctor.CommandBuffers.here(gpu, advised).problems(models)
    assert re.search(
        r"round of 12B may have only 1 command buffers, not 18: .* unset both", problem
    )
    for fine in ({}, {"MLX_MAX_OPS_PER_BUFFER": "80"}, {"MLX_MAX_MB_PER_BUFFER": "90"}):
        assert not [*doctor.CommandBuffers.here(gpu, fine).problems(models)]
    for low in ("many", "", "1e3", "-5", "9"):
        [problem] = doctor.CommandBuffers.here(gpu, {"MLX_MAX_OPS_PER_BUFFER": low}).problems([])
        assert "below 10 or not a number" in problem
    report = doctor.examine()
    for environ, shown in (
        ({}, "up to 50 launches or 50 MB, MLX's own; raised for models that gain from it"),
        (advised, "up to 1000 launches or 1000 MB, set by you"),
    ):
        print_report(replace(report, buffers=doctor.CommandBuffers.here(gpu, environ)))
        assert f"\nbuffers    {shown}\n" in capsys.readouterr().out
    print_report(report)
    assert ("\nbuffers " in capsys.readouterr().out) == (device.backend() == "metal")


def test_homebrews_mlx_is_a_problem_on_an_m5() -> None:
    module = "lib/python3.13/site-packages/mlx/core.so"
    bottle = Path("/opt/homebrew/Cellar/mlx/0.32.0") / module
    wheel = Path("/opt/homebrew") / module
    [problem] = doctor.mlx_problems("Apple M5 Pro", bottle)
    assert "pip" in problem
    assert not [*doctor.mlx_problems("Apple M4", bottle)]
    assert not [*doctor.mlx_problems("Apple M5", wheel)]


@pytest.mark.slow
def test_the_command_runs_the_self_test(hub_cache: HubCache, mgm_here: Here) -> None:
    done = mgm_here("doctor", "--json")
    assert done.returncode == 0, done.stdout
    tested = found(done)["self_test"]
    assert (tested["completions"], tested["differences"]) == (18, [])
    assert 0 < tested["acceptance_rate"] < 1
