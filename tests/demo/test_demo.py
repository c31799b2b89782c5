"""The demo pair sits its examination: 300 prompts that its training never saw, through the engine.

`pytest tests/demo/test_demo.py -s` prints the tables of its model card.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import mlx.core as mx
import numpy as np
import pytest

from mlx_gemma_mtp import Completion, Engine, SamplingParams, load
from mlx_gemma_mtp.decode.round import prefill as run_prefill
from mlx_gemma_mtp.demo.recipe.example import Example
from mlx_gemma_mtp.demo.recipe.tasks import held_out
from mlx_gemma_mtp.engine import prefill
from mlx_gemma_mtp.model.cache import KVCache
from mlx_gemma_mtp.model.target import Target

NUM_PROMPTS = 300
NUM_DRAFTS = 3


@pytest.fixture(scope="module", autouse=True)
def prompts_prefilled_once() -> Iterator[None]:
    """Both runs need the same prefill, which takes longer than the answers on MLX's CPU backend."""
    made: dict[tuple[int, ...], tuple[mx.array, mx.array, list[mx.array], list[mx.array]]] = {}

    def once(target: Target, cache: KVCache, tokens: mx.array) -> mx.array:
        key = (cache.capacity("full_attention"), *np.array(tokens)[0].tolist())
        if cache.offset.item() > 0:  # a later chunk depends on the ones before it
            return run_prefill(target, cache, tokens)
        if key not in made:
            hidden = run_prefill(target, cache, tokens)
            made[key] = (hidden, cache.offset, list(cache.keys), list(cache.values))
        hidden, cache.offset, keys, values = made[key]
        cache.keys, cache.values = list(keys), list(values)
        return hidden

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefill, "prefill", once)
        patch.setattr(prefill, "CHUNKS", prefill.CHUNKS[-1:])  # the same chunks in both runs
        yield


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with load("demo") as engine:
        yield engine


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    return held_out(NUM_PROMPTS)


def answers(engine: Engine, examples: Sequence[Example], drafts: int) -> list[Completion]:
    assert engine.text is not None
    prompts = [
        engine.text.chat(
            example.messages, tools=list(example.tools) or None, enable_thinking=example.thinking
        )
        for example in examples
    ]
    params = SamplingParams(max_tokens=600, temperature=0, num_draft_tokens=drafts)
    return engine.generate(prompts, params)


@pytest.fixture(scope="module")
def speculated(engine: Engine, examples: list[Example]) -> list[Completion]:
    return answers(engine, examples, NUM_DRAFTS)


def test_95_percent_of_held_out_prompts_are_answered_right(
    engine: Engine, examples: list[Example], speculated: list[Completion]
) -> None:
    assert engine.text is not None
    asked: Counter[str] = Counter()
    right: Counter[str] = Counter()
    for example, done in zip(examples, speculated, strict=True):
        said = engine.text.decode(done.tokens)  # a call may be what was asked for
        good = example.check(said)
        for task in (example.task, "all"):
            asked[task] += 1
            right[task] += good
        if not good:
            print(f"wrong, {example.task}: {example.messages[-1]['content']!r} -> {said!r}")
    print("\n| task | prompts | right |\n|---|---|---|")
    for task, count in sorted(asked.items()):
        print(f"| {task} | {count} | {right[task] / count:.1%} |")
    assert right["all"] / asked["all"] >= 0.95


def test_three_fifths_of_three_drafts_are_accepted(
    examples: list[Example], speculated: list[Completion]
) -> None:
    drafted: dict[str, list[int]] = {}
    accepted: dict[str, list[int]] = {}
    for example, done in zip(examples, speculated, strict=True):
        for task in (example.task, "all"):
            for total, counts in (
                (drafted, done.stats.drafted_at),
                (accepted, done.stats.accepted_at),
            ):
                before = total.setdefault(task, [0] * NUM_DRAFTS)
                total[task] = [a + b for a, b in zip(before, counts or [0] * 3, strict=True)]
    print("\n| task | acceptance rate | draft 1 / 2 / 3 |\n|---|---|---|")
    for task in sorted(drafted):
        places = " / ".join(
            f"{a / d:.2f}" for a, d in zip(accepted[task], drafted[task], strict=True)
        )
        print(f"| {task} | {sum(accepted[task]) / sum(drafted[task]):.2f} | {places} |")
    assert sum(accepted["all"]) / sum(drafted["all"]) >= 0.6


def test_the_text_is_the_same_without_the_drafter(
    engine: Engine, examples: list[Example], speculated: list[Completion]
) -> None:
    plain = answers(engine, examples, 0)
    for example, one, other in zip(examples, speculated, plain, strict=True):
        assert one.tokens == other.tokens, (example.task, example.messages, one.text, other.text)


def test_some_texts_cross_the_sliding_window(engine: Engine, speculated: list[Completion]) -> None:
    longest = max(done.stats.prompt_tokens + len(done.tokens) for done in speculated)
    assert longest > engine.config.sliding_window
