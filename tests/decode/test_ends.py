"""Outputs that end inside a draft. K = 5 and every draft is right: a round gives 6 tokens."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from helpers.forced import Forced, always
from helpers.plain import Plain
from helpers.spelled import NumbersText, spelled
from mlx_gemma_mtp import SamplingParams

SOME_KIND = "E2B"  # none of this depends on the kind


def inside_a_draft(index: int) -> bool:
    """True if this token is neither the first nor the last of its round."""
    return index > 0 and 0 < (index - 1) % 6 < 5


@pytest.fixture
def plain(plains: Callable[[str], Plain]) -> Plain:
    return plains(SOME_KIND)


@pytest.fixture
def right(plain: Plain, rng: np.random.Generator) -> Forced:
    """Drafts that are always right."""
    return Forced(rng, plain.rows, always(plain.rows, True))


@pytest.fixture(params=[0, 5])
def params(plain: Plain, request: pytest.FixtureRequest) -> list[SamplingParams]:
    """The rows' own settings, with 0 or 5 drafts."""
    drafts = request.param
    return [
        replace(row.params, max_tokens=plain.long, num_draft_tokens=drafts) for row in plain.rows
    ]


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
