"""Hand-made records as shown: every format has the same numbers, the sentences follow from them."""

from __future__ import annotations

import csv
import io
import re
import sys
from dataclasses import fields, replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from mlx_gemma_mtp.bench import record as records
from mlx_gemma_mtp.bench import report
from mlx_gemma_mtp.bench.conclusions import duels, finding, verdict
from mlx_gemma_mtp.bench.plot import THEMES, plot
from mlx_gemma_mtp.bench.record import ALL, MIXED, OURS, Case, NumDrafts, Record, Spread, Window
from mlx_gemma_mtp.bench.stamp import Stamp

from mlx_gemma_mtp.errors import UsageError

ROOT = Path(__file__).parents[2]
PEER = "mlx-vlm 0.7.10"
TASKS = {"chat": 0.62, "code": 0.84, "creative": 0.4}  # and the chance of each draft
PLAIN_MS, DRAFT_MS, HOST_MS = 20.0, 1.5, 0.5
STAMP = Stamp(
    time="2026-01-02T03:04:05+00:00",
    device="Apple M4 Max",
    backend="metal",
    system="macOS 26.1",
    memory_bytes=64 << 30,
    gpu_memory_bytes=None,
    versions={"python": "3.11.2", "mlx": "0.32.4", "mlx_gemma_mtp": "0.1.0"},
    environment={},
    power="battery 83%",
    load=0.1,
    warnings=["the machine runs on battery"],
)


def spread(middle: float) -> Spread:
    """2% to either side."""
    return Spread(middle, middle * 0.98, middle * 1.02)


def a_case(task: str, batch: int, count: NumDrafts, *, rate: float, slope: float) -> Case:
    """A case whose pass over T tokens costs 1 + slope x (T - 1) passes over one."""
    depth = 2 if count == "auto" else count
    reached = [rate ** (place + 1) for place in range(depth)]
    verify = PLAIN_MS * (1 + slope * depth)
    round_ms = verify + DRAFT_MS * depth + HOST_MS
    speed = batch * 1e3 * (1 + sum(reached)) / round_ms
    found = Case(
        OURS,
        task,
        batch,
        count,
        [75, 512][:batch],
        [Window(160, 16, 160 / turn, 99, 0.1) for turn in (speed, speed * 0.98, speed * 1.02)],
        tokens_per_second=spread(speed),
        round_ms=spread(round_ms),
        prefill_tokens_per_second=spread(1234.5),
        speedup=spread(speed * (PLAIN_MS + HOST_MS) / batch / 1e3),
        first_token_ms=spread(300.4 + 7.3 * depth + 11.1 * batch),
        token_gap_ms_p50=12.34,
        token_gap_ms_p95=56.78,
        token_gap_ms_max=91.23,
        peak_gb=16.34,
        allowed_round_gb=15.1,
        allowed_tokens_per_second=speed * 1.37,
        allowed_share=1 / 1.37,
    )
    if count != "auto":
        found = replace(found, draft_ms=DRAFT_MS * depth, verify_ms=verify, host_ms=HOST_MS)
    if not depth:
        return found
    return replace(
        found,
        acceptance_rate=sum(reached) / depth,
        acceptance_length=1 + sum(reached),
        acceptance_by_position=reached,
        accepted_histogram=[37, *range(11, 11 + depth)],
        drafted_per_round=float(depth),
    )


def a_record(slope: float = 0.05) -> Record:
    """Three tasks at batch 1, mixed at batch 4, plain and with drafts, next to a peer."""
    counts: list[NumDrafts] = [0, 1, 3, "auto"]
    cases = [
        a_case(task, 1, count, rate=rate, slope=slope)
        for task, rate in [*TASKS.items(), (ALL, 0.6)]
        for count in counts
    ]
    cases += [a_case(MIXED, 4, count, rate=0.6, slope=slope) for count in counts]
    for task, batch in [(ALL, 1), (MIXED, 4)]:
        for count in (0, 3):
            theirs = a_case(task, batch, count, rate=0.6, slope=1.3 * slope + 0.2)
            nothing = dict.fromkeys([f.name for f in fields(Case) if "allowed" in f.name])
            nothing |= dict.fromkeys(["draft_ms", "verify_ms", "host_ms", "acceptance_rate"])
            cases.append(replace(theirs, engine=PEER, **nothing))  # type: ignore[arg-type]
    return Record(
        "mgm bench --model gemma-4",
        STAMP,
        records.Subject("gemma-4-E4B-it", "bfloat16", "4", 6_010_000_000, 157_000_000, 0, False),
        records.Plan([1, 4], counts, 64, repeat=3, tasks=list(TASKS)),
        401.3e9,
        cases,
        warnings=["the battery ran down"],
        complete=True,
    )


