"""`mgm doctor`: what it sees, why drafts would not come, and that its self-test can fail."""

import itertools
import json
import os
import platform
import re
import shutil
from pathlib import Path

import huggingface_hub
import mlx.core as mx
import pytest
from mlx_gemma_mtp.selftest import SelfTest, Speed
from typer.testing import CliRunner, Result

from helpers.fake_hub import (
    DRAFTER_CONFIG,
    NAME,
    TARGET_CONFIG,
    HubCache,
    model_files,
    offline_cache,
)
from mlx_gemma_mtp import cli, device, doctor, memory, selftest
from mlx_gemma_mtp.decode.acceptance import Acceptance
from mlx_gemma_mtp.decode.costs import Costs
from mlx_gemma_mtp.decode.depth import Depth
from mlx_gemma_mtp.engine.engine import Engine
from mlx_gemma_mtp.engine.results import Completion
from mlx_gemma_mtp.errors import GenerationError
from mlx_gemma_mtp.files import folders, remembered

GOOD = SelfTest(10, [], 0.6, [Speed(1, 60.0, 40.0), Speed(4, 150.0, 90.0)], 9.0)
PARTED = GOOD._replace(partings=["temperature 1, batch 4, text 2: token 7 is 5 and should be 6"])


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HubCache:
    monkeypatch.setenv("MGM_CACHE_DIR", str(tmp_path / "mgm"))
    return offline_cache(tmp_path, monkeypatch)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, ["doctor", *arguments])


def report(hub_cache: HubCache) -> dict[str, doctor.Checked]:
    found = {one.model.name: one for one in doctor.examine().models}
    assert hub_cache.network == []
    return found


def test_the_report_says_what_is_here(hub_cache: HubCache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("MGM_DEBUG", "1")
    hub_cache.add_files(NAME, model_files(TARGET_CONFIG))
    hub_cache.add_files(f"{NAME}-assistant", model_files(DRAFTER_CONFIG))
    result = run("--no-self-test", "--json")
    assert result.exit_code == 0
    assert result.stderr == ""
    found = json.loads(result.stdout)
    assert list(found) == [
        *("schema", "chip", "system", "architecture", "memory_bytes", "available_bytes"),
        *("backend", "versions", "cache", "depth", "variables", "models", "problems"),
        *("self_test", "healthy"),
    ]
    assert (found["schema"], found["healthy"], found["self_test"]) == (1, True, None)
    assert found["chip"] == mx.device_info()["device_name"]
    assert found["available_bytes"] == pytest.approx(device.available(), rel=0.5)
    assert found["memory_bytes"] >= found["available_bytes"] > 0
    assert found["backend"] == "cpu" or mx.default_device() != mx.Device(mx.cpu)
    assert found["versions"]["python"] == platform.python_version()
    assert found["versions"]["huggingface_hub"] == huggingface_hub.__version__
    assert found["cache"] == {
        "path": str(hub_cache.root),
        "free_bytes": pytest.approx(shutil.disk_usage(hub_cache.root).free, rel=0.1),
        "writable": True,
    }
    assert found["depth"]["path"].endswith("mgm/depth.json")
    assert found["variables"] | {"HF_TOKEN": "set", "MGM_DEBUG": "1"} == found["variables"]
    assert "hf_secret" not in result.stdout
    demo, model = found["models"]
    assert (demo["name"], model["name"]) == ("demo", NAME)
    for one in (demo, model):
        assert one["needs_bytes"] > one["size_bytes"] / 2
        assert one["fits"] is True
        assert one["longest_context"] >= memory.LOAD_CONTEXT
        assert one["no_drafts"] is None

    monkeypatch.setattr(selftest, "run", lambda: GOOD)
    shown = run()
    assert shown.exit_code == 0
    assert "\x1b" not in shown.output
    assert re.search(rf"^  {NAME}: .*; drafts$", shown.stdout, re.MULTILINE)
    assert "10 texts, the same" in shown.stdout
    assert "batch 4: 90 tokens/s without it, 150 with it" in shown.stdout
    assert shown.stdout.endswith("all is well\n")


def test_a_model_that_would_not_draft_has_its_reason(hub_cache: HubCache) -> None:
    other = model_files(DRAFTER_CONFIG | {"backbone_hidden_size": 1536})
    half = {"config.json": model_files(DRAFTER_CONFIG)["config.json"]}
    hub_cache.add_files("a/alone", model_files(TARGET_CONFIG))
    hub_cache.add_files("b/mismatch", model_files(TARGET_CONFIG))
    hub_cache.add_files("b/mismatch-assistant", other)
    hub_cache.add_files("c/half", model_files(TARGET_CONFIG))
    hub_cache.add_files("c/half-assistant", half)
    hub_cache.add_files("d/half", {"config.json": model_files(TARGET_CONFIG)["config.json"]})
    hub_cache.add_files("e/lone-assistant", model_files(DRAFTER_CONFIG))
    damaged = model_files(TARGET_CONFIG) | {"model.safetensors": b"no such thing"}
    hub_cache.add_files("f/damaged", damaged)
    found = report(hub_cache)
    assert "mgm pull a/alone" in str(found["a/alone"].no_drafts)
    assert "belongs to another model" in str(found["b/mismatch"].no_drafts)
    assert "mgm pull c/half-assistant" in str(found["c/half"].no_drafts)
    assert found["d/half"].model.problem is not None
    assert found["d/half"].needs_bytes is None
    assert "e/lone-assistant" not in found
    assert "download it again" in str(found["f/damaged"].model.problem)
    shown = run("--no-self-test")
    assert shown.exit_code == 0
    assert re.search(r"^  d/half: it is incomplete", shown.stdout, re.MULTILINE)
    assert re.search(r"^  a/alone: .*drafts nothing: no drafter", shown.stdout, re.MULTILINE)


def test_what_earlier_runs_measured_counts_where_it_was_measured(hub_cache: HubCache) -> None:
    folder = hub_cache.add_files(NAME, model_files(TARGET_CONFIG))
    hub_cache.add_files(f"{NAME}-assistant", model_files(DRAFTER_CONFIG))
    slow, fast = Costs(), Costs()
    for _ in range(20):
        for k in (0, 3):
            slow.add(1, k, 0.01 * (1 + k))
            slow.add(4, k, 0.01 * (1 + k))
            slow.add(8, k, 0.01)
            fast.add(1, k, 0.01)
    pool = Acceptance.from_json([0.7] * 8)
    chip_name = device.chip_name()
    here = remembered.depth_key(folder.name, "0123456789ab")

    def reason(key: str, costs: Costs) -> str | None:
        folders.depth_file().unlink(missing_ok=True)
        remembered.save_depth(key, Depth(costs, pool))
        return report(hub_cache)[NAME].no_drafts

    assert reason(here, fast) is None
    assert "batch 1 and 4 plain decoding" in str(reason(here, slow))
    assert reason(here.replace(chip_name, "Other Chip"), slow) is None
    assert reason(f"other{here}", slow) is None
    file = folders.depth_file()
    for odd in ("", "[]", file.read_text().replace('"costs"', '"c"')):
        file.write_text(odd)
        assert report(hub_cache)[NAME].no_drafts is None


def test_a_model_that_does_not_fit_is_said_to(
    hub_cache: HubCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "available", lambda: 1_000_000)
    demo = report(hub_cache)["demo"]
    assert demo.fits is False
    assert demo.needs_bytes is not None
    assert demo.needs_bytes > 1_000_000
    shown = run("--no-self-test")
    assert re.search(r"^  demo: .*needs .* MB .*does not fit", shown.stdout, re.MULTILINE)
    assert shown.exit_code == 0  # the machine is healthy


def test_what_is_amiss_is_a_problem_and_exit_code_1(
    hub_cache: HubCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def problems() -> list[str]:
        result = run("--no-self-test", "--json")
        found = json.loads(result.stdout)
        assert result.exit_code == (1 if found["problems"] else 0)
        assert found["healthy"] == (not found["problems"])
        return list(found["problems"])

    assert problems() == []
    (tmp_path / "file").touch(mode=0o755)
    with monkeypatch.context() as patch:
        patch.setenv("MGM_CACHE_DIR", str(tmp_path / "file" / "mgm"))
        [problem] = problems()
        assert "MGM_CACHE_DIR" in problem
    with monkeypatch.context() as patch:
        patch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "file"))
        [problem] = problems()
        assert "HF_HOME" in problem
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda *_: False)
        assert len(problems()) == 2
    with monkeypatch.context() as patch:
        patch.setattr(doctor, "PACKAGES", ("mlx", "no-such-package"))
        [problem] = problems()
        assert "no-such-package" in problem
    with monkeypatch.context() as patch:
        patch.setattr(platform, "system", lambda: "Darwin")
        patch.setattr(device, "backend", lambda: "cpu")
        [problem] = problems()
        assert "no GPU" in problem


