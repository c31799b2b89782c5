"""Which drafts a pass takes, at which width, and which passes agree."""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from mlx_gemma_mtp.decode.costs import Costs
from mlx_gemma_mtp.decode.depth import HOLD, Depth
from mlx_gemma_mtp.decode.division import Chances, Division, Exact, Slots
from mlx_gemma_mtp.decode.options import Choices
from mlx_gemma_mtp.decode.table import PassClass, PassTable

# As on CUDA in 4 bits: 2 to 7 rows cost more than 8, and agree with none of the wider ones.
CUDA = PassTable(
    passes={1: 1.0, 2: 1.7, 4: 3.0, 6: 4.0, 8: 1.1, 16: 1.2, 32: 1.6, 64: 2.4},
    steps={1: 0.05, 8: 0.05},
    classes=(PassClass(1, 6, 1, 16), PassClass(8, 64, 2, 8)),
)
# As on an M3: one tile from 13 rows on.
MAC = PassTable(
    passes={1: 1.0, 2: 1.0, 4: 1.28, 6: 2.04, 8: 2.5, 12: 3.9, 16: 3.9, 32: 3.9, 64: 7.8},
    steps={1: 0.03, 8: 0.03},
    classes=(PassClass(2, 12, 1, 16),),
)


def likely(count: int = 8, rate: float = 0.9) -> Chances:
    return Chances(np.cumprod([rate] * count).tolist())


def tokens_of(rows: Sequence[Chances | None], drafts: Sequence[int]) -> float:
    each = zip(rows, drafts, strict=True)
    return sum(1 + sum(row.reached[:count]) for row, count in each if row)


def test_drafts_are_divided_as_the_best_of_all_divisions(rng: np.random.Generator) -> None:
    for _ in range(20):
        rows = [Chances(np.cumprod(rng.random(4)).tolist()) for _ in range(3)]
        slots = Slots(rows, 4, 4)
        expected = slots.expected(range(13))
        for steps, count in itertools.product(range(5), range(13)):
            all_drafts = itertools.product(range(steps + 1), repeat=3)
            speeds = [tokens_of(rows, each) for each in all_drafts if sum(each) == count]
            assert expected[steps, count] == pytest.approx(max(speeds, default=0))
            if speeds:
                drafts = slots.divide(count, steps)
                assert sum(drafts) == count
                assert tokens_of(rows, drafts) == pytest.approx(max(speeds))


def test_pinned_rows_have_their_drafts_and_free_ones_are_left_out() -> None:
    rows = [Chances([0.1] * 5, pinned=3), None, likely(), Chances([0.9] * 2, pinned=5)]
    slots = Slots(rows, 8, 15)
    assert (slots.num_tokens, slots.num_steps, slots.deepest) == (8, 3, 3)
    assert slots.divide(4, 8) == (3, -1, 4, 2)
    assert slots.expected([0])[3, 0] == pytest.approx(slots.tokens) == 3 + 0.3 + 1.8


def test_copies_need_no_steps_and_may_be_longer_than_the_drafters() -> None:
    rows = [likely(rate=0.2), Chances([0.99] * 12, copied=True)]
    division = Depth(table=MAC).choose(rows)
    assert division.drafts[1] == 12
    assert division.shape.num_steps == division.drafts[0] < 8
    assert division.shape.num_positions == 16  # few shapes
    assert division.shape.num_tokens == sum(division.counts)


@pytest.mark.parametrize("table", [None, CUDA, MAC])
@pytest.mark.parametrize("exact", ["auto", True, False])
def test_a_pinned_number_is_played_by_all_rows(table: PassTable | None, exact: Any) -> None:
    depth = Depth(table=table, exact=exact)
    for batch, k in itertools.product((1, 2, 4), (0, 1, 2)):
        rows = [Chances([0.5] * 15, pinned=k)] * batch
        for _ in range(30):
            division = depth.choose(rows)
            assert division.drafts == (k,) * batch
            assert division.shape[:2] == (batch, k)
            assert division.shape.num_tokens == batch * (k + 1) <= division.shape.width
            depth.round_took(division.shape, 0.1)


@pytest.mark.parametrize("table", [None, CUDA, MAC])
@pytest.mark.parametrize("exact", ["auto", True, False])
def test_any_rows_get_a_division_that_keeps_its_promises(
    rng: np.random.Generator, table: PassTable | None, exact: Any
) -> None:
    depth = Depth(table=table, exact=exact)
    for _ in range(150):
        rows: list[Chances | None] = []
        for _ in range(int(rng.integers(1, 9))):
            reached = np.cumprod(rng.random(int(rng.integers(0, 16)))).tolist()
            pinned = int(rng.integers(16)) if rng.random() < 0.2 else None
            row = Chances(reached, pinned, bool(rng.random() < 0.2))
            rows.append(row if rng.random() < 0.8 else None)
        if not any(rows):
            continue
        division = depth.choose(rows)
        shape = division.shape
        assert shape.num_tokens == sum(division.counts) <= shape.width
        assert shape.num_positions >= max(division.counts)
        for row, count in zip(rows, division.drafts, strict=True):
            assert (row is None) == (count == -1)
            if row is None:
                continue
            assert count <= len(row.reached)
            if not row.copied:
                assert count <= shape.num_steps
            if row.pinned is not None and exact is not True:
                assert count == min(row.pinned, len(row.reached))
        if division.exact:
            kept = depth.pass_class
            assert kept is not None
            assert kept.least_width <= shape.width <= kept.most_width
            assert kept.least_positions <= shape.num_positions <= kept.most_positions
        depth.round_took(shape, float(rng.uniform(0.01, 0.1)))