PAYS, PAYS_NOT = a_record(), a_record(slope=0.9)
BARE = replace(
    PAYS,
    cases=[Case(OURS, "chat", 1, 0, [75], [Window(9, 9, 1.0, 9, 1.0)], *[spread(50.0)] * 3)],
    subject=replace(PAYS.subject, bits=None, drafter_bytes=None),
    complete=False,
)
EMPTY = replace(BARE, cases=[])
DRAWN = replace(
    PAYS,
    subject=replace(PAYS.subject, name="26B-A4B", num_experts=128, random=True),
    plan=replace(PAYS.plan, accept=[0.8, 0.5]),
)
RECORDS = {"whole": PAYS, "bare": BARE, "empty": EMPTY, "drawn": DRAWN}
every_record = pytest.mark.parametrize("record", RECORDS.values(), ids=RECORDS)


def in_csv(*given: Record) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(report.csv_text(given)), strict=True))


def shown(record: Record, part: report.Part = "all", *, width: int = 80) -> str:
    return report.text(record, part, width=width)


@every_record
def test_a_record_comes_back_from_its_json(record: Record, tmp_path: Path) -> None:
    records.write_json(record.to_json(), tmp_path / "run.json")
    assert records.read(tmp_path / "run.json") == record
    marked = "\N{BYTE ORDER MARK}" + (tmp_path / "run.json").read_text(encoding="utf-8")
    (tmp_path / "run.json").write_text(marked, encoding="utf-8")
    assert records.read(tmp_path / "run.json") == record


