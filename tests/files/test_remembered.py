"""What a run learned about depth is found by the next; files are replaced whole or not at all."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from mlx_gemma_mtp.decode.depth import Depth
from mlx_gemma_mtp.decode.division import Shape
from mlx_gemma_mtp.decode.table import PassClass, PassTable
from mlx_gemma_mtp.files.atomic import write_whole
from mlx_gemma_mtp.files.remembered import (
    FORMAT,
    DepthKeeper,
    depth_key,
    depths_of,
    load_depth,
    load_table,
    save_depth,
    save_table,
)


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The remembered file of this test."""
    monkeypatch.setenv("MGM_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "depth.json"


def learned(seconds: float, batch: int = 4, table: PassTable | None = None) -> Depth:
    """A controller that knows one cost."""
    depth = Depth(table=table)
    for _ in range(3):
        depth.round_took(Shape(batch, 2, 3, 3 * batch, 3 * batch), seconds)
    depth.row().seen(2, 1)
    return depth


def costs(key: str) -> Any:
    return load_depth(key).to_json()["costs"]


def known(depth: Depth) -> Any:
    """What the costs of this one are after they were saved."""
    return Depth.from_json(json.loads(json.dumps(depth.to_json()))).to_json()["costs"]


def test_what_was_learned_is_remembered_by_key(file: Path) -> None:
    assert costs("one") == {}
    save_depth("one", learned(0.1))
    save_depth("two", learned(0.2))
    assert costs("one") == known(learned(0.1)) != costs("two")
    assert costs("two") == known(learned(0.2))
    rates = learned(0.1).to_json()["acceptance"]
    assert load_depth("one").to_json()["acceptance"] == pytest.approx(rates)
    assert costs("three") == {}
    assert list(file.parent.iterdir()) == [file]  # nothing half-written is left behind
    file.unlink()
    assert costs("one") == {}


def test_what_was_learned_of_other_batch_sizes_stays(file: Path) -> None:
    save_depth("key", learned(0.1))
    save_depth("key", learned(0.3, batch=1))
    save_depth("key", learned(0.2))
    assert costs("key") == known(learned(0.2)) | known(learned(0.3, batch=1))


TABLE = PassTable(
    passes={1: 0.01, 8: 0.02},
    experts={1: 0.001, 8: 0.004},
    ways={1: "pairs", 8: "sorted"},
    steps={1: 0.001},
    classes=(PassClass(2, 64, 1, 9),),
    chunks=(64, 512),
)
OTHER = PassTable(passes={1: 1.0})


def test_a_table_is_kept_next_to_what_runs_learn_from_it(file: Path) -> None:
    assert load_table("key") is None
    assert save_table("key", TABLE)
    assert load_table("key") == TABLE
    save_depth("key", learned(0.1, table=TABLE))
    assert load_table("key") == TABLE
    assert costs("key") == known(learned(0.1, table=TABLE))
    save_table("key", OTHER)  # costs belong to their table
    assert load_table("key") == OTHER
    assert costs("key") == {}
    assert load_depth("key").to_json()["acceptance"]
    assert load_table("another") is None


def test_a_run_without_the_table_changes_neither_it_nor_its_costs(file: Path) -> None:
    save_depth("key", learned(0.1, table=TABLE))
    before, other = costs("key"), learned(0.2)
    other.row().seen(2, 2)
    save_depth("key", other)
    assert load_table("key") == TABLE
    assert costs("key") == before
    assert load_depth("key").to_json()["acceptance"] == other.to_json()["acceptance"]


def test_a_table_just_measured_takes_the_place_of_the_kept_one(file: Path) -> None:
    save_depth("key", learned(0.1, table=TABLE))
    for key in ("key", "other", None):
        depth = load_depth(key, table=OTHER)
        assert depth.table == OTHER
        assert depth.to_json()["costs"] == {}
    assert load_depth("key", table=TABLE).to_json()["costs"] == costs("key") != {}


@pytest.mark.parametrize(
    "damage",
    [
        {"passes": {}},
        {"passes": {"1": -1}},
        {"passes": {"x": 1}},
        {"passes": [1]},
        {"classes": [[1]]},
        {"classes": 1},
        {"classes": [[8, 2, 1, 8]]},
        {"classes": [[1, 8, -1, 8]]},
        {"chunks": [0]},
        {"ways": None},
        {"ways": {"1": "by guess"}},
        {"chunks": ["x"]},
    ],
)
def test_a_damaged_table_counts_as_none_and_acceptance_stays(
    file: Path, damage: dict[str, Any]
) -> None:
    key = depth_key("model", "0")
    save_depth(key, learned(0.1, table=TABLE))
    before, saved = load_depth(key).to_json(), json.loads(file.read_text())
    saved["entries"][key]["table"] |= damage
    file.write_text(json.dumps(saved))
    assert load_depth(key).to_json() == before | {"table": None, "costs": {}}
    assert [depth.table for depth in depths_of("model")] == [None]
    assert save_table(key, TABLE)
    assert [depth.table for depth in depths_of("model")] == [TABLE]


SOUND = '{"1": {"pace": -1.5, "step": 0.1, "widths": {"2": 0.1}}}'


def entry(costs: str, acceptance: str = "[]") -> bytes:
    found = f'{{"costs": {costs}, "acceptance": {acceptance}, "table": null}}'
    return f'{{"format": {FORMAT}, "entries": {{"key": {found}}}}}'.encode()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b"null",
        # An older format: its costs had a count each.
        b'{"format": 1, "entries": {"key": {"costs": {"1": {"0": [1, 3]}}, "acceptance": []}}}',
        b'{"format": %d, "entries": [1]}' % FORMAT,
        b'{"format": %d, "entries": {"key": 1}}' % FORMAT,
        b'{"format": %d, "entries": {"key": {"costs": {}}}}' % FORMAT,
        entry(SOUND.replace("-1.5", "[1, 3]")),
        entry(SOUND.replace("-1.5", "NaN")),
        entry(SOUND.replace("-1.5", '"x"')),
        entry(SOUND.replace('"1"', '"x"')),
        entry(SOUND.replace('"2"', '"x"')),
        entry('{"1": []}'),
        entry('{"1": {"0": 1}}'),
        entry("{}", "[2]"),
        entry("{}", "1"),
        entry("{}", "[1e999]"),
        entry(SOUND.replace("-1.5", "1" + "0" * 400)),
    ],
)
def test_a_damaged_or_foreign_file_counts_as_none_and_is_replaced(
    file: Path, content: bytes
) -> None:
    file.parent.mkdir()
    file.write_bytes(entry(SOUND, "[0.5]"))
    assert costs("key").keys() == {"1"}
    file.write_bytes(content)
    assert load_depth("key").to_json() == Depth().to_json()
    save_depth("key", learned(0.1))
    assert costs("key") == known(learned(0.1))


