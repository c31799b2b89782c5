"""`mgm bench` as a person runs it: what it prints, writes, keeps and refuses."""

from __future__ import annotations

import csv
import io
import itertools
import json
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any, NoReturn

import mlx.core as mx
import pytest
from mlx_gemma_mtp.bench import check, decode, mlx_vlm_pair, run, synthetic
from mlx_gemma_mtp.bench.record import read

from helpers.command import assert_one_line, command, environment, mgm, run_here
from mlx_gemma_mtp import device
from mlx_gemma_mtp.decode import round as speculate
from mlx_gemma_mtp.errors import MgmError, NotEnoughMemoryError
from mlx_gemma_mtp.files.hub import find_pair
from mlx_gemma_mtp.files.remembered import load_depth

# A size that a CPU can run, with experts.
TINY = """
from mlx_gemma_mtp.bench import synthetic
SHAPE = {
    "model_type": "gemma4_text", "vocab_size": 512, "hidden_size": 64, "intermediate_size": 64,
    "num_attention_heads": 4, "num_key_value_heads": 2, "num_global_key_value_heads": 1,
    "head_dim": 32, "global_head_dim": 64, "attention_k_eq_v": True, "sliding_window": 64,
    "hidden_size_per_layer_input": 0,
}
EXPERTS = {
    "enable_moe_block": True, "num_experts": 16, "top_k_experts": 4, "moe_intermediate_size": 64,
}
synthetic.TARGETS["tiny"] = SHAPE | EXPERTS | {"num_hidden_layers": 6}
KINDS = ["sliding_attention"] * 3 + ["full_attention"]
synthetic.settings = lambda size: (synthetic.TARGETS[size], {
    "model_type": "gemma4_assistant", "backbone_hidden_size": 64, "use_ordered_embeddings": False,
    "text_config": SHAPE | {"num_hidden_layers": 4, "layer_types": KINDS},
})
"""
QUICK = "from mlx_gemma_mtp.bench import run; run.LEARNING = 6\n"
RANDOM = "--synthetic tiny --batch 1,2 --drafts 0,2,auto --prompt-tokens 9,30 --max-tokens 6"
DEMO = "--tasks json,counting --batch 1,2 --drafts 0,3,auto --repeat 1 --max-tokens 6"


@pytest.fixture(scope="module")
def random_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str, Path]:
    """The JSON, the table and the file of a run with random weights beside mlx-lm."""
    out = tmp_path_factory.mktemp("bench") / "found.json"
    asked = f"bench {RANDOM} --repeat 2 --accept 0.9,0.5 --peer mlx-lm --out"
    done = mgm([*asked.split(), str(out)], before=TINY + QUICK)
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text()), done.stdout, out


@pytest.fixture(scope="module")
def demo_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str, Path]:
    """The JSON, the Markdown and the remembered depths of a run with the demo pair."""
    folder = tmp_path_factory.mktemp("bench")
    out = folder / "found.json"
    asked = f"bench {DEMO} --format md --recommend --out"
    done = mgm([*asked.split(), str(out)], before=QUICK, MGM_CACHE_DIR=str(folder))
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text()), done.stdout, folder


def test_every_setting_and_engine_has_its_case(
    random_run: tuple[dict[str, Any], str, Path],
) -> None:
    found, table, _ = random_run
    settings = [(case["engine"][:6], case["batch"], case["drafts"]) for case in found["cases"]]
    assert settings == [
        (engine, batch, drafts)
        for batch in (1, 2)
        for engine, drafts in [("mlx-ge", 0), ("mlx-ge", 2), ("mlx-ge", "auto"), ("mlx-lm", 0)]
    ]
    assert found["complete"]
    assert found["subject"]["random"]
    assert "random weights" in table
    for case in found["cases"]:
        spread = case["decode_tokens_per_second"]
        assert 0 < spread["low"] <= spread["median"] <= spread["high"]
        assert len(case["samples"]) == 2
        assert f"{spread['median']:.1f}" in table
        if case["engine"] == "mlx-gemma-mtp":
            assert 4 <= case["distinct_experts"] <= 16
            assert case["floor"]["share"] == pytest.approx(
                spread["median"] / case["floor"]["tokens_per_second"]
            )
            assert case["peak_bytes"] > found["subject"]["target_bytes"]
            assert (case["split"] is None) == (case["drafts"] == "auto")


