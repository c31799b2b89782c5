"""Hand-made records as shown: every format has the same numbers."""

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
from mlx_gemma_mtp.bench.cells import NOTHING, csv_text
from mlx_gemma_mtp.bench.plot import THEMES, plot
from mlx_gemma_mtp.bench.record import ALL, Record, Spread, Window
from mlx_gemma_mtp.bench.stamp import Stamp
from mlx_gemma_mtp.bench.tables import share_table, summaries, tables

from helpers.bench_records import BARE, DRAWN, EMPTY, PAYS, every_record, shown
from mlx_gemma_mtp.decode.table import PassClass, PassTable
from mlx_gemma_mtp.errors import UsageError

ROOT = Path(__file__).parents[2]


def in_csv(*given: Record) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(csv_text(given)), strict=True))


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
     ('{"schema": 3, "cases": []}', "has schema 3, not 6: measure again")],
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
    found = tables(PAYS)
    assert len(found) == 8
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
    assert not re.search(r"\b(None|nan|inf)\b", text + csv_text([record]))
    assert ("the run ended early" in text) != record.complete
    assert ("no drafter" in text) == (record.subject.drafter_bytes is None)
    assert ("accepts are drawn at 0.8, 0.5 / 0.4 (rows in turn)" in text) == (record is DRAWN)
    assert ("the other engines need" in text) == (len(record.engines) > 1)
    for one in tables(record):
        assert all({*column} != {NOTHING} for column in zip(*one.rows, strict=True))


@every_record
@pytest.mark.parametrize("width", [40, 80])
def test_a_report_is_as_wide_as_the_terminal_and_loses_no_number(
    record: Record, width: int
) -> None:
    for part in ("verdict", "short", "all"):
        text = shown(record, part, width=width)  # type: ignore[arg-type]
        assert max(map(len, text.splitlines())) <= width
    for one in (*summaries(record), *tables(record)):
        assert all(cell in one.text(width) for row in one.rows for cell in row[one.left :])


def test_a_run_to_share_has_plain_and_best_by_batch() -> None:
    shared = share_table([PAYS, BARE, EMPTY])
    assert {len(row) for row in shared.rows} == {len(shared.header)}
    assert shared.rows[0][3:8] == [
        "48.8 → 76.9 (1.58x, auto)",
        "–",
        "195.1 → 307.5 (1.58x, auto)",
        "–",
        "0.392 (3 drafts)",
    ]


def test_a_run_to_share_has_the_table_of_its_machine(tmp_path: Path) -> None:
    table = PassTable({1: 0.01, 8: 0.02}, classes=(PassClass(2, 8, 1, 9),), chunks=(64, 128))
    measured = replace(PAYS, table=table)
    records.write_json(measured.to_json(), tmp_path / "run.json")
    assert records.read(tmp_path / "run.json").table == table
    with_it, without = share_table([measured, PAYS]).rows
    assert with_it[8] == (
        "ms by tokens of a pass: 1: 10, 8: 20; same bits: 2 to 8 tokens of 1 to 9 per row; "
        "prompts by 64, 128"
    )
    assert without[8] == "–"


@pytest.mark.parametrize("damage", [{"passes": {}}, {"passes": 1}, {"chunks": None}])
def test_a_damaged_table_in_a_file_is_refused(tmp_path: Path, damage: dict[str, object]) -> None:
    found = replace(PAYS, table=PassTable({1: 0.01})).to_json()
    found["table"] |= damage
    records.write_json(found, tmp_path / "run.json")
    with pytest.raises(UsageError, match="was not written by"):
        records.read(tmp_path / "run.json")


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
