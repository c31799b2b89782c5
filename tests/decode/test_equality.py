"""The output is the one that the target generates alone, whatever is drafted, accepted and batched.

Eight plain outputs of every kind are decoded once, without a drafter, and checked against a single
pass of the target over each. Every other way must give the same tokens. Random tiny drafters are
hardly ever right, so drafts are also forced: right and wrong by a pattern over rows and positions.
Then the counts of accepted drafts must be exactly those of the pattern.
"""

from dataclasses import replace

import numpy as np
import pytest

from helpers.checkpoints import KINDS
from helpers.forced import Forced, always, at_random
from helpers.plain import (
    BATCHES,
    DRAFTS,
    LIMITS,
    LONG_ROWS,
    NUM_ROWS,
    TIGHT,
    Plain,
    some_kind,
    wraps,
)
from mlx_gemma_mtp.decode.params import MAX_DRAFT_TOKENS
from mlx_gemma_mtp.model.cache import capacity_for


def case(kind: str, number: int) -> tuple[int, int]:
    """K and batch size: each kind meets every K and every size, all kinds together every pair."""
    return DRAFTS[number], BATCHES[(number + KINDS.index(kind)) % len(BATCHES)]


def test_the_plain_outputs_cover_what_is_promised(plain: Plain) -> None:
    lengths = [len(row.prompt) for row in plain.rows]
    assert min(lengths) < plain.window < max(lengths)
    assert plain.window in lengths
    assert plain.ring == plain.window + max(DRAFTS) + 1 < max(lengths)
    for limits in (LIMITS, TIGHT):
        capacity = capacity_for(lengths[4] + 1, limits.slot_step)
        assert capacity < lengths[4] + plain.short
    assert all(wraps(row, plain.long, plain.ring) >= 2 for row in plain.rows)
    assert all(wraps(plain.rows[i], plain.short, plain.ring) >= 2 for i in LONG_ROWS)
    met = {case(kind, number) for kind in KINDS for number in range(5)}
    assert met == {(k, size) for k in DRAFTS for size in BATCHES}
    assert sum(len(set(row.tokens)) for row in plain.rows) > 100  # the outputs are varied


@pytest.mark.parametrize(("num_drafts", "size"), list(zip(DRAFTS, reversed(BATCHES), strict=True)))
def test_output_with_the_drafter_is_plain(plain: Plain, num_drafts: int, size: int) -> None:
    rows = plain.pick(size)
    assert wraps(rows[0], plain.short, plain.ring) >= 2
    done = plain.assert_generated(rows, plain.short, num_drafts)
    assert all(one.stats.drafted == one.stats.rounds * num_drafts > 0 for one in done)


@pytest.mark.parametrize("number", range(5))
def test_output_is_plain_whatever_is_accepted(
    plain: Plain, number: int, rng: np.random.Generator
) -> None:
    num_drafts, size = case(plain.kind, number)
    rows = plain.pick(size)
    forced = Forced(rng, rows, at_random(rng, rows, rate=0.85))
    plain.assert_generated(rows, plain.long, num_drafts, forced)


def test_rows_accept_nothing_everything_or_a_pattern_side_by_side(
    plain: Plain, rng: np.random.Generator
) -> None:
    nothing, everything = always(plain.rows, False), always(plain.rows, True)
    odd = [np.arange(len(pattern)) % 2 == 1 for pattern in everything]
    late = [np.arange(len(pattern)) % 4 != 0 for pattern in everything]
    seldom = at_random(rng, plain.rows, rate=0.3)
    choices = [nothing, everything, odd, late, seldom, everything, nothing, odd]
    turn = int(rng.integers(NUM_ROWS))
    patterns = [choices[(i + turn) % NUM_ROWS][i] for i in range(NUM_ROWS)]
    done = plain.assert_generated(plain.rows, plain.short, 3, Forced(rng, plain.rows, patterns))
    assert {0, 1} < {one.stats.acceptance_rate for one in done}


@some_kind
def test_each_row_has_its_own_number_of_drafts(plain: Plain, rng: np.random.Generator) -> None:
    forced = Forced(rng, plain.rows, at_random(rng, plain.rows, rate=0.9))
    drafts = rng.permutation([0, 1, 2, 3, 4, 5, 6, 7]).tolist()
    plain.assert_generated(plain.rows, plain.short, drafts, forced)


def test_each_prompt_alone_gives_the_same_output(plain: Plain, rng: np.random.Generator) -> None:
    plain.assert_generated(plain.pick(1), plain.short, 0, drafter=None)
    for row in plain.rows:
        forced = Forced(rng, [row], always([row], True))
        plain.assert_generated([row], plain.long, max(DRAFTS), forced)


def test_output_is_plain_with_the_most_drafts_and_the_ring_of_an_engine_in_use(
    plain: Plain, rng: np.random.Generator
) -> None:
    num_tokens = min(len(row.tokens) for row in plain.rows)
    assert all(wraps(row, num_tokens, plain.ring_under(LIMITS)) >= 1 for row in plain.rows)
    forced = Forced(rng, plain.rows, at_random(rng, plain.rows, rate=0.9))
    plain.assert_generated(plain.rows, num_tokens, MAX_DRAFT_TOKENS, forced, limits=LIMITS)


def test_a_prompt_may_come_in_chunks_that_wrap_the_ring(
    plain: Plain, rng: np.random.Generator
) -> None:
    rows = [row for row in plain.rows if len(row.prompt) > 13]
    forced = Forced(rng, rows, always(rows, True))
    plain.assert_generated(rows, plain.short, 7, forced, limits=replace(TIGHT, chunks=(13,)))
