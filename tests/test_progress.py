"""The line of progress: one line in any window, and the same shape from start to end."""

import io

import pytest
from rich.console import Console
from rich.progress import Progress

from mlx_gemma_mtp.progress import _progress_line

TOTAL = 62_300_000_000


def shown(width: int, unit: str, done: list[float]) -> list[str]:
    """Return the line after each of these amounts, ten seconds apart."""
    now = [0.0]
    progress = Progress(get_time=lambda: now[0], auto_refresh=False)
    task = progress.add_task("gemma-4-31B-it-assistant", total=TOTAL if unit == "bytes" else 20)
    lines = []
    for amount in done:
        progress.update(task, completed=amount)
        out = io.StringIO()
        console = Console(file=out, width=width, color_system=None)
        console.print(_progress_line(progress.tasks[0], unit, width))
        lines.append(out.getvalue().rstrip("\n"))
        now[0] += 10
    return lines


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_the_line_fits_and_keeps_its_shape(width: int) -> None:
    lines = shown(width, "bytes", [0, 1e6, 5e8, 3e10, TOTAL])
    assert all("\n" not in line and len(line) <= width - 2 for line in lines), lines
    assert len({len(line) for line in lines}) == 1
    assert [line.index("% of 62.3 GB") for line in lines] == [lines[0].index("% of 62.3 GB")] * 5
    assert ("gemma-4-31B-it-assistant ━" in lines[-1]) == (width >= 80)


def test_it_has_speed_and_time_left() -> None:
    last = shown(40, "bytes", [0, 1e9, 2e9])[-1]
    assert last.split() == ["3%", "of", "62.3", "GB", "100.0", "MB/s", "10:03"]


def test_items_are_counted() -> None:
    assert "3/20" in shown(80, "items", [0, 3])[-1]
