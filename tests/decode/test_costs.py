"""What is learned of costs and of acceptance, each on its own."""

import pytest

from mlx_gemma_mtp.decode.acceptance import DOUBTFUL, Acceptance
from mlx_gemma_mtp.decode.costs import Costs


def timed(costs: Costs, *timings: tuple[int, float, int]) -> Costs:
    """Add timings at batch 1: K, seconds, how often."""
    for k, seconds, count in timings:
        for _ in range(count):
            costs.add(1, k, seconds)
    return costs


def test_single_outliers_do_not_show_in_a_cost() -> None:
    costs = Costs()
    for i in range(64):
        costs.add(1, 0, 10.0 if i % 8 == 5 else 1.0)
    assert costs.estimates(1, 0)[0].expected == pytest.approx(1, rel=0.05)


def test_an_outlier_among_the_first_timings_does_not_make_a_cost_known() -> None:
    costs = timed(Costs(), (0, 1.0, 5), (2, 9.0, 1))
    assert list(costs.known(1)) == [0]
    timed(costs, (2, 2.0, 2))
    assert costs.known(1)[2].expected == pytest.approx(2, rel=0.01)


def test_a_step_of_the_k_in_use_is_one_of_the_machine() -> None:
    costs = timed(Costs(), (0, 1.0, 200), (3, 2.0, 200), (3, 4.0, 40))
    assert costs.estimates(1, 3)[0].expected == pytest.approx(2, rel=0.1)
    assert costs.estimates(1, 3)[3].expected == pytest.approx(4, rel=0.02)


def test_a_remembered_table_is_scaled_to_the_machine_of_today() -> None:
    before = timed(Costs(), (0, 1.0, 20), (3, 4.0, 20))
    today = Costs.from_json(before.to_json())
    timed(today, (3, 4.8, 40))
    assert today.known(1)[0].expected == pytest.approx(1.2, rel=0.03)


def test_a_cost_is_measured_after_many_timings_of_this_run() -> None:
    costs = timed(Costs.from_json({"1": {"0": 1.0}}), (3, 2.0, 40), (0, 9.0, 3))
    assert costs.measured(1, 0) is None
    assert costs.measured(8, 0) is None
    timed(costs, (0, 1.0, 40))
    assert costs.measured(1, 0) == pytest.approx(1, rel=0.1)


def test_a_cost_that_was_not_timed_for_long_is_doubted_more_and_more() -> None:
    costs = timed(Costs(), (0, 1.0, 20))
    doubted = []
    for _ in range(4):
        timed(costs, (3, 2.0, 300))
        doubted.append(costs.estimates(1, 0)[0])
    assert [cost.expected for cost in doubted] == pytest.approx([1.0] * 4)
    assert 0.95 > doubted[0].least > doubted[1].least > doubted[2].least > 0.5


def test_an_unknown_cost_is_guessed_from_the_known_and_rather_too_low() -> None:
    costs = timed(Costs(), (0, 10.0, 20), (4, 20.0, 20))
    expected = [cost.expected for cost in costs.estimates(1, 6)]
    assert 10 < expected[1] < expected[2] < expected[3] <= 17.5
    assert 20 < expected[5] < expected[6] <= 25


def test_each_position_has_its_own_rate_and_deeper_ones_take_the_one_before() -> None:
    pool = Acceptance()
    row = Acceptance(pool)
    for accepted in [2, 1] * 200:  # the first is always right, the second every other time
        row.seen(2, accepted)
    assert row.rates[0] == pytest.approx(1, abs=0.01)
    assert row.rates[1] == pytest.approx(0.5, abs=0.05)
    assert row.rates[2:] == pytest.approx([0.5] * len(row.rates[2:]), abs=0.05)
    assert row.expected_tokens(2) == pytest.approx(2.5, abs=0.1)


def test_a_pinned_row_yields_no_more_than_its_drafts_allow() -> None:
    row = Acceptance(Acceptance(), pinned=2)
    for _ in range(200):
        row.seen(2, 2)
    assert row.expected_tokens(1) == pytest.approx(2, abs=0.02)
    assert row.expected_tokens(8) == row.expected_tokens(2) == pytest.approx(3, abs=0.05)


def test_a_new_row_starts_from_what_earlier_ones_showed() -> None:
    pool = Acceptance()
    first = Acceptance(pool)
    for _ in range(200):
        first.seen(4, 4)
    assert Acceptance(pool).expected_tokens(4) > 4.5
    assert Acceptance(Acceptance()).expected_tokens(4) < 3


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
