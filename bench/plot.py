"""Plots of records as SVG: speed-up, acceptance and throughput, for light and dark pages.

The same records give the same bytes. Needs matplotlib.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_gemma_mtp.errors import UsageError

from .record import ALL, Case, Record, Spread
from .report import acceptance_cases

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Text and axes, on the page's own background. Lines have a contrast of at least 3:1 to both of
# GitHub's, in hues from P. Tol's and from Okabe and Ito's sets for the color-blind.
THEMES = {"light": "#1f2328", "dark": "#e6edf3"}
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
    import matplotlib

    written = []
    for name, (draw, shows) in FIGURES.items():
        chosen = [record for record in records if shows(record)]
        for theme, ink in THEMES.items() if chosen else ():
            path = folder / f"{name}-{theme}.svg"
            with matplotlib.rc_context(_style(ink)):
                _write(_figure(draw, chosen), path)
            written.append(path)
    return written


def _speedup(axes: Axes, record: Record) -> None:
    """A line for each batch; auto has the last place on the axis."""
    batches = [batch for batch in record.batches if _speedups(record, batch)]
    fixed = sorted({c for b in batches for c in _speedups(record, b) if c != "auto"})
    auto = max(fixed, default=0) + 1
    for index, batch in enumerate(batches):
        found = _speedups(record, batch)
        line = {count: found[count] for count in fixed if count in found}
        _line(axes, index, line, f"batch {batch}")
        if "auto" in found:  # side by side, because all are near the best
            place = auto + 0.12 * (index - (len(batches) - 1) / 2)
            color, mark = COLORS[index % len(COLORS)], MARKS[index % len(MARKS)]
            axes.plot(place, found["auto"].median, color=color, marker=mark)
            axes.vlines(place, found["auto"].low, found["auto"].high, colors=color)
    axes.axhline(1, color=GRAY, linestyle="--", linewidth=1)
    with_auto = any("auto" in _speedups(record, batch) for batch in batches)
    axes.set_xticks([*fixed, *[auto] * with_auto], [*map(str, fixed), *["auto"] * with_auto])
    axes.set_xlabel("draft tokens per round")
    axes.set_ylabel("speed-up over plain decoding")
    axes.set_ylim(bottom=0)
    axes.legend()


def _speedups(record: Record, batch: int) -> dict[Any, Spread]:
    found = {c.num_draft_tokens: c.speedup for c in record.at(batch) if c.speedup}
    return found if {*found} - {0} else {}


def _acceptance(axes: Axes, record: Record) -> None:
    """How often a draft is accepted if those before it are, a line for each task."""
    cases = _by_position(record)
    for index, (case, rates) in enumerate(cases):
        aside = 0.08 * (index - (len(cases) - 1) / 2)  # side by side: easy tasks have equal rates
        line = {at + aside: Spread(rate, rate, rate) for at, rate in enumerate(rates, 1)}
        _line(axes, index, line, case.task)
    axes.set_xticks(range(1, max(len(rates) for _, rates in cases) + 1))
    axes.set_xlabel(f"position of the draft, {cases[0][0].setting} per round")
    axes.set_ylabel("accepted")
    axes.set_ylim(0, 1.02)
    axes.legend(ncols=1 + (len(cases) > 4), loc="lower left")


def _by_position(record: Record) -> list[tuple[Case, list[float]]]:
    """Of each task, or of all if that is the only case."""
    found = [(c, c.acceptance.by_position) for c in acceptance_cases(record) if c.acceptance]
    known = [(case, rates) for case, rates in found if rates]
    return [pair for pair in known if pair[0].task != ALL] or known


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
        most = {b: c.allowed.tokens_per_second for b, c in cases.items() if c and c.allowed}
        if most:
            label = f"allowed by bytes, {label}"
            axes.plot(list(most), list(most.values()), color=GRAY, linestyle=style, label=label)
    axes.set_xticks(record.batches)
    axes.set_xlabel("batch, rows")
    axes.set_ylabel("tokens/s, all rows")
    axes.set_ylim(bottom=0)
    axes.legend()


def _line(axes: Axes, index: int, found: Mapping[Any, Spread], label: str) -> None:
    """Medians as a line, from low to high as a band."""
    places, spreads = list(found), list(found.values())
    color, mark = COLORS[index % len(COLORS)], MARKS[index % len(MARKS)]
    axes.plot(places, [one.median for one in spreads], color=color, marker=mark, label=label)
    low, high = [one.low for one in spreads], [one.high for one in spreads]
    if low != high:
        axes.fill_between(places, low, high, color=color, alpha=0.2, linewidth=0)


Draw = Callable[["Axes", Record], None]
FIGURES: dict[str, tuple[Draw, Callable[[Record], Any]]] = {
    "speedup": (_speedup, lambda record: any(_speedups(record, b) for b in record.batches)),
    "acceptance": (_acceptance, _by_position),
    "throughput": (_throughput, lambda record: len(record.batches) > 1),
}


def _figure(draw: Draw, records: Sequence[Record]) -> Figure:
    """Two panels in a row."""
    from matplotlib.figure import Figure

    width, height = PANEL_INCHES
    columns = min(len(records), 2)
    lines = math.ceil(len(records) / columns)
    figure = Figure(figsize=(width * columns, height * lines), layout="constrained")
    for place, record in enumerate(records, 1):
        axes = figure.add_subplot(lines, columns, place)
        draw(axes, record)
        axes.set_title(str(record.subject))
        axes.margins(x=0.06)
    return figure


def _style(ink: str) -> dict[Any, Any]:
    """Transparent, with lines and letters in one color, and nothing that changes between runs."""
    inks = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
    return {
        **dict.fromkeys(inks, ink),
        "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib
        "font.size": 9,
        "axes.titlesize": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "grid.color": GRAY,
        "grid.alpha": 0.25,
        "axes.grid": True,
        "axes.axisbelow": True,
        "legend.frameon": False,
        "legend.fontsize": 8,
        "lines.markersize": 4,
        "svg.hashsalt": "mlx-gemma-mtp",
        "svg.fonttype": "none",  # as paths, letters would be most of the file
    }


def _write(figure: Figure, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        metadata = {"Date": None, "Creator": None}
        figure.savefig(path, format="svg", transparent=True, metadata=metadata)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from None
