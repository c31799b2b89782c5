"""An engine with fewer tokens of context than its model."""

import re

import pytest

from helpers.fake_target import PARAMS, fake_engine, output
from mlx_gemma_mtp import SamplingParams, load
from mlx_gemma_mtp.errors import PromptTooLongError, UsageError


def test_a_prompt_must_leave_room_for_an_answer_and_the_answer_ends_with_the_context() -> None:
    params = SamplingParams(temperature=0, ignore_eos=True)
    with fake_engine(context=50) as engine:
        assert engine.context == 50
        with pytest.raises(PromptTooLongError, match=r"^prompt is too long: 50 tokens > 49"):
            engine.submit([5] * 50, PARAMS)
        for length in (1, 20, 49):
            (done,) = engine.generate([[5] * length], params)
            assert done.finish_reason == "length"
            assert done.tokens == output([5] * length, 50 - length)


def test_a_text_that_is_far_too_long_is_refused_before_it_is_encoded() -> None:
    far, longer = "Hello <bos>" * 10_000, "Hello " * 5000
    with load("demo", None) as engine:
        for prompt in (far, [{"role": "user", "content": far}]):
            for use in (engine.submit, engine.count_tokens):
                with pytest.raises(PromptTooLongError) as refused:
                    use(prompt)
                found = re.match(
                    r"prompt is too long: (\d+) tokens > 4095 maximum, .* at least \1 tokens: ",
                    str(refused.value),
                )
                assert found
                assert 4096 <= int(found[1]) < len(engine.encode(far))
        counted = engine.count_tokens(longer)
        with pytest.raises(PromptTooLongError, match=f"long: {counted} tokens > 4095 maximum, "):
            engine.submit(longer)


def test_more_context_than_the_model_has_is_that_of_the_model() -> None:
    with fake_engine(context=10**9) as engine, fake_engine() as free:
        assert engine.context == free.context == free.config.max_position_embeddings


@pytest.mark.parametrize("wrong", [0, 1, -5, 2.5, "4096"])
def test_a_context_without_room_is_refused(wrong: object) -> None:
    with pytest.raises(UsageError, match="context must be at least 2 tokens"):
        load("demo", context=wrong)  # type: ignore[arg-type]
