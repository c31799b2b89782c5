"""The output is the one that the target generates alone, whatever is drafted, accepted and batched.

Eight plain outputs of every kind are decoded without a drafter and checked against one pass of the
target. Every other way must give the same tokens. Random drafters are hardly ever right, so drafts
are also forced by a pattern, and then the counts of accepted drafts must be those of the pattern.
"""

from dataclasses import replace

import numpy as np
import pytest

from helpers.checkpoints import KINDS
from helpers.divisions import MOST_POSITIONS, assert_plain
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
from helpers.rounds import Models
from helpers.spelled import NumbersText, spelled
from mlx_gemma_mtp import SamplingParams
from mlx_gemma_mtp.decode.params import MAX_DRAFT_TOKENS
from mlx_gemma_mtp.model.cache import capacity_for


def case(kind: str, number: int) -> tuple[int, int]:
    """K and batch size: each kind meets every K and every size, all kinds together every pair."""
    return DRAFTS[number], BATCHES[(number + KINDS.index(kind)) % len(BATCHES)]


def test_the_plain_outputs_cover_what_is_promised(plain: Plain) -> None:
    lengths = [len(row.prompt) for row in plain.rows]
    assert min(lengths) < plain.window < max(lengths)
    assert plain.window in lengths
    assert plain.ring == plain.window + 2 * (max(DRAFTS) + 1) < max(lengths)
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


@pytest.mark.parametrize("sizes", [range(1, 5), range(5, NUM_ROWS + 1)])
def test_output_is_plain_however_rounds_are_divided(
    plain: Plain, models: Models, rng: np.random.Generator, sizes: range
) -> None:
    rows = plain.pick(int(rng.choice(sizes)))
    assert wraps(rows[0], plain.short, plain.window + MOST_POSITIONS) >= 1
    suppressed = plain.pair.default_tokens("suppress_tokens")
    assert_plain(models, rows, plain.short, suppressed, rng)


def test_each_prompt_alone_gives_the_same_output(plain: Plain, rng: np.random.Generator) -> None:
    plain.assert_generated(plain.pick(1), plain.short, 0, drafter=None)
    for row in plain.rows:
        forced = Forced(rng, [row], always([row], True))
        plain.assert_generated([row], plain.long, max(DRAFTS), forced)


def test_output_is_plain_with_the_most_drafts_and_the_ring_of_an_engine_in_use(
    plain: Plain, rng: np.random.Generator
) -> None:
    limits = replace(LIMITS, slot_step=1)
    num_tokens = min(len(row.tokens) for row in plain.rows)
    assert all(wraps(row, num_tokens, plain.ring_under(limits)) >= 1 for row in plain.rows)
    forced = Forced(rng, plain.rows, at_random(rng, plain.rows, rate=0.9))
    plain.assert_generated(plain.rows, num_tokens, MAX_DRAFT_TOKENS, forced, limits=limits)


def test_a_prompt_may_come_in_chunks_that_wrap_the_ring(
    plain: Plain, rng: np.random.Generator
) -> None:
    rows = [row for row in plain.rows if len(row.prompt) > 13]
    forced = Forced(rng, rows, always(rows, True))
    plain.assert_generated(rows, plain.short, 7, forced, limits=replace(TIGHT, chunks=(13,)))


# Outputs that end inside a draft. K = 5 and every draft is right: a round gives 6 tokens.


def inside_a_draft(index: int) -> bool:
    """True if this token is neither the first nor the last of its round."""
    return index > 0 and 0 < (index - 1) % 6 < 5


@pytest.fixture
def right(plain: Plain, rng: np.random.Generator) -> Forced:
    """Drafts that are always right."""
    return Forced(rng, plain.rows, always(plain.rows, True))


@pytest.fixture(params=[0, 5])
def params(plain: Plain, request: pytest.FixtureRequest) -> list[SamplingParams]:
    """The rows' own settings, with 0 or 5 drafts."""
    own = {"max_tokens": plain.long, "num_draft_tokens": request.param}
    return [replace(row.params, **own) for row in plain.rows]


@some_kind
def test_an_end_token_inside_a_draft_ends_the_output(
    plain: Plain, right: Forced, params: list[SamplingParams]
) -> None:
    outputs = [row.tokens[: plain.long] for row in plain.rows]
    # From each output one token that is new inside a draft, if any. They end all outputs.
    eos = set()
    for i, tokens in enumerate(outputs):
        fresh = (j for j, token in enumerate(tokens) if token not in tokens[:j])
        inside = [j for j in fresh if inside_a_draft(j)]
        eos |= {tokens[j] for j in sorted(inside, key=lambda j: abs(j - 3 * i))[:1]}
    last = plain.long - 1
    ends = [next((j for j, token in enumerate(one) if token in eos), last) for one in outputs]
    assert any(inside_a_draft(end) for end in ends)
    assert len(set(ends)) > 1

    params = [replace(one, ignore_eos=False) for one in params]
    with plain.engine(right, defaults={"eos_token_id": sorted(eos)}) as engine:
        done = engine.generate([row.prompt for row in plain.rows], params)
    for one, tokens, end in zip(done, outputs, ends, strict=True):
        assert one.tokens == tokens[: end + 1]
        assert one.finish_reason == ("stop" if tokens[end] in eos else "length")


@some_kind
def test_a_stop_string_inside_a_draft_ends_the_output(
    plain: Plain, right: Forced, params: list[SamplingParams]
) -> None:
    ends = []
    for i, row in enumerate(plain.rows):
        # Two digits of one token and one of the next; it may occur before the place it is from.
        taken = next(j for j in range(3 * i + 2, plain.long) if inside_a_draft(j))
        stop = spelled(row.tokens)[3 * taken - 2 : 3 * taken + 1]
        ends.append(spelled(row.tokens).index(stop))
        params[i] = replace(params[i], stop=["#", stop])
    last_tokens = [(end + 2) // 3 for end in ends]  # these complete the stop strings
    assert any(inside_a_draft(last) for last in last_tokens)
    assert len(set(last_tokens)) > 1
    with plain.engine(right, text=NumbersText()) as engine:
        done = engine.generate([row.prompt for row in plain.rows], params)
    for one, row, end, last in zip(done, plain.rows, ends, last_tokens, strict=True):
        assert one.text == spelled(row.tokens)[:end]
        assert one.tokens == row.tokens[: last + 1]
        assert one.finish_reason == "stop"


@some_kind
def test_rows_end_at_different_tokens_of_a_draft(
    plain: Plain, right: Forced, params: list[SamplingParams]
) -> None:
    limits = [1, 2, 4, 7, 8, 12, 13, 30]
    assert any(inside_a_draft(limit - 1) for limit in limits)
    params = [replace(one, max_tokens=limit) for one, limit in zip(params, limits, strict=True)]
    with plain.engine(right) as engine:
        done = engine.generate([row.prompt for row in plain.rows], params)
    for one, row, own, limit in zip(done, plain.rows, params, limits, strict=True):
        assert one.tokens == row.tokens[:limit]
        assert one.finish_reason == "length"
        assert one.stats.rounds == -(-(limit - 1) // (own.num_draft_tokens + 1))
