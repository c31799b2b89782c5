"""What is learned of costs and of acceptance, each on its own."""

import json
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from mlx_gemma_mtp.decode.acceptance import DOUBTFUL, Acceptance
from mlx_gemma_mtp.decode.costs import RETRY, Costs
from mlx_gemma_mtp.decode.division import Shape
from mlx_gemma_mtp.decode.table import PassTable

TABLE = PassTable(passes={1: 1.0, 4: 2.0, 8: 3.0}, steps={1: 0.1})


def shape(width: int, steps: int = 0) -> Shape:
    return Shape(1, steps, steps + 1, width, width)


def timed(costs: Costs, *timings: tuple[int, float, int]) -> Costs:
    """Add timings at batch 1: tokens, seconds, how often."""
    for width, seconds, count in timings:
        for _ in range(count):
            costs.add(shape(width), seconds)
    return costs


def seconds(costs: Costs, *widths: int, steps: int = 0) -> Sequence[float]:
    passes = tuple((width, width) for width in widths)
    found: list[float] = costs.seconds(1, passes, steps)[-1].tolist()
    return found


def doubt(costs: Costs, width: int, known: int) -> float:
    return float(costs.doubt(1, (width,), known)[0])


def test_single_outliers_do_not_show_in_a_cost() -> None:
    costs = Costs()
    for i in range(64):
        costs.add(shape(1), 10.0 if i % 8 == 5 else 1.0)
    assert seconds(costs, 1) == pytest.approx([1], rel=0.1)


def test_a_table_is_believed_until_timings_differ_and_scaled_as_a_whole() -> None:
    costs = Costs(TABLE)
    assert seconds(costs, 1, 4, 8) == pytest.approx([1, 2, 3])
    assert seconds(costs, 4, steps=3) == pytest.approx([2.3])
    timed(costs, (4, 4.0, 40))
    assert seconds(costs, 1, 4, 8) == pytest.approx([2, 4, 6], rel=0.05)
    timed(costs, (8, 3.0, 60))
    assert seconds(costs, 8) == pytest.approx([3], rel=0.1)


def test_a_width_that_differs_from_the_table_is_told_from_the_pace() -> None:
    costs = Costs(TABLE)
    for _ in range(60):
        timed(costs, (1, 1.0, 2), (8, 3.6, 2))  # a fifth more than in the table
    found = seconds(costs, 1, 4, 8)
    assert found[0] == pytest.approx(1, rel=0.05)
    assert found[2] == pytest.approx(3.6, rel=0.05)
    assert 2 * 0.95 < found[1] < 2 * 1.15


def test_what_a_step_takes_is_learned_from_rounds_with_steps() -> None:
    costs = Costs()
    for _ in range(100):
        costs.add(shape(4, 3), 1.6)
        costs.add(shape(4, 1), 1.2)
        costs.add(shape(4, 0), 1.0)
    assert seconds(costs, 4) == pytest.approx([1], rel=0.05)
    assert seconds(costs, 4, steps=2) == pytest.approx([1.4], rel=0.05)


def test_a_step_that_the_probe_had_no_time_for_is_not_free() -> None:
    costs = Costs(replace(TABLE, steps={}))
    assert seconds(costs, 4, steps=3)[0] > 2.01
    for _ in range(60):
        costs.add(shape(4, 3), 2.6)
        costs.add(shape(4, 0), 2.0)
    assert seconds(costs, 4, steps=3) == pytest.approx([2.6], rel=0.05)


def test_a_change_of_the_width_in_use_is_one_of_the_machine() -> None:
    costs = timed(Costs(TABLE), (1, 1.0, 200), (4, 2.0, 200), (4, 4.0, 60))
    assert seconds(costs, 1, 4) == pytest.approx([2, 4], rel=0.1)


def test_what_was_learned_is_remembered_and_scaled_to_the_machine_of_today() -> None:
    before = timed(Costs(TABLE), (1, 1.0, 40), (8, 4.0, 40))
    assert seconds(before, 8)[0] / seconds(before, 1)[0] == pytest.approx(4, rel=0.1)
    today = Costs.from_json(json.loads(json.dumps(before.to_json())), TABLE)
    timed(today, (8, 4.8, 40))
    assert seconds(today, 1, 8) == pytest.approx([1.2, 4.8], rel=0.1)
    assert today.timed(1) == {1, 8}
    assert not today.measured_plain(1)
    assert timed(today, (1, 1.0, 40)).measured_plain(1)
    assert Costs.from_json({}, TABLE).to_json() == {}


