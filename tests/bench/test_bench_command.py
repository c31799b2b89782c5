"""`mgm bench` as a person runs it: what it prints, writes, keeps and refuses."""

from __future__ import annotations

import csv
import io
import json
import shutil
import signal
import subprocess
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from mlx_gemma_mtp.bench import report, run, subject
from mlx_gemma_mtp.bench.prompts import Prompts, of_noise
from mlx_gemma_mtp.bench.record import Plan, Record, read
from mlx_gemma_mtp.bench.run import Run
from mlx_gemma_mtp.bench.stamp import stamp
from mlx_gemma_mtp.bench.turn import Rounds

from helpers.command import Done, assert_one_line, command, environment, run_here
from mlx_gemma_mtp.cli import main
from mlx_gemma_mtp.decode.depth import Depth
from mlx_gemma_mtp.errors import NotEnoughMemoryError
from mlx_gemma_mtp.files.find import find_pair
from mlx_gemma_mtp.files.remembered import load_depth

pytestmark = pytest.mark.slow

RANDOM = "--batch 1,2 --num-draft-tokens 0,2,auto --prompt-tokens 9,30 --max-tokens 6 --synthetic"
DEMO = "--tasks json,counting --batch 1,2 --num-draft-tokens 0,3,auto --repeat 1 --max-tokens 6"


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Any:
    """`mgm bench` in this process."""

    def bench(*arguments: str | Path) -> Done:
        return run_here(monkeypatch, capfd, ["bench", *arguments])

    return bench


@pytest.fixture(scope="module")
def random_run(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, str, Path]:
    """The JSON, the table and the file of a run with random weights next to mlx-lm."""
    out = tmp_path_factory.mktemp("bench") / "run.json"
    asked = f"bench {RANDOM} {tiny} --repeat 2 --accept 0.9,0.5 --peer mlx-lm --details --out {out}"
    printed, errors = run_quietly(asked)
    assert errors == f"drawing random weights of {tiny}\n"
    return json.loads(out.read_text()), printed, out


@pytest.fixture(scope="module")
def demo_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, str, Path]:
    """The JSON, the Markdown and the cache folder of a run with the demo pair."""
    folder = tmp_path_factory.mktemp("bench")
    asked = f"bench {DEMO} --format md --recommend --out {folder / 'run.json'}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MGM_CACHE_DIR", str(folder))
        printed, _ = run_quietly(asked)
    return json.loads((folder / "run.json").read_text()), printed, folder


def run_quietly(asked: str) -> tuple[str, str]:
    """What a command prints to stdout and stderr."""
    printed, errors = io.StringIO(), io.StringIO()
    with redirect_stdout(printed), redirect_stderr(errors), pytest.raises(SystemExit) as left:
        main(asked.split())
    assert left.value.code == 0, errors.getvalue()
    return printed.getvalue(), errors.getvalue()


def test_every_setting_and_engine_has_its_case(
    random_run: tuple[Any, str, Path], tiny: str
) -> None:
    found, printed, _ = random_run
    settings = [(c["engine"][:6], c["batch"], c["num_draft_tokens"]) for c in found["cases"]]
    assert settings == [
        (engine, batch, count)
        for batch in (1, 2)
        for engine, count in [("mlx-ge", 0), ("mlx-ge", 2), ("mlx-ge", "auto"), ("mlx-lm", 0)]
    ]
    assert found["complete"]
    assert found["subject"]["random"]
    assert found["subject"]["name"] == Path(tiny).name  # without its folder
    assert "random weights" in printed
    for case in found["cases"]:
        speed = case["tokens_per_second"]
        assert 0 < speed["low"] <= speed["median"] <= speed["high"]
        assert len(case["windows"]) == 2
        assert case["first_token_ms"]["low"] > 0
        assert case["peak_gb"] * 1e9 > found["subject"]["target_bytes"]
        assert f"{speed['median']:.1f}" in printed
        if case["engine"] == "mlx-gemma-mtp":
            allowed = case["allowed_tokens_per_second"]
            assert case["allowed_share"] == pytest.approx(speed["median"] / allowed)
            assert (case["draft_ms"] is None) == (case["num_draft_tokens"] == "auto")


