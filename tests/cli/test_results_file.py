"""The results of a batch on the disk: nothing is lost, and nothing of anyone else is replaced."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from mlx_gemma_mtp.cli.results_file import ResultsFile
from mlx_gemma_mtp.errors import MgmError, UsageError


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl"


def start(out: Path, about: str = "this", seed: int = 1, restart: bool = False) -> ResultsFile:
    return ResultsFile(out, {"about": about}, seed, restart=restart)


def test_results_are_kept_and_published_in_order(out: Path) -> None:
    first = start(out)
    first.add(3, {"text": "c"})
    first.add(1, {"text": "é😀\n"})
    first.close()
    second = start(out, seed=2)
    assert (second.seed, second.done) == (1, {1, 3})
    second.publish({2: {"error": "failed"}})
    assert second.path.exists()
    second.add(2, {"text": "b"})
    second.publish({})
    second.close()
    published = [json.loads(line)["text"] for line in out.read_text().splitlines()]
    assert published == ["é😀\n", "b", "c"]
    assert [path.name for path in out.parent.iterdir()] == [out.name]


@pytest.mark.parametrize("cut", range(1, 17))
def test_a_result_that_was_cut_off_anywhere_is_dropped(out: Path, cut: int) -> None:
    first = start(out)
    first.add(1, {"text": "a"})
    first.add(2, {"text": "b"})
    first.close()
    first.path.write_bytes(first.path.read_bytes()[:-cut])
    second = start(out)
    assert second.done == {1}
    second.add(2, {"text": "other"})
    second.publish({})
    second.close()
    assert out.read_text() == '{"text": "a"}\n{"text": "other"}\n'


def test_results_of_other_settings_are_refused_unless_it_starts_over(out: Path) -> None:
    start(out, "this").close()  # without any result
    first = start(out, "that")
    first.add(1, {})
    with pytest.raises(UsageError, match="open in another mgm"):
        start(out, "that")
    first.close()
    with pytest.raises(UsageError, match=r"started with different about: .*--restart"):
        start(out, "this")
    for about in ("that", "this"):
        again = start(out, about, restart=True)
        assert again.done == set()
        again.close()
        assert not again.path.exists()


def test_a_restart_that_was_stopped_continues_and_replaces_the_file(out: Path) -> None:
    out.write_text("before")
    first = start(out, restart=True)
    first.add(1, {})
    first.close()
    second = start(out)
    assert second.done == {1}
    second.publish({})
    second.close()
    assert out.read_text() == "{}\n"


def test_files_of_others_are_left_alone(out: Path) -> None:
    for name, content in ((out.name, "mine"), (f"{out.name}.partial", "mine")):
        path = out.with_name(name)
        path.write_text(content)
        with pytest.raises(UsageError, match="--restart"):
            start(out)
        assert path.read_text() == content
        assert [*out.parent.iterdir()] == [path]
        path.unlink()


def test_a_full_disk_is_one_line_and_loses_nothing(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out.write_text("before")
    first = start(out, restart=True)
    first.add(1, {"text": "a"})

    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(MgmError, match="No space left"):
            first.add(2, {"text": "b"})
        patch.setattr(os, "fsync", full)
        with pytest.raises(MgmError, match="No space left"):
            first.publish({})
    first.close()
    assert {path.name for path in out.parent.iterdir()} == {out.name, first.path.name}
    assert out.read_text() == "before"
    assert start(out).done == {1}
