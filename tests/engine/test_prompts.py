"""Prompts and settings: in any form and number, checked before any work, counted afterwards."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from helpers.fake_target import (
    MAX_POSITIONS,
    VOCAB,
    FakeTarget,
    Rounds,
    fake_engine,
    fake_pair,
    fake_player,
    output,
)
from mlx_gemma_mtp import Engine, SamplingParams
from mlx_gemma_mtp.decode.depth import Depth
from mlx_gemma_mtp.errors import ModelNotFoundError, UsageError

PARAMS = SamplingParams(max_tokens=16, seed=11, ignore_eos=True)


@pytest.fixture(scope="module")
def running() -> Iterator[Engine]:
    with fake_engine() as engine:
        yield engine


def test_more_prompts_than_rows_come_back_in_order(prompts: list[list[int]]) -> None:
    rounds = Rounds()
    with fake_engine(max_batch=2, player=rounds.player) as narrow:
        done = narrow.generate(prompts, PARAMS)
    assert [one.tokens for one in done] == [output(prompt, 16) for prompt in prompts]
    assert max(rounds.sizes) == 2


def test_each_prompt_may_have_its_own_settings(running: Engine, prompts: list[list[int]]) -> None:
    settings = [replace(PARAMS, max_tokens=3 + i, temperature=i % 2) for i in range(len(prompts))]
    done = running.generate(prompts, settings)
    assert [one.tokens for one in done] == [output(p, 3 + i) for i, p in enumerate(prompts)]


@pytest.mark.parametrize("count", [0, 2, 4])
def test_settings_must_be_as_many_as_prompts(
    running: Engine, prompts: list[list[int]], count: int
) -> None:
    with pytest.raises(UsageError, match=f"3 prompts but {count} settings"):
        running.generate(prompts[:3], [PARAMS] * count)


def test_a_single_prompt_needs_no_list(running: Engine, prompts: list[list[int]]) -> None:
    bare = running.generate(prompts[0], PARAMS)
    listed = running.generate([prompts[0]], [PARAMS])
    assert (
        [one.tokens for one in bare] == [one.tokens for one in listed] == [output(prompts[0], 16)]
    )
    assert running.generate([], PARAMS) == []


def test_a_seed_repeats_an_output_and_without_one_outputs_differ(prompts: list[list[int]]) -> None:
    free = SamplingParams(max_tokens=24, temperature=1, top_k=0, top_p=1, ignore_eos=True)
    with fake_engine(FakeTarget(certainty=0.05)) as running:
        drawn = running.generate([prompts[0]] * 4, free)
        same = running.generate([prompts[0]] * 2, replace(free, seed=5))
        again = running.generate(prompts[0], replace(free, seed=5))
    assert len({tuple(one.tokens) for one in drawn}) == 4
    assert same[0].tokens == same[1].tokens == again[0].tokens


def test_an_output_without_max_tokens_ends_where_the_context_does(running: Engine) -> None:
    prompt = [5] * (MAX_POSITIONS - 9)
    unbounded = replace(PARAMS, max_tokens=None, num_draft_tokens=5)
    (done,) = running.generate(prompt, unbounded)
    assert done.tokens == output(prompt, 9)
    assert done.finish_reason == "length"


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([[]], "empty"),
        ([5, VOCAB], f"{VOCAB} is outside the vocabulary"),
        ([5, -1], "-1 is outside the vocabulary"),
        ([5] * MAX_POSITIONS, f"{MAX_POSITIONS} tokens"),
        ("text", "no tokenizer"),
        ([{"role": "user", "content": "text"}], "no tokenizer"),
        (b"bytes", "not bytes"),
    ],
)
def test_a_wrong_prompt_is_refused_before_any_work(
    running: Engine, prompt: Any, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        running.generate(prompt, PARAMS)
    single = prompt[0] if prompt == [[]] else prompt
    with pytest.raises(UsageError, match=message):
        running.stream(single, PARAMS)  # at once, not when first read


def test_stop_strings_without_a_tokenizer_are_refused(
    running: Engine, prompts: list[list[int]]
) -> None:
    with pytest.raises(UsageError, match="tokenizer"):
        running.generate(prompts[0], replace(PARAMS, stop="end"))


def test_drafts_need_a_drafter_and_auto_works_without(prompts: list[list[int]]) -> None:
    pair = fake_pair()._replace(drafter=None)
    with Engine(pair, player=fake_player) as plain:
        (done,) = plain.generate(prompts[0], PARAMS)
        assert done.stats.drafted == 0
        with pytest.raises(ModelNotFoundError, match="drafter"):
            plain.generate(prompts[0], replace(PARAMS, num_draft_tokens=1))


def test_auto_takes_what_the_controller_chooses(prompts: list[list[int]]) -> None:
    class Two(Depth):
        def choose(self, *_: object) -> int:
            return 2

    with fake_engine(depth=Two()) as running:
        settings = [PARAMS, replace(PARAMS, num_draft_tokens=1)]
        chosen, pinned = running.generate(prompts[:2], settings)
    assert len(chosen.stats.drafted_at) == 2
    assert len(pinned.stats.drafted_at) == 1


def test_counts_add_up(running: Engine, prompts: list[list[int]]) -> None:
    drafts = [0, 1, 2, 3, 5, 7, 15, 15]
    settings = [replace(PARAMS, num_draft_tokens=k, max_tokens=24) for k in drafts]
    for one, prompt, k in zip(running.generate(prompts, settings), prompts, drafts, strict=True):
        stats = one.stats
        assert stats.prompt_tokens == len(prompt)
        assert stats.generated_tokens == len(one.tokens) == 24
        # One token from the prompt, one from each round, and the accepted ones. The last round may
        # have yielded more than was asked for.
        surplus = 1 + stats.rounds + stats.accepted - stats.generated_tokens
        assert 0 <= surplus <= k
        assert stats.drafted_at == [stats.rounds] * k
        assert stats.drafted == stats.rounds * k
        assert sorted(stats.accepted_at, reverse=True) == stats.accepted_at
        assert stats.acceptance_rate == (stats.accepted / stats.drafted if k else None)
        assert stats.acceptance_length == (stats.generated_tokens - 1) / stats.rounds
        assert stats.first_token_seconds > 0
        assert stats.decode_seconds > 0
        assert stats.decode_tokens_per_second == 23 / stats.decode_seconds


def test_an_output_of_one_token_needs_no_round(running: Engine, prompts: list[list[int]]) -> None:
    (done,) = running.generate(prompts[0], replace(PARAMS, max_tokens=1))
    assert (len(done.tokens), done.stats.rounds, done.stats.drafted) == (1, 0, 0)
    assert done.stats.acceptance_rate is None
    assert done.stats.acceptance_length is None
