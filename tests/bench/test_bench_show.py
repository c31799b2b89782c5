"""How a benchmark is shown: every format has the same numbers, and says what they mean.

The records are made by hand; nothing is measured here.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from mlx_gemma_mtp.bench import estimate, show
from mlx_gemma_mtp.bench.check import CheckReport, Compared, Parted
from mlx_gemma_mtp.bench.chips import Chip, find_chip
from mlx_gemma_mtp.bench.columns import CASE, TURN, Row
from mlx_gemma_mtp.bench.conclusions import conclusions
from mlx_gemma_mtp.bench.estimate import Prediction
from mlx_gemma_mtp.bench.group import groups, joined
from mlx_gemma_mtp.bench.plan import Plan
from mlx_gemma_mtp.bench.plot import THEMES, plot
from mlx_gemma_mtp.bench.record import (
    ALL,
    MIXED,
    OURS,
    Case,
    Drafts,
    Ideal,
    Record,
    Split,
    Spread,
    Subject,
    Turn,
    read,
)
from mlx_gemma_mtp.bench.stamp import Stamp

from mlx_gemma_mtp.check import Side
from mlx_gemma_mtp.cli.estimate import to_json
from mlx_gemma_mtp.errors import UsageError

ROOT = Path(__file__).parents[2]
PEER = "mlx-vlm"
TASKS = {"chat": 0.62, "code": 0.84, "creative": 0.4}  # and the chance of a draft to come true

STAMP = Stamp(
    time="2026-01-02T03:04:05+00:00",
    device="Apple M4 Max",
    backend="metal",
    system="macOS 26.1",
    memory_bytes=64 << 30,
    gpu_memory_bytes=None,
    versions={"python": "3.11.2", "mlx": "0.32.4", "mlx_gemma_mtp": "0.1.0"},
    environment={},
    power="battery 83 %",
    load=0.1,
    warnings=["on battery"],
)
PLAIN_MS, DRAFT_MS, HOST_MS = 20.0, 1.5, 0.5


def spread(middle: float) -> Spread:
    """2 % to either side."""
    return Spread(middle, middle * 0.98, middle * 1.02)


def a_case(task: str, batch: int, drafts: Drafts, *, rate: float, slope: float) -> Case:
    """A case whose pass over T tokens costs 1 + slope x (T - 1) passes over one."""
    depth = 2 if drafts == "auto" else drafts
    reached = [rate ** (place + 1) for place in range(depth)]
    verify = PLAIN_MS * (1 + slope * depth)
    round_ms = verify + DRAFT_MS * depth + HOST_MS
    plain_speed = batch * 1e3 / (PLAIN_MS + HOST_MS)
    speed = batch * 1e3 * (1 + sum(reached)) / round_ms
    drafted = {
        "acceptance_rate": sum(reached) / max(depth, 1),
        "acceptance_length": 1 + sum(reached),
        "acceptance_by_position": reached,
        "accepted_histogram": [37, *range(11, 11 + depth)],
        "drafted_per_round": float(depth),
    }
    fixed = {
        "split": Split(DRAFT_MS * depth, verify, HOST_MS),
        "floor": Ideal(15.1e9, speed * 1.37, 1 / 1.37),
    }
    return Case(
        engine=OURS,
        task=task,
        batch=batch,
        drafts=drafts,
        prompt_tokens=[75, 512][:batch],
        samples=[
            {"tokens": 160.0, "rounds": 16.0, "seconds": 160 / turn} for turn in spread(speed)
        ],
        decode_tokens_per_second=spread(speed),
        round_ms=spread(round_ms),
        prefill_tokens_per_second=spread(1234.5),
        speedup=spread(speed / plain_speed),
        first_token_ms=spread(300.4 + 7.3 * depth + 11.1 * batch),
        token_gap_ms={"mean": 9.87, "p50": 12.34, "p95": 56.78, "max": 91.23},
        peak_bytes=16_340_000_000,
        **(drafted if depth else {}),  # type: ignore[arg-type]
        **(fixed if drafts != "auto" else {}),  # type: ignore[arg-type]
    )


def a_record(slope: float = 0.05) -> Record:
    """Three tasks at batch 1, mixed at batch 4, plain and with drafts, beside a peer."""
    settings: list[Drafts] = [0, 1, 3, "auto"]
    cases = [
        a_case(task, 1, drafts, rate=rate, slope=slope)
        for task, rate in [*TASKS.items(), (ALL, 0.6)]
        for drafts in settings
    ]
    cases += [a_case(MIXED, 4, drafts, rate=0.6, slope=slope) for drafts in settings]
    cases += [
        replace(
            a_case(task, batch, drafts, rate=0.6, slope=1.3 * slope + 0.2),
            engine=PEER,
            split=None,
            floor=None,
            token_gap_ms=None,
        )
        for task, batch in [(ALL, 1), (MIXED, 4)]
        for drafts in (0, 3)
    ]
    return Record(
        command="mgm bench --model gemma|4",
        stamp=STAMP,
        subject=Subject("gemma|4-E4B-it", "bfloat16", "4", 6_010_000_000, 157_000_000, 0, False),
        settings={"tasks": list(TASKS), "repeat": 3},
        bandwidth_bytes_per_second=401.3e9,
        cases=cases,
        turns=[Turn("chat", 1500, 1436, spread(812.5), spread(61.2))],
        warnings=["the battery ran down from 83 % to 71 %"],
        complete=True,
    )


PAYS, PAYS_NOT = a_record(), a_record(slope=0.9)
BARE = replace(
    PAYS,
    cases=[
        replace(
            a_case("chat", 1, 0, rate=0.6, slope=0.05),
            first_token_ms=None,
            token_gap_ms=None,
            speedup=None,
            peak_bytes=None,
            split=None,
            floor=None,
        )
    ],
    turns=[],
    subject=replace(PAYS.subject, bits=None, drafter_bytes=None),
    complete=False,
)
EMPTY = replace(BARE, cases=[])
DRAWN = replace(
    PAYS,
    cases=[
        replace(case, accept=[rate])
        for rate, record in ((0.8, PAYS), (0.2, PAYS_NOT))
        for case in record.cases
        if case.task == ALL
    ],
    subject=replace(PAYS.subject, name="26B-A4B", num_experts=128, random=True),
)
RECORDS = {"whole": PAYS, "bare": BARE, "empty": EMPTY, "drawn": DRAWN}
every_record = pytest.mark.parametrize("record", RECORDS.values(), ids=RECORDS)


def in_markdown(text: str) -> list[list[list[str]]]:
    """The tables' lines, heads first, as cells."""
    tables = re.findall(r"(?:^\|.*\|$\n?)+", text, re.MULTILINE)
    lines = [[re.split(r" (?<!\\)\| ", line[2:-2]) for line in t.splitlines()] for t in tables]
    return [[heads, *cells] for heads, _, *cells in lines]