def test_a_write_that_fails_keeps_the_old_file_or_nothing(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_depth("key", learned(0.1))

    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "replace", full)
    assert not save_depth("key", learned(0.2))
    assert list(file.parent.iterdir()) == [file]
    assert costs("key") == known(learned(0.1))

    monkeypatch.setenv("MGM_CACHE_DIR", str(file))  # a file where the folder should be
    assert not save_depth("key", learned(0.1))
    assert costs("key") == {}


def test_a_link_stays_and_its_file_is_replaced(tmp_path: Path) -> None:
    file, link = tmp_path / "file", tmp_path / "link"
    file.write_bytes(b"before")
    link.symlink_to(file)
    write_whole(link, b"after")
    assert link.is_symlink()
    assert file.read_bytes() == b"after"
    assert sorted(tmp_path.iterdir()) == [file, link]


def test_a_pipe_is_written_to_and_stays(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with ThreadPoolExecutor() as pool:
        read = pool.submit(pipe.read_bytes)
        write_whole(pipe, b"content")
    assert (read.result(), pipe.is_fifo()) == (b"content", True)


def test_what_is_learned_is_kept_when_a_shape_is_new_and_when_it_is_saved(file: Path) -> None:
    depth = learned(0.1)
    keeper = DepthKeeper("one", depth)
    depth.round_took(Shape(4, 2, 3, 12, 12), 0.2)  # one of those that it knows
    keeper.idle()
    assert not file.exists()
    depth.round_took(Shape(2, 0, 1, 2, 2), 0.2)
    keeper.idle()
    assert costs("one") == known(depth)
    file.unlink()
    keeper.idle()
    assert not file.exists()
    keeper.save()
    assert costs("one") == known(depth)


USED = """
from dataclasses import replace
from helpers.fake_target import PARAMS, fake_pair, fake_player
from mlx_gemma_mtp import Engine
from mlx_gemma_mtp.engine.worker import mlx_worker
from mlx_gemma_mtp.files.folders import depth_file
engine = Engine(fake_pair()._replace(fingerprint="one"), player=fake_player)
def use():
    engine.generate([5], replace(PARAMS, num_draft_tokens=0))
    mlx_worker().run(lambda: None)  # the end of the step that gave the result
    return depth_file().read_bytes()
use()
print(use() == use())
depth_file().unlink()
"""


@pytest.mark.parametrize("end", ["engine.close()", ""])
def test_the_file_is_written_when_an_engine_closes_and_at_exit(file: Path, end: str) -> None:
    run = [sys.executable, "-c", USED + end]
    path = {"PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(run, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | path)
    assert done.stdout == "True\n"
    assert costs("one")["1"]