def test_texts_that_part_are_exit_code_5_and_a_test_that_fails_is_1(
    hub_cache: HubCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selftest, "run", lambda: PARTED)
    result = run("--json")
    assert result.exit_code == 5
    found = json.loads(result.stdout)
    assert found["healthy"] is False
    assert found["self_test"]["partings"] == PARTED.partings
    assert found["self_test"]["speeds"][1] == {"batch": 4, "drafted": 150.0, "plain": 90.0}
    shown = run()
    assert shown.exit_code == 5
    assert "NOT the same" in shown.stdout
    assert PARTED.partings[0] in shown.stdout

    def fail() -> SelfTest:
        raise GenerationError("the request failed: no kernel")

    monkeypatch.setattr(selftest, "run", fail)
    result = run("--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["self_test"] is None
    assert "no kernel" in json.loads(result.stdout)["problems"][0]


def test_the_self_test_compares_texts_with_and_without_the_drafter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write, written = selftest._texts, {}

    def note(engine: Engine, batch: int, temperature: float) -> list[Completion]:
        done = write(engine, batch, temperature)
        written[engine.has_drafter, batch, temperature] = done
        return done

    monkeypatch.setattr(selftest, "MAX_TOKENS", 14)
    monkeypatch.setattr(selftest, "_texts", note)
    found = selftest.run()
    assert (found.texts, found.partings) == (10, [])
    assert set(written) == set(itertools.product((True, False), (1, 4), (0.0, 1.0)))
    assert 0 < found.acceptance_rate < 1  # some drafts came true and some did not
    assert [speed.batch for speed in found.speeds] == [1, 4]
    assert min(min(speed.drafted, speed.plain) for speed in found.speeds) > 0

    def repeat(engine: Engine, batch: int, temperature: float) -> list[Completion]:
        return written[engine.has_drafter, batch, temperature]

    monkeypatch.setattr(selftest, "_texts", repeat)
    written[True, 4, 1.0][2].tokens[3] += 1
    [parting] = selftest.run().partings
    assert re.fullmatch(r"temperature 1, batch 4, text 2: token 3 is \d+ .*", parting)
    written[True, 4, 1.0][2].tokens[3] -= 1
    for with_drafter in (True, False):
        written[with_drafter, 4, 0.0][0].tokens.append(7)
    [parting] = selftest.run().partings
    assert re.fullmatch(r"temperature 0, batch 4, text 0 beside others: token 14 .*", parting)