def in_csv(record: Record) -> list[Row]:
    return list(csv.DictReader(io.StringIO(show.csv([record]))))


def numbers(text: str) -> set[str]:
    return set(re.findall(r"\d+(?:\.\d+)?", text))


@every_record
def test_a_record_comes_back_from_its_json(record: Record, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text(json.dumps(record.to_json()))
    assert read(path) == record


def test_the_schema_names_every_key_and_no_other() -> None:
    text = (ROOT / "bench" / "SCHEMA.md").read_text(encoding="utf-8")
    parts = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL))
    kinds = {"The run": Record, "`settings`": Plan, "`stamp`": Stamp, "`subject`": Subject}
    kinds |= {"A case": Case, "A second turn": Turn}
    keys = {
        title: [field.name for field in dataclasses.fields(kind)] for title, kind in kinds.items()
    }
    keys["The run"].insert(0, "schema")
    keys["`settings`"] += ["tasks", "depth", "slow_draft"]
    compared = Compared(0.0, 1, 0, 3, 8, 5, None)
    keys["A check"] = [*CheckReport("").to_json(), *compared.to_json()]
    pair = estimate.find_subject("E2B")
    predictions = [estimate.predict(pair, find_chip("M4"), batch=1, context=9)]
    keys["An estimate"] = [*to_json(pair, find_chip("M4"), predictions, 9, [0.8])]
    named = {
        title: re.findall(r"^\| `(\w+)` \|", part, re.MULTILINE) for title, part in parts.items()
    }
    assert named == keys
    parted = Parted(1, Side(2, "a"), Side(3, "b"), None).to_json()
    for key in (*parted, *Side._fields):
        assert f"`{key}`" in parts["A check"]
    for key in (*Chip._fields, *Prediction._fields):
        assert f"`{key}`" in parts["An estimate"]
    for key in (*Spread._fields, *Split._fields, *Ideal._fields):
        assert f"`{key}`" in parts["A case"]


