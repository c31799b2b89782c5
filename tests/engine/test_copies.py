"""Drafts copied from a row's own text: when they are taken, how they count, what they teach."""

from dataclasses import replace
from functools import partial
from itertools import repeat
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from helpers.depths import GivenDepth
from helpers.fake_target import PARAMS, VOCAB, fake_pair
from helpers.quoting import DISTANCE, QuotingTarget, quoting
from helpers.stepped import PARAMS as RESOLVED
from mlx_gemma_mtp import Completion, Engine, SamplingParams
from mlx_gemma_mtp.decode.acceptance import Acceptance
from mlx_gemma_mtp.decode.player import round_player
from mlx_gemma_mtp.engine.request import Request
from mlx_gemma_mtp.engine.row import Row
from mlx_gemma_mtp.model.cache import KVCache

MOST = 7
AUTO = replace(PARAMS, max_tokens=60)


def zeros(_: object, __: object, cache: KVCache, *rest: Any) -> mx.array:
    """Stands in for `round.draft`: hardly ever right."""
    return mx.zeros((len(cache.offset), rest[-1]), mx.int32)


def generated(params: SamplingParams, *, drafter: bool = True, **options: Any) -> Completion:
    """An output that quotes itself, which is right whatever is drafted."""
    prompt = np.random.default_rng(5).integers(0, VOCAB, DISTANCE).tolist()
    pair = fake_pair(QuotingTarget())
    pair = pair if drafter else pair._replace(drafter=None)
    player = partial(round_player, draft=zeros)
    with Engine(pair, player=player, depth=GivenDepth(repeat(MOST)), **options) as engine:
        (done,) = engine.generate(prompt, params)
    assert done.tokens == quoting(prompt, 60)
    return done


@pytest.mark.parametrize("drafter", [True, False])
def test_a_text_that_repeats_itself_takes_fewer_rounds(drafter: bool) -> None:
    done, without = generated(AUTO, drafter=drafter), generated(AUTO, drafter=drafter, copies=False)
    stats = done.stats
    assert 0 < stats.copies_accepted <= stats.copies_drafted <= stats.drafted
    assert stats.copies_accepted / stats.copies_drafted > 0.5
    assert stats.rounds < without.stats.rounds
    assert without.stats.copies_drafted_at == without.stats.copies_accepted_at == []
    if not drafter:
        assert without.stats.drafted == 0
        assert stats.accepted == stats.copies_accepted


def test_plain_decoding_copies_nothing() -> None:
    stats = generated(replace(AUTO, num_draft_tokens=0)).stats
    assert (stats.drafted, stats.rounds) == (0, 59)


def test_a_number_of_drafts_holds_for_copies() -> None:
    stats = generated(replace(AUTO, num_draft_tokens=2)).stats
    assert stats.drafted_at == [stats.rounds] * 2
    assert 0 < stats.copies_drafted < stats.drafted


def row_of(text: list[int], num_draft_tokens: int | None = None, max_tokens: int = 99) -> Row:
    """A row that has one token after this prompt, and acceptances of its own."""
    request = Request(text[:-1], RESOLVED, max_tokens, num_draft_tokens, frozenset(), None)
    request.take(text[-1:])
    return Row(request, Acceptance(), Acceptance())


AGAIN = [*range(20), *range(10)]  # continues with 10, 11, … if it repeats itself


def test_a_row_takes_the_source_of_which_it_expects_more() -> None:
    row = row_of(AGAIN)
    good, bad = Acceptance(), Acceptance()
    for _ in range(50):
        good.seen(4, 4)
        bad.seen(4, 1)
    for drafted, copied, expected in ((good, bad, False), (bad, good, True)):
        row = Row(row.request, drafted, copied)
        chances = row.chances(MOST, coming=0)
        assert chances.copied == expected
        assert list(chances.reached) == good.reached[:MOST]
    assert not Row(row_of([*range(30)]).request, bad, good).chances(MOST, coming=0).copied


def test_copies_must_still_be_right_after_the_round_in_flight() -> None:
    row, reached = row_of(AGAIN), Acceptance().reached
    row = Row(row.request, None, Acceptance())
    assert list(row.chances(2, coming=0).reached) == reached[:2]
    assert row.chances(2, coming=3).reached == pytest.approx(
        [reached[2] * one for one in reached[:2]]
    )


def test_a_row_takes_no_drafts_that_it_cannot_use() -> None:
    row = row_of(AGAIN, max_tokens=5)  # it has one, and each round gives one by itself
    assert [len(row.chances(MOST, coming).reached) for coming in (0, 1)] == [3, 2]
    row = row_of(AGAIN, max_tokens=2)
    assert [len(row.chances(MOST, coming).reached) for coming in (0, 1)] == [0, 0]
    assert len(row_of(AGAIN, num_draft_tokens=3, max_tokens=2).chances(MOST, 0).reached) == 3


def test_a_stretch_starts_with_the_last_token_at_its_position() -> None:
    assert row_of(AGAIN).stretch(4) == (len(AGAIN) - 1, [9, 10, 11, 12])
    assert row_of([*range(30)]).stretch(4) is None


def test_copies_are_measured_whether_or_not_they_are_taken() -> None:
    for copied in (True, False):
        row = row_of(AGAIN)
        before = row.chances(MOST, 0).reached
        stretch = row.stretch(8) if copied else None
        row.take([10, 11, 99], num_drafts=3, num_steps=0, stretch=stretch)
        row.take([*range(8)], num_drafts=7, num_steps=0, stretch=None)
        after = row.chances(MOST, 0)
        assert after.copied
        assert after.reached[1] > before[1]
        assert after.reached[2] / after.reached[1] < after.reached[1] / after.reached[0]


def test_drafts_of_a_row_that_left_its_copy_count_as_the_drafters() -> None:
    row = row_of(AGAIN)
    stretch = row.stretch(8)
    row.take([77], num_drafts=0, num_steps=0, stretch=None)
    row.take([1, 2], num_drafts=3, num_steps=2, stretch=stretch)
    stats = row.request.stats
    assert (stats.drafted_at, stats.copies_drafted_at) == ([1, 1, 1], [])