def test_the_demo_is_measured_by_task_and_position(demo_run: tuple[Any, str, Path]) -> None:
    found, _, _ = demo_run
    tasks = {(case["batch"], case["task"]) for case in found["cases"]}
    assert tasks == {(1, "json"), (1, "counting"), (1, "all"), (2, "mixed")}
    for case in found["cases"]:
        if case["num_draft_tokens"] == 3:
            assert len(case["acceptance_by_position"]) == 3
            assert sum(case["accepted_histogram"]) > 0
            assert case["acceptance_rate"] > 0.5  # its drafter guesses right


def test_auto_starts_from_a_run_with_a_recommendation(
    demo_run: tuple[Any, str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, printed, folder = demo_run
    assert printed.splitlines()[-1].startswith("Worth it here? ")
    assert "**" not in printed  # no tables
    monkeypatch.setenv("MGM_CACHE_DIR", str(folder))
    (key,) = json.loads((folder / "depth.json").read_text())["entries"]
    costs = load_depth(key).to_json()["costs"]
    assert {"1", "4"} <= costs["1"]["widths"].keys()
    assert {"2"} <= costs["2"]["widths"].keys()


@pytest.mark.parametrize("form", ["table", "md", "csv", "json"])
def test_an_earlier_run_is_shown_again(
    random_run: tuple[Any, str, Path], here: Any, form: str
) -> None:
    found, printed, out = random_run
    done = here("--from", out, "--format", form, *["--details"] * (form == "table"))
    assert (done.returncode, done.stderr) == (0, "")
    if form == "table":
        assert done.stdout == printed
    elif form == "json":
        assert json.loads(done.stdout) == found
    elif form == "csv":
        assert len(list(csv.DictReader(io.StringIO(done.stdout)))) == len(found["cases"])
    else:
        assert f"{found['cases'][0]['tokens_per_second']['median']:.1f}" in done.stdout


def test_runs_to_share_are_rows_of_one_table(
    random_run: tuple[Any, str, Path], demo_run: tuple[Any, str, Path], here: Any
) -> None:
    files = ("--from", random_run[2], "--from", demo_run[2] / "run.json")
    head, rule, *rows = here(*files, "--share").stdout.splitlines()
    assert len(rows) == 2
    assert {line.count("|") for line in (head, rule, *rows)} == {head.count("|")}
    rows = list(csv.DictReader(io.StringIO(here(*files, "--format", "csv").stdout), strict=True))
    assert len({row["model"] for row in rows}) == 2


def test_ctrl_c_keeps_and_shows_what_is_finished(tiny: str, tmp_path: Path) -> None:
    out = tmp_path / "run.json"
    asked = f"bench {RANDOM} {tiny} --repeat 1 --delay 1 --out {out}"
    process = subprocess.Popen(
        [*command(), *asked.split()],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    deadline = time.monotonic() + 100
    while not (out.exists() and json.loads(out.read_text())["cases"]):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    record = read(out)
    assert not record.complete
    assert "interrupted" in record.warnings
    assert len(record.cases) in (3, 6)
    assert f"{record.cases[0].tokens_per_second.median:.1f}" in printed


class Measured:
    """A run with random weights in this process."""

    def __init__(self, tiny: str, batches: list[int], tasks: list[str], **more: Any) -> None:
        self.opened = subject.random(tiny, bits=None, accept=[[0.5]]).draw()
        plan = Plan(batches, [0, 2], tokens=4, repeat=2, endless=True, tasks=tasks, **more)
        noise = of_noise(512, [9])
        self.prompts = Prompts(tasks, lambda _, row: noise.wave("random", 1, row)[0])
        self.record = Record("mgm bench", stamp(), self.opened.subject(), plan, 1e9)
        self.updates: list[str] = []

    def measure(self, until: str = "", error: BaseException | None = None, **more: Any) -> None:
        """error: is raised at the second progress report with `until` in it."""

        def update(what: str, done: float, total: float | None) -> None:
            self.updates.append(what)
            if error is not None and sum(until in one for one in self.updates) == 2:
                raise error

        measuring = Run(self.record, self.opened, self.prompts, keep=lambda: None, update=update)
        measuring.measure(Depth(), **more)


def test_a_run_that_ends_early_has_the_whole_turns_of_finished_tasks(tiny: str) -> None:
    measured = Measured(tiny, [1], ["a", "b", "c"])
    with pytest.raises(KeyboardInterrupt):
        measured.measure(", c,", KeyboardInterrupt())
    assert [case.task for case in measured.record.cases] == ["a"] * 2 + ["b"] * 2 + ["all"] * 2
    total = measured.record.cases[-1].windows[0].tokens
    assert total == sum(case.windows[0].tokens for case in measured.record.cases[1:4:2])
    assert not measured.record.complete


def test_turns_alternate_and_a_peer_that_fails_is_left_out_of_its_batch(tiny: str) -> None:
    class Fails:
        name, can_draft = "other 1.0", True

        def rounds(self, prompts: list[list[int]], count: int, draw: object) -> Rounds:
            while True:
                if count and len(prompts) > 1:
                    raise RuntimeError("out\nof memory")
                yield [[7] for _ in prompts]

    measured = Measured(tiny, [1, 2], ["a"])
    measured.measure(peers=[Fails()])
    turns = [what.split(", ") for what in measured.updates if what.startswith("batch 1, a,")]
    assert [count for *_, count in turns] == ["0", "2", "0", "2", "2", "0", "2", "0"]
    assert [engine for _, _, engine, _ in turns[2:6]] == ["other 1.0"] * 2 * 2
    assert measured.record.complete
    theirs = [case for case in measured.record.cases if case.engine == "other 1.0"]
    assert [(one.batch, one.num_draft_tokens) for one in theirs] == [(1, 0), (1, 2), (2, 0)]
    assert "other 1.0 failed at batch 2 with 2 drafts: out of memory" in measured.record.warnings


def test_ours_without_something_takes_turns_like_another_engine(tiny: str) -> None:
    measured = Measured(tiny, [1], ["a"], without=["exact", "table"])
    measured.measure()
    settings = [(one.engine, one.num_draft_tokens) for one in measured.record.cases]
    names = ["mlx-gemma-mtp", "no-exact", "no-table"]
    assert settings == [(name, count) for name in names for count in (0, 2)]
    details = report.text(measured.record, "all")
    assert "no-table" in details
    assert "the other engines need" not in details  # copies of the weights


def test_completions_that_end_before_a_window_is_full_are_reported(
    here: Any, tmp_path: Path
) -> None:
    asked = "--tasks json --batch 1 --num-draft-tokens 0 --repeat 1 --max-tokens 1000 --out"
    assert here(*asked.split(), tmp_path / "run.json").returncode == 0
    (warning,) = (one for one in read(tmp_path / "run.json").warnings if "ended after" in one)
    assert warning.startswith("batch 1, json: the completions ended after ")
    assert warning.endswith(" of 1,000 tokens: use fewer --max-tokens")


@pytest.mark.parametrize(
    ("error", "code"), [(NotEnoughMemoryError("no room"), 4), (RuntimeError("no\nroom"), 1)]
)
def test_results_before_an_error_are_shown_and_kept(
    monkeypatch: pytest.MonkeyPatch, here: Any, tmp_path: Path, error: Exception, code: int
) -> None:
    calls = iter([False] * 3 + [True] * 99)

    def sleep(seconds: float) -> None:
        if next(calls):
            raise error

    monkeypatch.setattr(run.time, "sleep", sleep)
    asked = "--tasks json --batch 1,2 --num-draft-tokens 0 --repeat 2 --max-tokens 4 --out"
    done = here(*asked.split(), tmp_path / "run.json")
    assert done.returncode == code
    assert "no room" in done.stderr.splitlines()[-1]
    record = read(tmp_path / "run.json")
    assert "failed: no room" in record.warnings
    assert record.cases[0].batch == 1
    assert f"{record.cases[0].tokens_per_second.median:.1f}" in done.stdout


def test_drafts_need_a_drafter(here: Any, tmp_path: Path) -> None:
    folder = shutil.copytree(find_pair("demo", "auto")[0], tmp_path / "alone")
    for asked in ("--num-draft-tokens 0,3", "--drafter none --recommend"):
        done = here("--model", folder, *asked.split())
        assert done.returncode == 3
        assert "has no drafter" in done.stderr.splitlines()[-1]


def test_the_tasks_can_be_listed(here: Any) -> None:
    assert here("--tasks", "list").stdout.split() == ["stories", "counting", "json", "repeat"]
    assert "translate" in here("--tasks", "list", "--synthetic", "E2B").stdout.split()


def test_a_folder_made_from_the_demo_has_the_tasks_of_the_demo(here: Any, tmp_path: Path) -> None:
    demo = find_pair("demo", "auto")[0]
    made = shutil.copytree(demo, tmp_path / "made", ignore=shutil.ignore_patterns("*.safetensors"))
    listed = "--tasks", "list", "--model", made
    assert here(*listed).stdout == here("--tasks", "list").stdout
    (made / "tokenizer.json").write_text("{}")
    assert "translate" in here(*listed).stdout.split()


def test_a_check_compares_the_output_and_measures_nothing(here: Any, tmp_path: Path) -> None:
    out = tmp_path / "check.json"
    asked = f"--check --tasks json --batch 1,2 --num-draft-tokens 2 --max-tokens 6 --out {out}"
    done = here(*asked.split())
    assert done.returncode == 0, done.stderr
    assert json.loads(out.read_text())["faults"] == []
    assert_one_line(here("--from", out), 2, "was not written by")
    written = out.read_bytes()
    for options in ([], ["--check"]):
        assert_one_line(here(*options, "--out", out), 2, "exists: --out writes a new file")
    assert out.read_bytes() == written


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--batch 3", "--batch takes 1, 2, 4, 8"),
        ("--batch x", "--batch takes 1, 2, 4, 8, separated by commas, not"),
        ("--batch=,", "--batch takes 1, 2, 4, 8, separated by commas, not"),
        ("--num-draft-tokens 99", "--num-draft-tokens takes 0 to 15 and auto"),
        ("--num-draft-tokens ,", "--num-draft-tokens takes 0 to 15 and auto"),
        ("--repeat 0", "--repeat must be at least 1"),
        ("--delay -1", "--delay must be at least 0"),
        ("--delay inf", "--delay must be at least 0"),
        ("--delay nan", "--delay must be at least 0"),
        ("--max-tokens 0", "--max-tokens must be at least 1"),
        ("--max-tokens 4096", "demo has a context of 4,096 tokens"),
        ("--check --max-tokens 4096", "demo has a context of 4,096 tokens"),
        ("--temperature -1", "temperature"),
        ("--tasks poetry", "stories, counting, json, repeat, separated by commas, not 'poetry'"),
        ("--prompt-tokens 100", "the demo has prompts of its own"),
        ("--peer vllm", "--peer must be one of mlx-lm, mlx-vlm"),
        ("--without speed", "--without must be one of copies, exact, table, not speed"),
        ("--synthetic E2B --without copies", "random weights take no copies"),
        ("--exact off --without exact", "leave --without exact out"),
        ("--temperature 1 --peer mlx-lm", "leave --temperature out"),
        ("--check --recommend", "leave --recommend out"),
        ("--check --repeat 2 --share", "leave --repeat, --share out"),
        ("--check --format csv", "leave --format out"),
        ("--check --num-draft-tokens 0", "--num-draft-tokens 1 or more"),
        ("--out /no/such/folder/x.json", "a file in an existing folder, not /no/such/folder"),
        ("--check --out /no/such/x.json", "a file in an existing folder, not /no/such/x.json"),
        ("--out .", "must name a file"),
        ("--from run.json --check", "--from measures nothing: leave --check out"),
        ("--from run.json --batch 4 --model demo", "leave --batch, --model out"),
        ("--from /no/such/file.json", "cannot read /no/such/file.json"),
        ("--share --format csv", "leave --format out"),
        ("--accept 0.5", "--accept is for random weights: add --synthetic"),
        ("--synthetic E2B --model demo", "leave --model out"),
        ("--synthetic E4B --prompt-tokens 200000", "E4B has a context of 131,072 tokens"),
        ("--synthetic E2B --prompt-tokens 0", "--prompt-tokens takes numbers above 0"),
        ("--synthetic E2B --accept x", "--accept takes chances from 0 to 1"),
        ("--synthetic 31B --accept 2", "--accept takes chances from 0 to 1"),
        ("--synthetic E2B --bits 3", "bits must be 4 or 8, not 3"),
        ("--synthetic 7B", "must be one of E2B, E4B, 12B, 26B-A4B, 31B, or a file"),
        ("--synthetic 31B --tasks code", "leave --tasks out"),
        ("--synthetic 31B --recommend", "leave --recommend out"),
        ("--num-draft-tokens 0,3 --recommend", "--num-draft-tokens 0,3,auto"),
        ("--recommend --details", "leave --details out"),
        ("--format csv --details", "leave --details out"),
        ("--drafter none --num-draft-tokens 0,3", "leave --num-draft-tokens out"),
        ("--plot pyproject.toml", "--plot must name a folder"),
    ],
)
def test_a_wrong_combination_is_refused_in_one_line(here: Any, arguments: str, said: str) -> None:
    assert_one_line(here(*arguments.split()), 2, said)