def test_a_cell_of_a_table_is_in_the_csv_row_of_its_setting() -> None:
    rows = in_csv(PAYS)
    assert [row["what"] for row in rows] == [CASE] * len(PAYS.cases) + [TURN] * len(PAYS.turns)
    cases, (turn,) = rows[:-1], rows[-1:]
    tables = in_markdown(show.markdown(PAYS))
    assert len(tables) == 7
    for heads, *lines in tables:
        for line in lines:
            found = dict(zip(heads, line, strict=True))
            if "reused" in found:
                assert numbers(" ".join(line)) <= numbers(" ".join(turn.values()))
            elif "drafts" in found:
                assert numbers(" ".join(line)) <= of_setting(cases, found)
            else:  # tasks downwards, drafts to the right
                task = found.pop("task")
                for drafts, cell in found.items():
                    assert cell in of_setting(cases, {"task": task, "drafts": drafts})


def of_setting(rows: list[Row], found: dict[str, str]) -> set[str]:
    """The numbers of the CSV's row that a table's line is about."""
    batch, engine = found.get("batch", "1"), found.get("engine", OURS)
    task = found.get("task", ALL if batch == "1" else MIXED)
    want = (engine, task, batch, found["drafts"])
    keys = ("engine", "task", "batch", "drafts")
    (row,) = [row for row in rows if tuple(row[key] for key in keys) == want]
    return numbers(" ".join(row.values()))


def test_a_csv_row_has_the_numbers_of_its_case() -> None:
    case = next(case for case in groups(PAYS)[0].at(1) if case.drafts == 3)
    assert case is not None
    assert case.split is not None
    row = in_csv(PAYS)[PAYS.cases.index(case)]
    median, low, high = (f"{value:.1f}" for value in case.decode_tokens_per_second)
    wanted = {
        "decode_tokens_per_second": median,
        "decode_tokens_per_second_low": low,
        "decode_tokens_per_second_high": high,
        "floor_share_percent": "73.0",
        "token_gap_ms_p95": "56.78",
        "peak_gb": "16.34",
        "draft_ms": "4.50",
        "verify_ms": "23.00",
        "host_ms": "0.50",
        "in_step_ms": "28.00",
    }
    wanted |= {f"acceptance_at_{i}": f"{0.6**i:.3f}" for i in (1, 2, 3)}
    wanted |= {f"rounds_accepting_{i}": n for i, n in enumerate(("37", "11", "12", "13"))}
    assert {name: row[name] for name in wanted} == wanted


def test_what_the_csv_has_of_a_setting_is_in_the_tables() -> None:
    left_out = {"floor_round_gb", "drafted_per_round", "bandwidth_gb_per_second"}
    left_out |= {"dtype", "bits", "time"}
    tables = in_markdown(show.markdown(PAYS))
    shown = numbers(" ".join(cell for table in tables for line in table for cell in line))
    for row in in_csv(PAYS):
        if row["task"] == ALL and row["engine"] == OURS and row["drafts"] == "3":
            ours = {name: text for name, text in row.items() if text and name not in left_out}
            kept = {n: t for n, t in ours.items() if not n.endswith(("_low", "_high"))}
            assert len(kept) > 25
            assert numbers(" ".join(kept.values())) - numbers(kept["model"] + kept["device"]) <= (
                shown | {"75"}  # the prompt's length stands above the tables
            )


