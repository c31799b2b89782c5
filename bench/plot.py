"""Plots of records as SVG: speed-up and throughput, for light and dark pages.

The same records give the same bytes. Needs matplotlib.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_gemma_mtp.errors import UsageError

from .record import Record, Spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Text and axes, on the page's own background. Lines have a contrast of at least 3:1 to both of
# GitHub's, in hues from P. Tol's and from Okabe and Ito's sets for the color-blind.
THEMES = {"light": "#1f2328", "dark": "#e6edf3"}
INKED = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
COLORS = ("#4477aa", "#d55e00", "#228833", "#aa3377", "#997700", "#ee6677", "#009988", "#808080")
MARKS = "osD^vPX*"
GRAY = "#808080"
PANEL_INCHES = (4.2, 3.2)


def need_matplotlib() -> None:
    """Raise UsageError if it is missing."""
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError("plots need matplotlib: pip install matplotlib")


def plot(records: Sequence[Record], folder: Path) -> list[Path]:
    """Write the figures, with a panel for each record, and return their paths.

    A figure that no record has numbers for is left out. Raises UsageError without matplotlib, or
    if a file can't be written.
    """
    need_matplotlib()
    import matplotlib.style
    from matplotlib.figure import Figure

    drafted = [r for r in records if any(_speedups(r, batch) for batch in r.batches)]
    batched = [record for record in records if len(record.batches) > 1]
    written = []
    for name, draw, shown in (("speedup", _speedup, drafted), ("throughput", _throughput, batched)):
        for theme, ink in THEMES.items() if shown else ():
            style: list[Any] = [Path(__file__).with_suffix(".mplstyle")]
            style.append(dict.fromkeys(INKED, ink))
            with matplotlib.style.context(style):
                width, height = PANEL_INCHES
                columns, lines = min(len(shown), 2), math.ceil(len(shown) / 2)
                figure = Figure(figsize=(width * columns, height * lines), layout="constrained")
                for place, record in enumerate(shown, 1):
                    axes = figure.add_subplot(lines, columns, place)
                    draw(axes, record)
                    axes.set_title(str(record.subject))
                    axes.margins(x=0.06)
                    axes.set_ylim(bottom=0)
                    axes.legend()
                written.append(folder / f"{name}-{theme}.svg")
                try:
                    folder.mkdir(parents=True, exist_ok=True)
                    figure.savefig(written[-1], metadata={"Date": None, "Creator": None})
                except OSError as error:
                    raise UsageError(f"cannot write {written[-1]}: {error.strerror}") from None
    return written


def _speedup(axes: Axes, record: Record) -> None:
    """A line for each batch; auto has the last place on the axis."""
    for index, batch in enumerate(record.batches):
        _line(axes, index, _speedups(record, batch), f"batch {batch}")
    axes.axhline(1, color=GRAY, linestyle="--", linewidth=1)
    axes.set_xlabel("draft tokens per round")
    axes.set_ylabel("speed-up over plain decoding")


def _speedups(record: Record, batch: int) -> dict[str, Spread]:
    """Over plain decoding, by number of draft tokens; nothing if only plain was measured."""
    found = {str(c.num_draft_tokens): c.speedup for c in record.at(batch) if c.speedup}
    return found if {*found} - {"0"} else {}


def _throughput(axes: Axes, record: Record) -> None:
    """Tokens per second over the batch: plain, best, peers, and what the bytes allow."""
    plain = {batch: record.plain(batch) for batch in record.batches}
    drafted = {batch: record.fastest_drafted(batch) for batch in record.batches}
    lines = {"plain": plain, "best number of drafts": drafted}
    for peer in record.engines[1:]:
        lines[f"{peer}, its best"] = {b: record.fastest(b, peer) for b in record.batches}
    for index, (label, cases) in enumerate(lines.items()):
        _line(axes, index, {b: c.tokens_per_second for b, c in cases.items() if c}, label)
    for label, cases, style in (("with drafts", drafted, "--"), ("plain", plain, ":")):
        found = {b: c.allowed_tokens_per_second for b, c in cases.items() if c}
        most = {batch: rate for batch, rate in found.items() if rate}
        if most:
            label = f"allowed by bytes, {label}"
            axes.plot([*most], [*most.values()], color=GRAY, linestyle=style, label=label)
    axes.set_xticks(record.batches)
    axes.set_xlabel("batch, rows")
    axes.set_ylabel("tokens/s, all rows")


def _line(axes: Axes, index: int, found: Mapping[Any, Spread], label: str) -> None:
    """Medians, with the range from low to high as a band."""
    if found:
        places, spreads = [*found], [*found.values()]
        color, mark = COLORS[index % len(COLORS)], MARKS[index % len(MARKS)]
        axes.plot(places, [one.median for one in spreads], color=color, marker=mark, label=label)
        low, high = [one.low for one in spreads], [one.high for one in spreads]
        axes.fill_between(places, low, high, color=color, alpha=0.2, linewidth=0)