def test_padding_that_is_cheaper_is_filled_with_drafts() -> None:
    depth = Depth(table=CUDA, exact=False)
    division = depth.choose([Chances([0.5, 0.25, 0.125])] * 2)
    assert (division.shape.num_tokens, division.shape.width) == (8, 8)
    alone = depth.choose([Chances([0.01])] * 4)
    assert (alone.shape.num_tokens, alone.shape.width) == (4, 8)


def test_a_pass_is_not_padded_for_what_two_timings_differ() -> None:
    def width(saved: float) -> int:
        return PassTable({2: 0.0148, 3: 0.0148 * (1 - saved)}).cheapest(2, 1)

    assert [width(saved) for saved in (-0.1, 0, 0.054, 0.09)] == [2] * 4  # 5.4%: see WORTH_PADDING
    assert [width(saved) for saved in (0.11, 0.5)] == [3] * 2


def test_the_class_in_use_lets_most_rows_decode_and_is_the_fastest_with_drafts() -> None:
    # E2B in bfloat16 on an H200: in the first class, eight rows would have no room for drafts.
    passes = {1: 6.7, 2: 9.4, 4: 8.4, 8: 8.9, 16: 9.2, 24: 9.1, 32: 9.1, 48: 9.4, 64: 11.7}
    classes = PassClass(2, 8, 1, 16), PassClass(16, 48, 1, 16), PassClass(64, 64, 1, 16)
    small = PassTable(passes, steps={1: 0.79, 8: 0.79}, classes=classes)
    assert Depth(table=small).pass_class == classes[1]
    assert Depth(table=replace(small, steps={})).pass_class == classes[0]  # no drafter
    tile = PassClass(13, 32, 1, 16)
    assert Depth(table=replace(MAC, classes=(tile, *MAC.classes))).pass_class == MAC.classes[0]


def test_the_class_in_use_lets_most_rows_decode_and_is_the_cheapest_without() -> None:
    assert Depth(table=CUDA).pass_class == PassClass(8, 64, 2, 8)
    wide = PassTable(MAC.passes, classes=(PassClass(13, 64, 1, 16), *MAC.classes))
    assert Depth(table=wide).pass_class == MAC.classes[0]
    assert Depth(table=CUDA, exact=False).pass_class is None
    assert Depth(table=PassTable({1: 1.0})).pass_class is None


def divided(table: PassTable, rows: list[Chances], exact: Any) -> Division:
    return Depth(table=table, exact=exact).choose(rows)


def test_exact_auto_stays_in_the_class_where_that_costs_little() -> None:
    plain = [Chances([])]
    assert divided(MAC, plain, "auto").exact  # 2 rows cost no more than 1
    assert divided(MAC, plain, "auto").shape.width == 2
    assert not divided(CUDA, plain, "auto").exact  # 8 rows cost a tenth more than 1
    assert divided(MAC, [likely()], "auto").exact
    outside = divided(MAC, [likely(rate=0.99)] * 4, "auto")
    assert not outside.exact
    assert outside.shape.num_tokens > 12


def test_exact_true_insists_and_gives_up_drafts_for_it() -> None:
    assert divided(CUDA, [Chances([])], True).shape[2:] == (2, 1, 8)
    inside = divided(MAC, [likely(rate=0.99)] * 4, True)
    assert inside.exact
    assert inside.shape.num_tokens <= 12
    pinned = divided(MAC, [Chances([0.9] * 15, pinned=4)] * 4, True)
    assert pinned.exact
    assert max(pinned.drafts) <= 4
    many = divided(PassTable(MAC.passes, classes=(PassClass(2, 3, 1, 16),)), [likely()] * 4, True)
    assert not many.exact  # not even plain decoding of 4 rows fits
    none = divided(PassTable(MAC.passes), [likely()], True)
    assert not none.exact


def played(exact: Exact, rows: Sequence[Chances], table: PassTable = MAC) -> list[Division]:
    """The divisions of rounds that take what the table says."""
    depth, divisions = Depth(table=table, exact=exact), list[Division]()
    for _ in range(300):
        divisions.append(division := depth.choose(rows))
        passed = table.seconds(division.shape.width)
        step = table.step_seconds(len(rows))
        depth.round_took(division.shape, passed + division.shape.num_steps * step)
    return divisions


def test_probes_of_an_exact_run_stay_in_the_class() -> None:
    divisions = played(True, [likely(rate=rate) for rate in (0.6, 0.3)])
    assert all(division.exact for division in divisions)
    assert len({division.shape for division in divisions}) > 1


def test_auto_leaves_the_class_to_time_each_width_once() -> None:
    divisions = played("auto", [likely(rate=0.7)] * 4)
    outside = [division.shape for division in divisions if not division.exact]
    assert 0 < len(outside) == HOLD * len({shape.width for shape in outside})
    assert divisions[-1].exact


def test_a_probe_that_can_never_be_paid_does_not_stop_those_of_other_rows() -> None:
    slow_drafter = PassTable(passes={1: 1.0, 64: 1.5}, steps={1: 20.0})
    rows = [likely(rate=0.01), Chances([0.001] * 15, copied=True)]
    assert any(division.drafts[1] for division in played(False, rows, slow_drafter))


def test_few_numbers_of_tokens_are_offered() -> None:
    choices = Choices(Costs(), False, 8)
    passes = choices.of([likely()] * 8).passes
    assert len(passes) < 16
    assert max(one.num_tokens for one in passes) == 64