@every_record
def test_the_terminal_shows_the_cells_of_the_markdown_in_100_columns(record: Record) -> None:
    text = show.table(record)
    assert max(map(len, text.splitlines())) <= 100
    lines = [re.split(r" {2,}", line.strip()) for line in text.splitlines()]
    for table in in_markdown(show.markdown(record)):
        start = lines.index(table[0])
        assert lines[start : start + len(table)] == table
        lines = lines[start + len(table) :]


@every_record
def test_what_is_missing_is_left_out(record: Record) -> None:
    for text in (show.table(record), show.markdown(record), show.csv([record]), show.share(record)):
        assert not re.search(r"\b(None|nan|inf)\b", text)
    assert ("not complete" in show.table(record)) != record.complete
    assert ("no drafter" in show.table(record)) == (record.subject.drafter_bytes is None)
    for table in in_markdown(show.markdown(record)):
        assert all({*column} != {"–"} for column in zip(*table[1:], strict=True))


def test_the_memory_of_other_engines_is_told_of_and_a_single_length_is_one() -> None:
    assert "copies of weights that the other engines need" in show.table(PAYS)
    bare = show.table(BARE)
    assert "other engines" not in bare
    (length,) = {*BARE.cases[0].prompt_tokens}
    assert f"prompts of {length} tokens;" in bare


def test_drawn_accepts_are_said_to_be_and_kept_apart() -> None:
    assert "random weights, so accepts are drawn, not earned" in show.table(DRAWN)
    told = conclusions(DRAWN)
    for rate in (0.8, 0.2):
        assert f"by bandwidth; accepts drawn at {rate}**" in show.markdown(DRAWN)
        assert any(line.endswith(f"(accepts drawn at {rate}).") for line in told)
    assert "accepts drawn at 0.8" in show.share(DRAWN)


@every_record
def test_a_shared_row_is_one_line_under_its_header(record: Record) -> None:
    row = show.share(record)
    assert "\n" not in row
    ((heads, cells),) = in_markdown(f"{show.share_header()}\n{row}")
    assert len(cells) == len(heads)
    assert STAMP.device in row
    assert STAMP.time in row


def test_a_shared_row_has_plain_and_best_by_batch() -> None:
    ((_, cells),) = in_markdown(f"{show.share_header()}\n{show.share(PAYS)}")
    assert cells[3:8] == [
        "48.8 → 77.7 (1.59 x, 3 drafts)",
        "–",
        "195.1 → 310.9 (1.59 x, 3 drafts)",
        "–",
        "0.392 (drafts: 3)",
    ]
    assert "gemma\\|4" in cells[2]


def test_conclusions_where_drafts_pay() -> None:
    told = conclusions(PAYS)
    assert told[0].startswith("batch 1: 3 drafts, 77.7 tok/s, 1.59 x plain (1.56–1.63), 73.0 %")
    assert told[0].endswith("auto 1.58 x plain (1.54–1.61).")
    assert told[1].startswith("batch 4: 3 drafts, 310.9 tok/s")
    assert told[2].startswith("with 3 drafts at batch 1 code gains most, 2.30 x plain")
    assert "creative least, 1.19 x" in told[2]
    assert "no drafts pay" not in " ".join(told)


def test_a_task_gains_most_only_where_that_is_no_chance() -> None:
    def wide(case: Case) -> Case:
        spread = case.speedup and Spread(case.speedup.median, 0.5, 3.0)
        return replace(case, speedup=spread)

    assert any("gains most" in one for one in conclusions(PAYS))
    overlapping = replace(PAYS, cases=[wide(case) for case in PAYS.cases])
    assert not any("gains most" in one for one in conclusions(overlapping))


