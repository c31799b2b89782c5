"""The table of a pair: when it is measured, kept, and read again."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from helpers.fake_target import fake_pair
from helpers.slow_target import SlowTarget
from mlx_gemma_mtp import load
from mlx_gemma_mtp.decode.table import PassClass, PassTable
from mlx_gemma_mtp.engine.load import with_table
from mlx_gemma_mtp.engine.pair import OpenPair, open_pair
from mlx_gemma_mtp.errors import UsageError
from mlx_gemma_mtp.files.remembered import load_table, save_table


@pytest.fixture
def key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Under which a table may be kept in a file of this test."""
    monkeypatch.setenv("MGM_CACHE_DIR", str(tmp_path))
    return "model 0"


def slow_pair(key: str | None, **options: Any) -> OpenPair:
    pair = fake_pair(SlowTarget(**options))  # type: ignore[arg-type]
    return pair._replace(drafter=None, fingerprint=key)


def test_a_pair_is_measured_once(key: str) -> None:
    shares = list[float]()
    pair = with_table(slow_pair(key), True, shares.append)
    assert shares == sorted(shares)
    assert pair.table is not None
    assert load_table(key) == pair.table
    again = with_table(slow_pair(key), True, pytest.fail)
    assert again.table == pair.table
    assert with_table(slow_pair(key), "auto").table == pair.table  # measured or not


def test_exact_measures_again_if_no_passes_were_found_to_agree(key: str) -> None:
    pair = with_table(slow_pair(key), True)
    assert pair.table is not None
    save_table(key, dataclasses.replace(pair.table, classes=()))
    assert with_table(slow_pair(key), "auto", pytest.fail).table != pair.table
    again = with_table(slow_pair(key), True).table
    assert again is not None
    assert again == load_table(key)
    assert again.classes == pair.table.classes


@pytest.mark.parametrize("exact", ["auto", False])
def test_on_a_cpu_only_exact_needs_it(key: str, exact: Any) -> None:
    assert with_table(slow_pair(key), exact, pytest.fail).table is None
    assert load_table(key) is None


def test_interrupted_it_keeps_nothing_and_starts_again_next_time(key: str) -> None:
    pair, calls = slow_pair(key), list[float]()

    def interrupt(share: float) -> None:
        calls.append(share)
        if len(calls) == 30:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        with_table(pair, True, interrupt)
    assert load_table(key) is None
    assert with_table(pair, True).table is not None


def test_if_memory_is_short_there_is_no_table_but_a_note(key: str) -> None:
    def fail(_: int) -> float:
        raise RuntimeError("[malloc] Unable to allocate 1024 bytes.")

    pair = with_table(slow_pair(key, seconds=fail), True)
    assert pair.table is None
    assert "could not be measured" in pair.notes[-1]
    assert load_table(key) is None


def test_a_pair_without_a_key_is_measured_but_not_kept(tmp_path: Path, key: str) -> None:
    assert with_table(slow_pair(None), True).table is not None
    assert not list(tmp_path.iterdir())


def test_load_measures_unless_told_not_to(key: str) -> None:
    own = open_pair("demo").fingerprint
    assert own is not None
    load("demo", probe=pytest.fail).close()  # on a CPU
    with pytest.raises(UsageError, match="probe must be"):
        load("demo", probe=10)  # type: ignore[arg-type]
    load("demo", exact=True, probe=False).close()
    assert load_table(own) is None
    save_table(own, PassTable(passes={1: 0.1}, classes=(PassClass(1, 64, 1, 16),)))
    load("demo", exact=True, probe=pytest.fail).close()  # one is kept