@pytest.mark.parametrize(
    "saved",
    [
        {"1": {"0": 0.1}},  # of an earlier version
        {"1": {"pace": float("nan"), "step": 0, "widths": {}}},
        {"1": {"pace": 1e30, "step": 0, "widths": {}}},
        {"1": {"pace": 0, "step": 0, "widths": {"x": 0}}},
        {"1": {"pace": 0, "step": "0", "widths": {}}},
        [1],
    ],
)
def test_what_was_not_saved_by_costs_is_refused(saved: object) -> None:
    with pytest.raises((KeyError, ValueError, TypeError, AttributeError)):
        Costs.from_json(saved)


def test_a_cost_that_was_not_timed_for_long_is_doubted_more_and_more() -> None:
    costs = Costs(TABLE)
    for _ in range(100):
        timed(costs, (1, 1.0, 2), (4, 2.0, 2))
    doubted = [doubt(costs, 1, 4)]
    for _ in range(3):
        timed(costs, (4, 2.0, 100))
        doubted.append(doubt(costs, 1, 4))
    assert 0.01 < doubted[0] < doubted[1] < doubted[2] < doubted[3] < 0.1


def test_plain_decoding_is_timed_again_after_a_busy_time_and_its_new_cost_believed() -> None:
    costs = Costs()
    for _ in range(50):
        timed(costs, (1, 1.0, 2), (4, 2.0, 2))
    timed(costs, (4, 2.0, 4 * RETRY))
    assert not costs.plain_due(1)  # nothing changed
    for _ in range(30):  # busy: short rounds suffer the most
        timed(costs, (1, 2.8, 2), (4, 4.0, 2))
    timed(costs, (4, 2.0, RETRY))
    assert costs.plain_due(1)
    assert seconds(costs, 1)[0] > 1.2
    timed(costs, (1, 1.0, 2))
    assert not costs.plain_due(1)
    assert seconds(costs, 1) == pytest.approx([1], rel=0.1)


def test_plain_decoding_is_timed_more_and_more_rarely_while_nothing_changes() -> None:
    costs = Costs.from_json(timed(Costs(), (1, 1.0, 40), (4, 2.0, 40)).to_json())
    timings = [0]  # of passes of 4 tokens until it is due
    for _ in range(3):
        timings.append(0)
        while not costs.plain_due(1):
            timed(costs, (4, 2.0, 1))
            timings[-1] += 1
        timed(costs, (1, 1.0, 2))
    assert timings[1] == RETRY
    assert timings[2] > 1.8 * timings[1]
    assert timings[3] > 1.8 * timings[2]


def test_an_unknown_cost_is_guessed_from_those_nearest() -> None:
    costs = Costs()
    for _ in range(20):
        timed(costs, (1, 10.0, 2), (8, 20.0, 2))
    found = seconds(costs, 1, 2, 4, 6, 8, 10)
    assert found == sorted(found)
    assert doubt(costs, 10, 8) < doubt(costs, 20, 8) < doubt(costs, 64, 8)


def test_a_width_between_is_learned_with_its_neighbours() -> None:
    costs = timed(Costs(TABLE), (11, 5.0, 50))
    assert seconds(costs, 11) == pytest.approx([5], rel=0.05)
    assert np.isfinite(seconds(costs, 1, 64, 200)).all()


def test_each_position_has_its_own_rate_and_deeper_ones_take_the_one_before() -> None:
    pool = Acceptance()
    row = Acceptance(pool)
    for accepted in [2, 1] * 200:  # the first is always right, the second every other time
        row.seen(2, accepted)
    assert row.rates[0] == pytest.approx(1, abs=0.01)
    assert row.rates[1] == pytest.approx(0.5, abs=0.05)
    assert row.rates[2:] == pytest.approx([0.5] * len(row.rates[2:]), abs=0.05)
    assert row.reached[:2] == pytest.approx([1, 0.5], abs=0.05)


def test_a_new_row_starts_from_what_earlier_ones_showed() -> None:
    pool = Acceptance()
    first = Acceptance(pool)
    for _ in range(200):
        first.seen(4, 4)
    assert sum(Acceptance(pool).reached[:4]) > 3.5
    assert sum(Acceptance(Acceptance()).reached[:4]) < 2


def test_what_is_not_tried_any_more_gives_way_soon() -> None:
    pool = Acceptance()
    tried, idle = Acceptance(pool), Acceptance(pool)
    for row in (tried, idle):
        for _ in range(100):
            row.seen(1, 0)
    for _ in range(200):
        idle.seen(0, 0)
    for row in (tried, idle):
        row.seen(1, 1)
    assert idle.rates[0] > 2 * tried.rates[0]
    assert idle.rates[0] < 1.5 / DOUBTFUL
