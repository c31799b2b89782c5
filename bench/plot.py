"""Plots of benchmarks as SVG: speed-up, acceptance, throughput; for light and for dark pages.

The same records give the same bytes. Needs matplotlib, which is imported where it is used.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_gemma_mtp.errors import UsageError

from .group import Group, groups, joined
from .record import ALL, Case, Record, Spread, setting
from .sections import acceptance_cases

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Text and axes, on the page's own background. Lines have a contrast of 3 : 1 at least to both of
# GitHub's, in hues of P. Tol's and of Okabe and Ito's sets for the color-blind; marks differ, too.
THEMES = {"light": "#1f2328", "dark": "#e6edf3"}
COLORS = ("#4477aa", "#d55e00", "#228833", "#aa3377", "#997700", "#ee6677", "#009988", "#808080")
MARKS = "osD^vPX*"
FLOOR_COLOR = "#808080"
PANEL_INCHES = (4.2, 3.2)

Draw = Callable[["Axes", Group], None]


def need_matplotlib() -> None:
    """Raises UsageError where it is missing: better asked before than after a long run."""
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError("plots need matplotlib: pip install matplotlib")


def plot(records: Sequence[Record], folder: Path) -> list[Path]:
    """Write the figures into a folder, which is made; a panel for each record. Returns the files.

    Runs that differ in nothing but their batches share a panel; where they measured the same, the
    last one counts. What no record has numbers for gives no figure. Raises UsageError without
    matplotlib, and where the folder cannot be written.
    """
    need_matplotlib()
    import matplotlib

    panels = [(record, group) for record in joined(records) for group in groups(record)]
    written = []
    for name, (draw, shows) in FIGURES.items():
        chosen = [(record, group) for record, group in panels if shows(group)]
        for theme, ink in THEMES.items() if chosen else ():
            with matplotlib.rc_context(_style(ink)):
                path = folder / f"{name}-{theme}.svg"
                _write(_figure(draw, chosen), path)
                written.append(path)
    return written


def _speedup(axes: Axes, group: Group) -> None:
    """Speed-up over drafts, a line for each batch; auto has the last place on the axis."""
    batches = _with_speedup(group)
    fixed = sorted({case.drafts for case in group.summaries if case.drafts != "auto"})
    auto = max(fixed, default=0) + 1
    for index, batch in enumerate(batches):
        found = {case.drafts: case.speedup for case in group.at(batch) if case.speedup}
        line = {drafts: spread for drafts, spread in found.items() if drafts != "auto"}
        _line(axes, index, line, f"batch {batch}")
        if "auto" in found:
            # Side by side: at every batch auto comes near the best.
            place = auto + 0.12 * (index - (len(batches) - 1) / 2)
            axes.plot(place, found["auto"].median, color=_color(index), marker=_mark(index))
            axes.vlines(place, found["auto"].low, found["auto"].high, colors=_color(index))
    axes.axhline(1, color=FLOOR_COLOR, linestyle="--", linewidth=1)
    with_auto = any(case.drafts == "auto" for case in group.summaries)
    axes.set_xticks([*fixed, *[auto] * with_auto], [*map(str, fixed), *["auto"] * with_auto])
    axes.set_xlabel("drafts per round")
    axes.set_ylabel("speed-up over plain decoding, x")
    axes.set_ylim(bottom=0)
    axes.legend()


def _acceptance(axes: Axes, group: Group) -> None:
    """How often a draft comes true where those before it did, a line for each task."""
    cases = _by_position(group)
    for index, case in enumerate(cases):
        rates = case.acceptance_by_position or []
        # Side by side: easy texts have the same rates.
        aside = 0.08 * (index - (len(cases) - 1) / 2)
        places = [place + aside for place in range(1, len(rates) + 1)]
        axes.plot(places, rates, color=_color(index), marker=_mark(index), label=case.task)
    longest = max(len(case.acceptance_by_position or []) for case in cases)
    axes.set_xticks(range(1, longest + 1))
    axes.set_xlabel(f"position of the draft, {setting(cases[0].drafts)} per round")
    axes.set_ylabel("drafts that come true")
    axes.set_ylim(0, 1.02)
    axes.legend(ncols=1 + (len(cases) > 4), loc="lower left")


def _throughput(axes: Axes, group: Group) -> None:
    """Tokens per second over the batch: plain, best, other engines and the floor."""
    plain = {batch: group.plain(batch) for batch in group.batches}
    drafted = {batch: group.fastest_drafted(batch) for batch in group.batches}
    lines = {"plain": plain, "best number of drafts": drafted}
    for peer in group.peers:
        lines[f"{peer}, its best"] = {b: group.fastest(b, peer) for b in group.batches}
    for index, (label, cases) in enumerate(lines.items()):
        found = {b: case.decode_tokens_per_second for b, case in cases.items() if case}
        _line(axes, index, found, label)
    for label, cases, style in (("with drafts", drafted, "--"), ("plain", plain, ":")):
        floors = {b: c.floor.tokens_per_second for b, c in cases.items() if c and c.floor}
        if floors:
            axes.plot(
                list(floors),
                list(floors.values()),
                color=FLOOR_COLOR,
                linestyle=style,
                label=f"allowed by bytes, {label}",
            )
    axes.set_xticks(group.batches)
    axes.set_xlabel("batch, rows")
    axes.set_ylabel("tokens/s, all rows")
    axes.set_ylim(bottom=0)
    axes.legend()


def _line(axes: Axes, index: int, found: Mapping[int, Spread], label: str) -> None:
    """Medians as a line, from low to high as a band."""
    places, spreads = list(found), list(found.values())
    medians = [spread.median for spread in spreads]
    axes.plot(places, medians, color=_color(index), marker=_mark(index), label=label)
    low, high = [spread.low for spread in spreads], [spread.high for spread in spreads]
    axes.fill_between(places, low, high, color=_color(index), alpha=0.2, linewidth=0)


def _color(index: int) -> str:
    return COLORS[index % len(COLORS)]


def _mark(index: int) -> str:
    return MARKS[index % len(MARKS)]


def _with_speedup(group: Group) -> list[int]:
    """Batches at which a gain of drafts was measured."""
    return [b for b in group.batches if any(c.speedup and c.drafts != 0 for c in group.at(b))]


def _by_position(group: Group) -> list[Case]:
    """Of each task, or of all where there is but one figure."""
    cases = [case for case in acceptance_cases(group) if case.acceptance_by_position]
    return [case for case in cases if case.task != ALL] or cases


FIGURES: dict[str, tuple[Draw, Callable[[Group], Any]]] = {
    "speedup": (_speedup, _with_speedup),
    "acceptance": (_acceptance, _by_position),
    "throughput": (_throughput, lambda group: len(group.batches) > 1),
}


def _figure(draw: Draw, panels: Sequence[tuple[Record, Group]]) -> Figure:
    """Panels, two in a row."""
    from matplotlib.figure import Figure

    width, height = PANEL_INCHES
    columns = min(len(panels), 2)
    lines = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(width * columns, height * lines), layout="constrained")
    for place, (record, group) in enumerate(panels, 1):
        axes = figure.add_subplot(lines, columns, place)
        draw(axes, group)
        axes.set_title("\n".join(filter(None, [str(record.subject), group.label])))
        axes.margins(x=0.06)
    return figure


def _style(ink: str) -> dict[Any, Any]:
    """Transparent, lines and letters in this color, and nothing that changes from run to run."""
    inks = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
    return {
        **dict.fromkeys(inks, ink),
        "font.sans-serif": ["DejaVu Sans"],  # ships with matplotlib; a page may have another
        "font.size": 9,
        "axes.titlesize": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "grid.color": FLOOR_COLOR,
        "grid.alpha": 0.25,
        "axes.grid": True,
        "axes.axisbelow": True,
        "legend.frameon": False,
        "legend.fontsize": 8,
        "lines.markersize": 4,
        "svg.hashsalt": "mlx-gemma-mtp",
        "svg.fonttype": "none",  # as paths, letters are most of the file
    }


def _write(figure: Figure, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(
            path, format="svg", transparent=True, metadata={"Date": None, "Creator": None}
        )
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}") from None