def test_the_demos_own_tasks_are_measured_by_task_and_position(
    demo_run: tuple[dict[str, Any], str, Path],
) -> None:
    found, _, _ = demo_run
    tasks = {(case["batch"], case["task"]) for case in found["cases"]}
    assert tasks == {(1, "json"), (1, "counting"), (1, "all"), (2, "mixed")}
    for case in found["cases"]:
        if case["drafts"] == 3:
            assert len(case["acceptance_by_position"]) == 3
            assert sum(case["accepted_histogram"]) > 0
            assert case["acceptance_rate"] > 0.5  # a drafter that guesses right
    for turn in found["turns"]:
        assert 0 < turn["reused_tokens"] < turn["prompt_tokens"]


def test_what_is_recommended_is_where_auto_begins_next(
    demo_run: tuple[dict[str, Any], str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    found, printed, folder = demo_run
    assert found["recommendation"] in " ".join(printed.split())
    monkeypatch.setenv("MGM_CACHE_DIR", str(folder))
    (key,) = json.loads((folder / "depth.json").read_text())["entries"]
    costs = load_depth(key).to_json()["costs"]
    assert {"0", "3"} <= costs["1"].keys()
    assert {"0"} <= costs["2"].keys()


@pytest.mark.parametrize("form", ["table", "md", "csv", "json"])
def test_an_earlier_run_is_shown_again_in_every_form(
    random_run: tuple[dict[str, Any], str, Path],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    form: str,
) -> None:
    found, table, out = random_run
    done = run_here(monkeypatch, capfd, ["bench", "--from", out, "--format", form])
    assert (done.returncode, done.stderr) == (0, "")
    if form == "table":
        assert done.stdout == table
    elif form == "json":
        assert json.loads(done.stdout) == found
    else:
        rate = found["cases"][0]["decode_tokens_per_second"]["median"]
        assert f"{rate:.1f}" in done.stdout
    if form == "csv":
        rows = list(csv.DictReader(io.StringIO(done.stdout)))
        assert len(rows) == len(found["cases"]) + len(found["turns"])


def test_a_run_to_share_is_one_row(
    random_run: tuple[dict[str, Any], str, Path],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    done = run_here(
        monkeypatch, capfd, ["bench", "--from", random_run[2], "--share", "--format", "md"]
    )
    head, rule, row = done.stdout.splitlines()
    assert head.count("|") == rule.count("|") == row.count("|")
    assert "tiny" in row


def interrupt_at(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, call: int) -> None:
    """Ctrl-C at this call of a module's function, the first being 1."""
    original, calls = getattr(module, name), itertools.count(1)

    def counted(*arguments: Any, **named: Any) -> Any:
        if next(calls) == call:
            raise KeyboardInterrupt
        return original(*arguments, **named)

    monkeypatch.setattr(module, name, counted)


def test_ctrl_c_in_a_later_task_shows_those_that_are_finished(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(run, "LEARNING", 3)
    interrupt_at(monkeypatch, run, "_attempt", 2 + 2 * 2 * 2 + 1)  # two tasks warm and over
    out = tmp_path / "found.json"
    asked = "bench --tasks json,counting,stories --batch 1 --drafts 0,2 --repeat 2 --max-tokens 4"
    done = run_here(monkeypatch, capfd, [*asked.split(), "--out", out])
    assert done.returncode == 130
    cases = read(out).cases
    assert [case.task for case in cases] == ["json"] * 2 + ["counting"] * 2 + ["all"] * 2
    assert f"{cases[-1].decode_tokens_per_second.median:.1f}" in done.stdout.split("What one")[0]


def test_nothing_is_recommended_from_a_run_that_was_interrupted_at_once(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    interrupt_at(monkeypatch, run, "_attempt", 1)
    out = tmp_path / "found.json"
    asked = "bench --tasks json --batch 1 --drafts 0,2,auto --recommend --out"
    assert run_here(monkeypatch, capfd, [*asked.split(), out]).returncode == 130
    done = run_here(monkeypatch, capfd, ["bench", "--from", out, "--recommend"])
    assert_one_line(done, 2, "nothing to recommend")


def test_ctrl_c_in_a_check_shows_what_was_compared(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("MLX_ENABLE_TF32", "0")  # which the command sets
    interrupt_at(monkeypatch, check, "_write", 3)  # alone, with 1 draft, with 2
    out = tmp_path / "check.json"
    asked = "bench --check --tasks json --batch 1,2 --drafts 1,2 --max-tokens 4 --out"
    done = run_here(monkeypatch, capfd, [*asked.split(), out])
    assert done.returncode == 130
    assert done.stdout.endswith("1 of 1 texts are the same; not all were compared\n")
    found = json.loads(out.read_text())
    assert (found["complete"], len(found["compared"])) == (False, 1)
    done = run_here(monkeypatch, capfd, ["bench", "--from", out])
    assert_one_line(done, 2, "is no run that")


def test_drafts_that_are_asked_for_need_a_drafter(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = shutil.copytree(find_pair("demo", "auto")[0], tmp_path / "alone")
    done = run_here(monkeypatch, capfd, ["bench", "--model", folder, "--drafts", "0,3"])
    assert done.returncode == 3
    assert "needs a drafter" in done.stderr.splitlines()[-1]


def test_runs_shown_together_are_one_csv(
    random_run: tuple[dict[str, Any], str, Path],
    demo_run: tuple[dict[str, Any], str, Path],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    files = ["--from", random_run[2], "--from", demo_run[2] / "found.json"]
    done = run_here(monkeypatch, capfd, ["bench", *files, "--format", "csv"])
    rows = list(csv.DictReader(io.StringIO(done.stdout), strict=True))
    assert {row["model"] for row in rows} == {"tiny", "demo"}
    assert all(None not in row for row in rows)


def test_ctrl_c_keeps_what_is_finished(tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    asked = f"bench {RANDOM} --repeat 1 --delay 1 --out"
    run = [*command(TINY + QUICK), *asked.split(), str(out)]
    process = subprocess.Popen(
        run, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    )
    assert process.stderr is not None
    assert process.stderr.readline().startswith("drawing tiny: ")
    for line in process.stderr:
        if "batch 2, random" in line:
            process.send_signal(signal.SIGINT)
            break
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    record = read(out)
    assert not record.complete
    assert {case.batch for case in record.cases} == {1}
    assert len(record.cases) == 3
    assert "interrupted" in record.warnings
    assert f"{record.cases[0].decode_tokens_per_second.median:.1f}" in printed


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--batch 3", "--batch takes 1, 2, 4, 8"),
        ("--drafter none --drafts 0,3", "--drafts 0,3 needs a drafter"),
        ("--batch x", "--batch takes a list with commas"),
        ("--drafts 99", "from 0 to 15, not 99"),
        ("--drafts ,", "--drafts takes a list"),
        ("--repeat 0", "--repeat takes numbers from 1 on"),
        ("--delay -1", "--delay takes numbers from 0 on"),
        ("--delay inf", "--delay takes numbers from 0 on"),
        ("--max-tokens 0", "--max-tokens takes numbers from 1 on"),
        ("--tasks poetry", "--tasks takes stories, counting, json; not 'poetry'"),
        ("--prompt-tokens 100", "the demo's prompts are as they are"),
        ("--peer vllm", "--peer is one of mlx-lm, mlx-vlm"),
        ("--peer mlx-vlm", "pip install"),
        ("--delay nan", "--delay takes numbers from 0 on"),
        ("--temperature -1", "temperature"),
        ("--temperature 1 --peer mlx-lm", "leave --temperature out"),
        ("--overlap 1", "are about random weights: add --synthetic"),
        ("--check --recommend", "--check times nothing"),
        ("--check --share", "--check times nothing"),
        ("--check --repeat 2", "--check times nothing"),
        ("--check --temperature 1", "--check times nothing"),
        ("--check --out /no/such/folder/x.json", "there is no folder /no/such/folder"),
        ("--out .", "is a folder"),
        ("--from run.json --check", "--from measures nothing"),
        ("--from run.json --batch 4", "--from measures nothing"),
        ("--from run.json --out other.json", "--from measures nothing"),
        ("--from run.json --model demo", "--from measures nothing"),
        ("--synthetic E2B --model demo", "leave --model and --drafter out"),
        ("--synthetic E2B --drafter none", "leave --model and --drafter out"),
        ("--max-tokens 4096", "demo takes 4,096 tokens"),
        ("--check --max-tokens 4096", "demo takes 4,096 tokens"),
        ("--share --format csv", "leave --format out"),
        ("--batch=", "--batch takes a list"),
        ("--synthetic E4B --prompt-tokens 200000", "E4B takes 131,072 tokens"),
        ("--accept 0.5", "are about random weights: add --synthetic"),
        ("--synthetic 26B-A4B --overlap 4 --peer mlx-lm", "leave one of them out"),
        ("--synthetic E2B --accept=", "--accept takes a list"),
        ("--synthetic E2B --bits 3", "bits must be 4 or 8, not 3"),
        ("--peer-drafts 3", "add --peer mlx-vlm"),
        ("--peer mlx-lm --peer-drafts 3", "add --peer mlx-vlm"),
        ("--synthetic 26B-A4B --overlap 9", "at most 8"),
        ("--recommend --slow-draft 2", "leave --slow-draft out"),
        ("--synthetic 7B", "--synthetic is one of E2B, E4B, 12B, 26B-A4B, 31B"),
        ("--synthetic 31B --accept 2", "--accept takes chances from 0 to 1"),
        ("--synthetic 31B --tasks code", "no --tasks"),
        ("--synthetic 31B --recommend", "leave --synthetic out"),
        ("--drafts 0,3 --recommend", "--drafts 0,3,auto"),
        ("--out /no/such/folder/x.json", "there is no folder /no/such/folder"),
        ("--from /no/such/file.json", "/no/such/file.json cannot be read"),
        ("--check --format csv", "--check times nothing"),
        ("--check --drafts 0", "ask for 1 or more"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    arguments: str,
    said: str,
) -> None:
    monkeypatch.setattr(mlx_vlm_pair, "VERSION", "0.0")  # also where the right one is installed
    assert_one_line(run_here(monkeypatch, capfd, ["bench", *arguments.split()]), 2, said)


def test_a_size_without_room_is_refused_before_it_is_drawn(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(device, "available", lambda: 8 * 10**9)
    asked = "bench --synthetic 31B --bits 4 --batch 1"
    assert_one_line(
        run_here(monkeypatch, capfd, asked.split()), 4, "31B in float32, with 1 text of"
    )


def test_copies_for_peers_must_have_room_too(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def draw(_: object) -> NoReturn:
        raise MgmError("there was room")

    monkeypatch.setattr(device, "available", lambda: 22 * 10**9)
    monkeypatch.setattr(synthetic, "draw", draw)
    asked = ["bench", "--synthetic", "26B-A4B", "--bits", "4", "--batch", "1"]
    done = run_here(monkeypatch, capfd, asked)
    assert done.stderr.endswith("there was room\n")
    done = run_here(monkeypatch, capfd, [*asked, "--peer", "mlx-lm"])
    assert_one_line(done, 4, "and copies for --peer needs")
    assert "no --peer or fewer --prompt-tokens needs less" in done.stderr


def test_a_check_passes_and_one_that_finds_a_fault_ends_with_5(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("MLX_ENABLE_TF32", "0")  # which the command sets
    out = tmp_path / "check.json"
    asked = f"bench --check --tasks json --batch 1,2 --drafts 2 --max-tokens 6 --out {out}"
    done = run_here(monkeypatch, capfd, asked.split())
    assert done.returncode == 0, done.stderr
    assert "nothing may part" in done.stdout
    assert json.loads(out.read_text())["faults"] == 0

    def all_agree(drafts: mx.array, _: mx.array) -> mx.array:
        return mx.full(drafts.shape[:1], drafts.shape[1], mx.int32)

    monkeypatch.setattr(speculate, "agreeing_prefix", all_agree)
    asked = "bench --check --tasks json --batch 1 --drafts 3 --max-tokens 24"
    done = run_here(monkeypatch, capfd, asked.split())
    assert done.returncode == 5
    assert "not what they must be" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("error", "code"), [(NotEnoughMemoryError("no room"), 4), (RuntimeError("no\nroom"), 1)]
)
def test_what_was_measured_before_an_error_is_shown_and_kept(
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
    error: Exception,
    code: int,
) -> None:
    def fail(*_: object) -> NoReturn:
        raise error

    monkeypatch.setattr(run, "LEARNING", 3)
    monkeypatch.setattr(run, "second_turns", fail)
    out = tmp_path / "found.json"
    asked = f"bench --tasks json --batch 1,2 --drafts 0 --repeat 1 --max-tokens 4 --out {out}"
    done = run_here(monkeypatch, capfd, asked.split())
    assert done.returncode == code
    assert "no room" in done.stderr.splitlines()[-1]
    record = read(out)
    assert f"ended by {type(error).__name__}: no room" in record.warnings
    assert [case.batch for case in record.cases] == [1]
    assert f"{record.cases[0].decode_tokens_per_second.median:.1f}" in done.stdout


def test_texts_that_end_before_they_fill_a_window_are_told_of(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(decode, "WAVES", 1)
    out = tmp_path / "found.json"
    asked = f"bench --tasks json --batch 1 --drafts 0 --repeat 1 --max-tokens 1000 --out {out}"
    assert run_here(monkeypatch, capfd, asked.split()).returncode == 0
    (warning,) = (one for one in read(out).warnings if "ended" in one)
    assert warning.startswith("batch 1, json: the texts ended after ")
    assert warning.endswith(" of 1,000 tokens: fewer --max-tokens")
