"""An interrupted conversion loses nothing: it resumes to the same bits, and was never loadable."""

import errno
import fcntl
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlx_gemma_mtp.convert.conversion import convert, prepare
from mlx_gemma_mtp.convert.plan import Options

from helpers.checkpoints import PairPaths
from helpers.command import Here
from helpers.converted import assert_refused, hashes, put_nan
from mlx_gemma_mtp.errors import CheckpointError, UsageError
from mlx_gemma_mtp.files.checkpoint import read_config, weight_files
from mlx_gemma_mtp.files.journal import read

STEPS = Options(slice_bytes=10_000, sync_bytes=2_000)  # small ones: tensors take several
MIDDLE = 0.55  # of the bytes: within a tensor


def start(source: Path, out: Path, share: float = MIDDLE, **others: Any) -> None:
    """Start a conversion that is interrupted at this share of its bytes."""

    def stop(_: str, done: float, total: float | None) -> None:
        if total and done > share * total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(source, out, STEPS, on_progress=stop, **others)


def test_only_the_folder_is_printed_to_stdout_and_a_dry_run_writes_nothing(
    mgm_here: Here, tiny: PairPaths, whole: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(out.parent)
    done = mgm_here("convert", tiny.target, "--dry-run")
    assert (done.returncode, done.stderr) == (0, "")
    assert "bits per weight" in done.stdout
    assert list(out.parent.iterdir()) == []
    done = mgm_here("convert", tiny.target, "--out", out)
    assert (done.returncode, done.stdout) == (0, f"{out}\n")
    writing = [line for line in done.stderr.splitlines() if line.startswith("writing")]
    assert writing == ["writing model.safetensors", "writing drafter/model.safetensors"]
    assert hashes(out) == hashes(whole)
    done = mgm_here("convert", tiny.target, "--bits", "8", "--drafter", "none")
    assert (done.returncode, done.stdout) == (0, "target-8bit\n")
    assert not (out.parent / "target-8bit" / "drafter").exists()


def test_an_interruption_is_one_line_that_says_how_to_resume(
    mgm_here: Here, tiny: PairPaths, whole: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pwrite, full = os.pwrite, OSError(errno.ENOSPC, "No space left on device")
    for flags, error, exit_code in (((), full, 1), (("--resume",), KeyboardInterrupt(), 130)):
        writes = iter(range(100))

        def failing(*arguments: Any, writes: Iterator[int] = writes, error: Any = error) -> int:
            if next(writes, None) is None:
                raise error
            return pwrite(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", failing)
            done = mgm_here("convert", tiny.target, "--out", out, *flags)
        assert_refused(done, exit_code, "--resume")
        assert exit_code == 130 or "No space left on device" in done.stderr
        assert not out.exists()
        assert_refused(mgm_here("convert", tiny.target, "--out", out), 2, "--resume")
    with (out.with_name("out.partial") / "journal").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # as a conversion in progress
        for flag in ("--resume", "--force"):
            done = mgm_here("convert", tiny.target, "--out", out, flag)
            assert_refused(done, 2, "open in another mgm")
    assert mgm_here("convert", tiny.target, "--out", out, "--resume").returncode == 0
    assert hashes(out) == hashes(whole)


def test_rows_on_the_disk_are_not_written_again(
    tiny: PairPaths, whole: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(tiny.target, out)
    rows = {p.name: math.prod(p.shape[:-1]) for p in prepare(tiny.target, STEPS)[0].parameters}
    _, *events = read(out.with_name("out.partial") / "journal", "mgm conversion 1")
    before = {name: row for event in events for name, row in event["rows"].items()}
    assert sum(before[name] < rows[name] for name in before) == 1  # interrupted within a tensor
    written: list[int] = []
    pwrite = os.pwrite

    def note(file: int, data: memoryview, place: int) -> int:
        written.append(len(data))
        return pwrite(file, data, place)

    monkeypatch.setattr(os, "pwrite", note)
    convert(tiny.target, out, STEPS, resume=True)
    assert hashes(out) == hashes(whole)
    left = (1 - MIDDLE) * sum(path.stat().st_size for path in out.rglob("*.safetensors"))
    assert 0 < sum(written) < left + 100_000  # of headers


def test_only_the_same_conversion_is_resumed(broken: PairPaths, out: Path) -> None:
    start(broken.target, out)
    for changes in ({"bits": "8"}, {"rules": ("*.o_proj=8",)}, {"recipe": "uniform"}):
        with pytest.raises(UsageError, match=r"different options: .*--force"):
            convert(broken.target, out, replace(STEPS, **changes), resume=True)
    path = weight_files(broken.target)[0]
    time = path.stat().st_mtime_ns
    for drafter, moved in ((None, 0), ("auto", 1)):
        os.utime(path, ns=(time, time + moved))
        with pytest.raises(UsageError, match="different source files"):
            convert(broken.target, out, STEPS, resume=True, drafter=drafter)
    os.utime(path, ns=(time, time))
    convert(broken.target, out, STEPS, resume=True)


def test_a_lost_file_is_written_again(tiny: PairPaths, whole: Path, out: Path) -> None:
    start(tiny.target, out)
    (out.with_name("out.partial") / "model" / "model.safetensors").unlink()
    start(tiny.target, out, MIDDLE / 2, resume=True)  # the lost rows must be forgotten for good
    convert(tiny.target, out, STEPS, resume=True)
    assert hashes(out) == hashes(whole)


def test_a_kill_between_the_two_renames_of_force_loses_neither_model(
    tiny: PairPaths, whole: Path, broken: PairPaths, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert(tiny.target, out, Options(bits="8"))
    before = hashes(out)
    rename = Path.rename

    def killed(path: Path, target: Path) -> Path:
        if path.name == "model":
            raise KeyboardInterrupt
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            convert(tiny.target, out, STEPS, force=True)
    assert not out.exists()
    shutil.copytree(out.with_name("out.partial"), out.with_name("other.partial"))
    convert(tiny.target, out, STEPS, resume=True)
    assert hashes(out) == hashes(whole)
    # Killed after both renames, and again later:
    start(tiny.target, out, force=True)
    shutil.copytree(out, out.with_name("out.partial") / "replaced")
    convert(tiny.target, out, STEPS, resume=True, force=True)
    assert hashes(out) == hashes(whole)
    # Started over instead, in vain:
    put_nan(broken.target)
    with pytest.raises(CheckpointError, match="not finite"):
        convert(broken.target, out.with_name("other"), STEPS, force=True)
    assert hashes(out.with_name("other")) == before


CONVERT = """
import os, sys
from pathlib import Path
from mlx_gemma_mtp.convert.conversion import convert
from mlx_gemma_mtp.convert.plan import Options
convert(Path(sys.argv[1]), Path(sys.argv[2]), Options(slice_bytes=10_000, sync_bytes=2_000),
        resume=True, on_progress=lambda *_: os.write(1, b"."))
"""


def convert_and_kill(source: Path, out: Path, moment: int = 1_000_000) -> int:
    """Convert in another process, killed after this many steps; return how many it made."""
    command = [sys.executable, "-c", CONVERT, str(source), str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, bufsize=0) as process:
        assert process.stdout is not None
        steps = 0
        while steps < moment and process.stdout.read(1):
            steps += 1
        if steps == moment:
            process.kill()
    assert process.returncode == (-signal.SIGKILL if steps == moment else 0)
    return steps


def test_a_conversion_killed_at_ten_random_moments_ends_with_the_same_hashes(
    tiny: PairPaths, whole: Path, tmp_path: Path, rng: np.random.Generator
) -> None:
    steps = convert_and_kill(tiny.target, tmp_path / "all")
    assert hashes(tmp_path / "all") == hashes(whole)
    assert steps > 300
    for attempt in range(2):
        out = tmp_path / f"out-{attempt}"
        folder = out.with_name(out.name + ".partial")
        # Five kills on the way: a resumed run has fewer steps left, so the moments spread.
        for moment in sorted(rng.integers(1, steps // 6, 5).tolist(), reverse=True):
            print(f"killed after {moment} of {steps} steps")
            convert_and_kill(tiny.target, out, moment)
            assert not out.exists()
            for place in (folder, folder / "model"):
                with pytest.raises(CheckpointError):
                    read_config(place)
        again = convert_and_kill(tiny.target, out)
        assert hashes(out) == hashes(whole)
        assert again < steps