@pytest.mark.parametrize(
    ("content", "said"),
    [("{", "was not written by"), ('{"schema": 1}', "was not written by"),
     ('{"schema": 3, "cases": []}', "has schema 3, not 4: measure again")],
)  # fmt: skip
def test_a_file_that_is_no_record_is_refused(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(UsageError, match=said):
        records.read(tmp_path / "run.json")


def test_the_results_in_the_repository_can_be_read() -> None:
    for path in (ROOT / "bench" / "results").glob("*.json"):
        assert records.read(path).complete


def test_the_readme_names_every_key_and_no_other() -> None:
    text = (ROOT / "bench" / "README.md").read_text(encoding="utf-8")
    parts = dict(re.findall(r"^### (\w+)\n(.*?)(?=^##|\Z)", text, re.MULTILINE | re.DOTALL))
    for title, part in parts.items():
        kind = Stamp if title == "Stamp" else getattr(records, title)
        keys = ["schema"] * (title == "Record") + [field.name for field in fields(kind)]
        assert re.findall(r"^\| `(\w+)` \|", part, re.MULTILINE) == keys
    for kind in (Window, Spread):
        for field in fields(kind):
            assert f"`{field.name}`" in text


def test_every_cell_of_a_table_is_in_the_csv() -> None:
    numbers = {part for row in in_csv(PAYS) for cell in row.values() for part in cell.split()}
    found = report.tables(PAYS)
    assert len(found) == 7
    for one in found:
        for row in one.rows:
            for cell in row[one.left :]:
                assert {*cell.split("–")} <= numbers | {""}, (one.title, cell)


def test_a_csv_row_has_the_numbers_of_its_case() -> None:
    case = next(case for case in PAYS.at(1) if case.num_draft_tokens == 3)
    row = in_csv(PAYS)[PAYS.cases.index(case)]
    wanted = {
        "model": "gemma-4-E4B-it",
        "task": ALL,
        "num_draft_tokens": "3",
        "tokens_per_second": f"{case.tokens_per_second.median:.1f}",
        "tokens_per_second_low": f"{case.tokens_per_second.low:.1f}",
        "allowed_share": "0.730",
        "token_gap_ms_p95": "56.78",
        "peak_gb": "16.34",
        "verify_ms": "23.00",
        "acceptance_at_2": "0.360",
        "accepted_histogram": "37/11/12/13",
    }
    assert {name: row[name] for name in wanted} == wanted
    assert {row["model"] for row in in_csv(PAYS, DRAWN)} == {"gemma-4-E4B-it", "26B-A4B"}


@every_record
def test_unmeasured_numbers_are_left_out(record: Record) -> None:
    text = shown(record)
    assert not re.search(r"\b(None|nan|inf)\b", text + report.csv_text([record]))
    assert ("the run ended early" in text) != record.complete
    assert ("no drafter" in text) == (record.subject.drafter_bytes is None)
    assert ("accepts are drawn at 0.8, 0.5" in text) == (record is DRAWN)
    assert ("the other engines need" in text) == (len(record.engines) > 1)
    for one in report.tables(record):
        assert all({*column} != {report.NOTHING} for column in zip(*one.rows, strict=True))


@every_record
@pytest.mark.parametrize("width", [40, 80])
def test_a_report_is_as_wide_as_the_terminal_and_loses_no_number(
    record: Record, width: int
) -> None:
    for part in ("verdict", "short", "all"):
        text = shown(record, part, width=width)  # type: ignore[arg-type]
        assert max(map(len, text.splitlines())) <= width
    for one in (*report.summaries(record), *report.tables(record)):
        assert all(cell in one.text(width) for row in one.rows for cell in row[one.left :])


def test_a_run_to_share_has_plain_and_best_by_batch() -> None:
    shared = report.share_table([PAYS, BARE, EMPTY])
    assert {len(row) for row in shared.rows} == {len(shared.header)}
    assert shared.rows[0][3:8] == [
        "48.8 → 76.9 (1.58x, auto)",
        "–",
        "195.1 → 307.5 (1.58x, auto)",
        "–",
        "0.392 (3 drafts)",
    ]


def test_a_peer_is_compared_turn_by_turn() -> None:
    def quicker(case: Case) -> Case:
        """The peer's second turn is as quick as its first; ours stays slow there."""
        first, _, last = case.windows
        theirs = (case.engine, case.batch, case.num_draft_tokens) == (PEER, 4, 3)
        return replace(case, windows=[first, first, last]) if theirs else case

    changed = replace(PAYS, cases=[quicker(case) for case in PAYS.cases])
    for record, low in ((PAYS, 1.46), (changed, 1.43)):
        assert [one.ours.batch for one in duels(record)] == [1, 4]
        assert duels(record)[-1].times.median == pytest.approx(1.46, abs=0.005)
        assert duels(record)[-1].times.low == pytest.approx(low, abs=0.005)
    assert "4      mlx-vlm  212.8       3  310.9       3  1.46x (1.43–1.46)" in shown(changed)


def speeds(low: float = 0.99, **rates: float) -> Record:
    """Batch 1 with these tokens per second: k0 is plain. low: of each gain, relative to it."""
    cases = []
    for name, rate in rates.items():
        gain = rate / rates.get("k0", 1)
        case = a_case("code", 1, "auto" if name == "auto" else int(name[1:]), rate=0.5, slope=0.0)
        gained = Spread(gain, gain * low, gain)
        cases.append(replace(case, tokens_per_second=spread(rate), speedup=gained))
    return replace(PAYS, cases=cases)


def both(one: Record, other: Record) -> Record:
    """The first at batch 1, the other at batch 2."""
    return replace(one, cases=[*one.cases, *(replace(case, batch=2) for case in other.cases)])


GAINS, LOSES = speeds(k0=50, k3=100, auto=80), speeds(k0=50, k3=45, auto=40)


AT_1 = "the plain speed at batch 1"
DRAWN_GAIN = replace(GAINS, plan=DRAWN.plan)


@pytest.mark.parametrize(
    ("found", "answer", "advice"),
    [
        (speeds(k0=50, k3=100, k5=90, auto=99), f"Yes: 1.98x {AT_1}", "auto, the default"),
        (GAINS, f"Yes: 2.00x {AT_1}", "3"),
        (LOSES, f"No: 0.90x {AT_1}", "0"),
        (speeds(k0=50, auto=51), f"No: 1.02x {AT_1}", "0"),
        (speeds(k0=50, k3=60, low=0.8), f"No: 1.20x {AT_1} but not reliably", "0"),
        (
            both(GAINS, LOSES),
            f"Only at batch 1: 2.00x {AT_1}, 0.90x at batch 2",
            "3 at batch 1, 0 at batch 2",
        ),
        (DRAWN_GAIN, f"Yes: 2.00x {AT_1}, if drafts are accepted at 0.8, 0.5", "3"),
        (speeds(k3=9), "Not measured: it takes plain decoding and drafts", "0,3,auto to compare"),
        (BARE, "Not measured: the model has no drafter", None),
        (EMPTY, "Not measured: the run ended too early", None),
    ],
)
def test_the_verdict_follows_from_what_was_measured(
    found: Record, answer: str, advice: str | None
) -> None:
    said = verdict(found)
    assert said.answer == f"Worth it here? {answer}."
    assert said.advice == ("" if advice is None else f"Type --num-draft-tokens {advice}.")


def test_a_noisy_fastest_setting_does_not_hide_one_that_gains() -> None:
    noisy = replace(speeds(k3=110, low=0.4).cases[0], speedup=Spread(1.1, 0.9, 2.0))
    steady = speeds(k0=50, k1=75)
    said = verdict(replace(steady, cases=[*steady.cases, noisy]))
    assert said == (
        "Worth it here? Yes: 1.50x the plain speed at batch 1.",
        "Type --num-draft-tokens 1.",
    )


def test_a_faster_auto_that_did_not_draft_is_no_gain() -> None:
    plain, auto = speeds(k0=50, auto=60).cases
    idle = replace(auto, drafted_per_round=0.0, acceptance_rate=None, acceptance_length=None)
    found = replace(PAYS, cases=[plain, idle])
    assert verdict(found).answer.startswith("Worth it here? No: 1.20x")
    assert "batch 1: auto did not draft." in shown(found)
    drafted = speeds(k0=50, k3=40).cases[1]
    assert "0.80x" in verdict(replace(PAYS, cases=[plain, drafted, idle])).answer


@every_record
@pytest.mark.parametrize("markdown", [False, True])
def test_the_verdict_is_the_first_line_and_the_last(record: Record, markdown: bool) -> None:
    said = verdict(record)
    for part in ("short", "all"):
        text = report.text(record, part, markdown=markdown)  # type: ignore[arg-type]
        lines = text.splitlines()
        assert lines[0] == said.answer
        assert lines[-1] == " ".join(filter(None, said))
    assert report.text(record, "verdict", markdown=markdown).endswith(lines[-1])


@pytest.mark.parametrize(
    "record", [GAINS, LOSES, both(GAINS, LOSES), both(LOSES, GAINS), PAYS, PAYS_NOT]
)
def test_table_verdict_and_shared_row_have_one_answer(record: Record) -> None:
    said, table = verdict(record), report.summaries(record)[0]
    shared = report.share_table([record]).rows[0][3:7]
    for batch, cell in zip(report.SHARED_BATCHES, shared, strict=True):
        one = finding(record.at(batch))
        if one is None:
            continue
        gain, count = f"{one.gain.median:.2f}x", one.use.num_draft_tokens
        (row,) = (row for row in table.rows if row[0] == f"batch {batch}")
        assert (row[2], row[4].split()[0]) == (str(one.drafted.num_draft_tokens), gain)
        assert gain in said.answer
        assert f"{count} at batch {batch}" in said.advice or f"tokens {count}" in said.advice
        assert ("→" in cell) == one.gains == (gain in cell) == (count != 0)


def test_without_a_gain_the_reason_is_the_cost_of_a_round() -> None:
    because = "takes 1.95x as long as a plain one and yields 1.60 tokens a row."
    lines = shown(PAYS_NOT, "short", width=200)
    assert f"batch 1: a round with 1 draft {because}" in lines
    assert "yields" not in shown(PAYS)
    assert "On a CPU" not in lines
    on_cpu = replace(PAYS_NOT, stamp=replace(STAMP, backend="cpu"))
    assert "On a CPU" in shown(on_cpu)
    assert "On a CPU" not in shown(replace(PAYS, stamp=on_cpu.stamp))


def test_plots_are_the_same_bytes_again_in_light_and_dark(tmp_path: Path) -> None:
    files = plot([PAYS, BARE, DRAWN], tmp_path / "one")
    assert [path.name for path in files] == [
        f"{name}-{theme}.svg" for name in ("speedup", "throughput") for theme in THEMES
    ]
    for path, again in zip(files, plot([PAYS, BARE, DRAWN], tmp_path / "two"), strict=True):
        text = path.read_text(encoding="utf-8")
        assert text == again.read_text(encoding="utf-8")
        assert ElementTree.fromstring(text).tag.endswith("svg")
        theme = path.stem.rpartition("-")[2]
        assert [ink in text for ink in THEMES.values()] == [name == theme for name in THEMES]
        assert len(text) < 60_000


def test_plots_that_cannot_be_made_say_so_and_unmeasured_numbers_give_no_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert plot([BARE, EMPTY], tmp_path) == []
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot write"):
        plot([PAYS], tmp_path / "file")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UsageError, match=r"^plots need matplotlib: pip install matplotlib$"):
        plot([PAYS], tmp_path)