def test_conclusions_beside_a_peer_are_turn_by_turn() -> None:
    def quicker(case: Case) -> Case:
        """The peer's second turn is as quick as its first; ours stays slow there."""
        first, _, last = case.samples
        theirs = (case.engine, case.batch, case.drafts) == (PEER, 4, 3)
        return replace(case, samples=[first, first, last]) if theirs else case

    speeds = "310.9 tok/s with 3 drafts against 212.8 with 3 drafts."
    assert f"batch 4 beside {PEER}: 1.46 x (1.46–1.46), {speeds}" in conclusions(PAYS)
    changed = replace(PAYS, cases=[quicker(case) for case in PAYS.cases])
    assert f"batch 4 beside {PEER}: 1.46 x (1.43–1.46), {speeds}" in conclusions(changed)


def test_conclusions_where_no_drafts_pay_say_why() -> None:
    told = conclusions(PAYS_NOT)
    assert told[0].startswith("batch 1: plain decoding, 48.8 tok/s")
    assert "1 draft 0.82 x plain" in told[0]
    assert told[2] == "drafts pay at no batch measured here."
    assert told[3] == (
        "no drafts pay at batch 1: a pass over 2 tokens costs 1.90 passes over one (38.00 ms "
        "against 20.00 ms), 1 draft another 1.50 ms; a round with 1 draft costs 1.95 plain rounds "
        "and yields 1.60 tokens, 0.82 x plain (0.80–0.84)."
    )


def test_a_gain_within_the_spread_is_none() -> None:
    wide = [
        replace(case, speedup=Spread(1.05, 0.9, 1.3)) if case.drafts else case
        for case in PAYS.cases
    ]
    assert conclusions(replace(PAYS, cases=wide))[0].startswith("batch 1: plain decoding")


def test_plots_are_the_same_bytes_again_in_light_and_dark(tmp_path: Path) -> None:
    files = plot([PAYS, BARE, DRAWN], tmp_path / "one")
    names = [f"{n}-{t}.svg" for n in ("speedup", "acceptance", "throughput") for t in THEMES]
    assert [path.name for path in files] == names
    for path, again in zip(files, plot([PAYS, BARE, DRAWN], tmp_path / "two"), strict=True):
        assert path.read_bytes() == again.read_bytes()
        root = ElementTree.fromstring(path.read_text(encoding="utf-8"))
        assert root.tag.endswith("svg")
        theme = path.stem.rpartition("-")[2]
        text = path.read_text(encoding="utf-8")
        assert [ink in text for ink in THEMES.values()] == [name == theme for name in THEMES]
        assert path.stat().st_size < 60_000


def test_runs_of_different_batches_are_one_and_the_last_counts() -> None:
    def run(batch: int, record: Record) -> Record:
        cases = [case for case in record.cases if case.batch == batch]
        return replace(record, cases=cases, settings={**record.settings, "batches": [batch]})

    (whole,) = joined([run(1, PAYS), run(4, PAYS_NOT), run(4, PAYS)])
    assert sorted(whole.cases, key=repr) == sorted(PAYS.cases, key=repr)
    assert (PAYS.cases, DRAWN.cases) == tuple(r.cases for r in joined([PAYS, DRAWN, DRAWN]))


@pytest.mark.parametrize(
    "other",
    [
        replace(PAYS, settings={**PAYS.settings, "repeat": 5}),
        replace(PAYS, subject=replace(PAYS.subject, bits=None)),
        replace(PAYS, stamp=replace(STAMP, device="Apple M1")),
        replace(PAYS, stamp=replace(STAMP, versions={**STAMP.versions, "mlx": "0.1"})),
    ],
    ids=["settings", "subject", "device", "versions"],
)
def test_runs_that_differ_otherwise_stay_apart(other: Record) -> None:
    assert joined([PAYS, other]) == [PAYS, other]


def test_what_was_not_measured_gives_no_figure(tmp_path: Path) -> None:
    assert plot([BARE, EMPTY], tmp_path) == []


def test_plots_that_cannot_be_say_so_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot be written"):
        plot([PAYS], tmp_path / "file")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UsageError, match=r"^plots need matplotlib: pip install matplotlib$"):
        plot([PAYS], tmp_path)
