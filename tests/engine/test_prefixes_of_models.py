"""After a hit, every kind of model writes what it writes after a prefill of the whole prompt."""

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest

from helpers.checkpoints import KINDS, VOCAB, PairPaths
from helpers.forced import Row, is_decisive
from mlx_gemma_mtp import Engine, SamplingParams, Status, UsageError, load
from mlx_gemma_mtp.engine.pair import OpenPair, open_pair
from mlx_gemma_mtp.engine.worker import mlx_worker
from mlx_gemma_mtp.memory import Limits

# Windows are 8 or 16 tokens, so prompts are several of them, and every ring is as tight as it gets.
LIMITS = Limits(chunks=(8, 24), pause_seconds=np.inf, max_draft_tokens=7, slot_step=1)
PARAMS = SamplingParams(top_k=0, top_p=1, max_tokens=12, ignore_eos=True)
SETTINGS = [
    replace(PARAMS, temperature=temperature, num_draft_tokens=drafts)
    for temperature in (0, 1)
    for drafts in (0, 3, 7, "auto")
]


class Fresh:
    """Prompts and their outputs without a drafter and without prefixes."""

    def __init__(self, pair: OpenPair, rng: np.random.Generator) -> None:
        self._pair, self._rng = pair, rng
        self._suppressed = pair.default_tokens("suppress_tokens")
        self.engine = Engine(pair._replace(drafter=None), max_batch=1, limits=LIMITS, copies=False)

    def words(self, count: int) -> list[int]:
        return self._rng.integers(4, VOCAB, count).tolist()

    def row(self, history: list[int], params: SamplingParams) -> Row:
        """A prompt that starts with this history, whose output has no near tie."""
        params = replace(params, seed=int(self._rng.integers(2**31)))
        for _ in range(30):
            prompt = [*history, *self.words(int(self._rng.integers(1, 30)))]
            [done] = self.engine.generate(prompt, replace(params, num_draft_tokens=0))
            row = Row(prompt, params, done.tokens)
            if mlx_worker().run(partial(is_decisive, self._pair.target, row, self._suppressed)):
                return row
        raise AssertionError("no output without a near tie")


@pytest.mark.parametrize("kind", KINDS)
def test_eight_conversations_write_what_they_write_from_scratch(
    kind: str, pairs: dict[str, PairPaths], rng: np.random.Generator
) -> None:
    pair = open_pair(*pairs[kind])
    fresh = Fresh(pair, rng)
    system = fresh.words(70)
    histories = [system] * len(SETTINGS)
    with fresh.engine, Engine(pair, limits=LIMITS, prefix_cache=10**9) as engine:
        for _ in range(2):
            each = zip(histories, SETTINGS, strict=True)
            rows = [fresh.row(history, params) for history, params in each]
            going = [engine.submit(row.prompt, row.params) for row in rows]
            done = [one.result() for one in going]
            assert [one.tokens for one in done] == [row.tokens for row in rows]
            reused = [one.stats.reused_tokens for one in done]
            # As generated, or rewritten from the middle on.
            histories = [
                [*row.prompt, *row.tokens[:cut]]
                for row, cut in zip(rows, rng.integers(0, 13, 8).tolist(), strict=True)
            ]
        assert min(reused) >= len(system)


def test_conversations_in_messages_share_their_instructions_and_continue() -> None:
    instructions = " ".join(["You help with sums and answer in one short line."] * 12)
    params = SamplingParams(max_tokens=8, temperature=0)
    system = {"role": "system", "content": instructions}
    with load("demo", None, prefix_cache=10**8) as engine, load("demo", None) as plain:
        num_instructions = engine.count_tokens([system, {"role": "user", "content": "Hi"}]) - 20
        for question in ("What is 17 + 25?", "What is the capital of France?"):
            messages = [system, {"role": "user", "content": question}]
            for turn in range(2):
                [done] = engine.generate([messages], params)
                [expected] = plain.generate([messages], params)
                assert done.tokens == expected.tokens
                messages += [done.message, {"role": "user", "content": "And 3 + 4?"}]
                if turn:
                    assert done.stats.prompt_tokens - done.stats.reused_tokens < 40
            if question.endswith("France?"):
                assert done.stats.reused_tokens > num_instructions
        assert engine.status.prefix_hits == 3
    assert engine.status == Status()


@pytest.mark.parametrize("wrong", [-1, 1.5, "1 GB", True])
def test_the_budget_is_a_number_of_bytes(wrong: Any) -> None:
    with pytest.raises(UsageError, match="prefix_cache"):
        load("demo", prefix_cache=wrong)
