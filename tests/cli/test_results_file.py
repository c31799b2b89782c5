"""The results of a batch on the disk: nothing is lost, and nothing of anyone else is replaced."""

import json
import os
from contextlib import closing
from pathlib import Path
from unittest.mock import Mock

import pytest

from mlx_gemma_mtp.cli.results_file import ResultsFile
from mlx_gemma_mtp.errors import MgmError, UsageError


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl"


def start(out: Path, about: str = "this", seed: int = 1, restart: bool = False) -> ResultsFile:
    return ResultsFile(out, {"about": about}, seed, restart=restart)


def test_results_are_kept_and_published_in_order(out: Path) -> None:
    with closing(start(out)) as first:
        first.add(3, {"text": "c"})
        first.add(1, {"text": "é😀\n"})
    with closing(start(out, seed=2)) as second:
        assert (second.seed, second.done) == (1, {1, 3})
        second.publish({2: {"error": "failed"}})
        assert second.path.exists()
        second.add(2, {"text": "b"})
        second.publish({})
    published = [json.loads(line)["text"] for line in out.read_text().splitlines()]
    assert published == ["é😀\n", "b", "c"]
    assert [path.name for path in out.parent.iterdir()] == [out.name]


@pytest.mark.parametrize("cut", range(1, 17))
def test_a_result_that_was_cut_off_anywhere_is_dropped(out: Path, cut: int) -> None:
    with closing(start(out)) as first:
        first.add(1, {"text": "a"})
        first.add(2, {"text": "b"})
    first.path.write_bytes(first.path.read_bytes()[:-cut])
    with closing(start(out)) as second:
        assert second.done == {1}
        second.add(2, {"text": "other"})
        second.publish({})
    assert out.read_text() == '{"text": "a"}\n{"text": "other"}\n'


def test_results_of_other_settings_are_refused_unless_it_starts_over(out: Path) -> None:
    start(out, "this").close()  # without any result
    with closing(start(out, "that")) as first:
        first.add(1, {})
        with pytest.raises(UsageError, match="open in another mgm"):
            start(out, "that")
    with pytest.raises(UsageError, match=r"started with different about: .*--restart"):
        start(out, "this")
    for about in ("that", "this"):
        with closing(start(out, about, restart=True)) as again:
            assert again.done == set()
        assert not again.path.exists()


def test_files_of_others_are_left_alone(out: Path) -> None:
    for path in (out, out.with_name(f"{out.name}.partial")):
        path.write_text("mine")
        with pytest.raises(UsageError, match="--restart"):
            start(out)
        assert path.read_text() == "mine"
        assert [*out.parent.iterdir()] == [path]
        path.unlink()


def test_a_full_disk_is_one_line_and_loses_nothing_of_a_restart(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out.write_text("before")
    full = Mock(side_effect=OSError(28, "No space left on device"))
    with closing(start(out, restart=True)) as first, monkeypatch.context() as patch:
        first.add(1, {"text": "a"})
        patch.setattr(os, "write", full)
        with pytest.raises(MgmError, match="No space left"):
            first.add(2, {"text": "b"})
        patch.setattr(os, "fsync", full)
        with pytest.raises(MgmError, match="No space left"):
            first.publish({})
    assert {path.name for path in out.parent.iterdir()} == {out.name, first.path.name}
    assert out.read_text() == "before"
    with closing(start(out)) as second:
        assert second.done == {1}
        second.publish({})
    assert out.read_text() == '{"text": "a"}\n'
