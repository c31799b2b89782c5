"""What others measured: the prediction compared with it, and the costs that it is made of."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest
from mlx_gemma_mtp.bench import estimate, metal, reported
from mlx_gemma_mtp.bench.chips import chips, find_chip

pytestmark = pytest.mark.slow

README = Path(__file__).parents[2] / "README.md"


def test_the_error_that_is_shown_is_that_of_the_measurements() -> None:
    shown, computed = reported.error(), reported.computed_error()
    assert shown[:-1] == pytest.approx(computed[:-1], abs=0.006)
    assert shown.chips == pytest.approx(computed.chips, abs=0.006)
    assert reported.fitted(reported.reported()) == estimate.SHARE


def test_predictions_are_near_what_others_measured_on_four_generations() -> None:
    points = reported.reported()
    assert {one.chip.split()[0] for one in points} == {"M1", "M2", "M3", "M5"}
    for point in points:
        assert point.source.startswith("https://")
        # The M1 Ultra is slower than its bandwidth says. Eight rows of E2B are slow on an M2 Max.
        known = point.chip == "M1 Ultra" or (point.chip == "M2 Max" and point.batch == 8)
        assert 0.75 < point.ratio() < (2 if known else 1.35)
    assert statistics.median(one.ratio() for one in points) == pytest.approx(1, abs=0.1)


def test_drafts_on_an_m3_ultra_gain_as_measured() -> None:
    plain, *drafted = (one for one in reported.reported() if one.source.endswith("2026-08-20.md"))
    assert [one.num_draft_tokens for one in drafted] == [1, 2, 3, 4, 5, 7]
    for one in drafted[:3]:
        assert one.ratio() / plain.ratio() == pytest.approx(1, abs=0.12)
    gains = [one.ratio() * one.tokens_per_second for one in drafted]
    measured = [one.tokens_per_second for one in drafted]
    best = drafted[gains.index(max(gains))]
    assert best.tokens_per_second > 0.98 * max(measured)  # the K that it would choose


def test_every_generation_has_costs_by_rows_that_rise_to_one_tile() -> None:
    for chip in chips():
        found = metal.kernels(chip.name)
        rows, costs = zip(*found.rows, strict=True)
        assert list(rows) == sorted(rows)
        assert (rows[0], costs[0], rows[-1]) == (1, 1, metal.TILE)
        assert list(costs) == sorted(costs)
        assert [found.cost(number) for number in rows] == pytest.approx(costs)
        assert found.cost(3 * metal.TILE) == pytest.approx(3 * costs[-1])
        assert len(found.sources) > 5


@pytest.mark.parametrize("size", ["26B-A4B", "31B"])
def test_the_table_in_the_readme_is_what_is_predicted(size: str) -> None:
    lines = README.read_text(encoding="utf-8").splitlines()
    at = next(number for number, line in enumerate(lines) if line == "## Predicted, not measured")
    shown = {}
    for line in lines[at:]:
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[0] == "model":
            names = cells[2:]
        elif cells[0] == size:
            shown |= {
                (int(cells[1]), chip): cell for chip, cell in zip(names, cells[2:], strict=True)
            }
    assert len(shown) == 9
    pair, chances = estimate.plan(size, bits=4), [0.84, 0.71, 0.64, 0.70]
    for (batch, name), cell in shown.items():
        one = estimate.predict(pair, find_chip(name), batch=batch, context=4096, accept=chances)
        plain, best = one.tokens_per_second[0], one.tokens_per_second[one.best]
        assert cell == f"{plain:.0f} → {best:.0f} (K = {one.best})"
    error = reported.error()
    text = " ".join(lines[at:])
    assert f"{error.low:.2f} to {error.high:.2f} times the measured speed" in text
    assert f"For {error.points} published speeds" in text
