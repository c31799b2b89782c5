"""mlx-vlm 0.7.10, plain and with its MTP loops, on our arrays: what the benchmark compares with.

Their models, caches, prefill and decoding loops run as they are but for one thing: a random
drafter is never right, so what the target answers to a draft is drawn (`_drawn` says how).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import mlx.core as mx
from mlx_gemma_mtp.bench.decode import Sample, random_prompts
from mlx_gemma_mtp.bench.mlx_vlm_pair import hand_over

from mlx_gemma_mtp.drafter import Drafter
from mlx_gemma_mtp.target import Target

ENDLESS = 1_000_000  # their max_tokens, never reached: near it their rounds get shorter
PREFILL_STEP = 256  # theirs is 2048, at which 8 rows beside 31B hardly fit into 80 GB

# Given the numbers of rows and of drafts in a round: how many drafts each row accepts.
Draw = Callable[[int, int], list[int]]
# Each step plays one round and yields the number of its tokens, over all rows.
Rounds = Generator[int, None, None]


class MlxVlmPeer:
    """A pair in mlx-vlm's hands; it drafts `default_num_drafts` tokens unless told otherwise."""

    def __init__(self, target: Target, drafter: Drafter) -> None:
        """Empties the pair, see `hand_over`."""
        self._language, self._assistant = hand_over(target, drafter)
        self.default_num_drafts: int = self._assistant.config.block_size - 1

    def decode(
        self,
        lengths: Sequence[int],
        num_drafts: int,
        draw: Draw,
        *,
        rounds: int = 16,
        samples: int = 5,
        warm_up: int = 4,
    ) -> list[Sample]:
        """Time `samples` times `rounds` rounds of rows with random prompts of these lengths.

        Greedy; prefill and `warm_up` rounds come before and are not timed. One row runs their
        `generate_step`, several run their `BatchGenerator`, as their `generate` and
        `batch_generate` do. num_drafts 0 is plain decoding: a round is a step, nothing is drawn.
        """
        from mlx_vlm.speculative import mtp

        prompts = random_prompts(lengths, self._language.config.vocab_size)
        drafting = {}
        if num_drafts:
            # Their block counts the token before the drafts. Asking for a larger one than is
            # configured sets a mere ceiling, used while 65 % of the rounds accept all of the
            # configured ones; configuring it makes every round draft as many as are asked for.
            block = self._assistant.config.block_size = num_drafts + 1
            drafting = {"draft_model": self._assistant, "draft_kind": "mtp"}
            drafting["draft_block_size"] = block
        with ExitStack() as stack:
            for walk in (
                "_speculative_walk_deferred_greedy",  # of one row
                "_speculative_walk_batch_deferred_uniform",  # of several
            ):
                stack.enter_context(patch.object(mtp, walk, _drawn(getattr(mtp, walk), draw)))
            play = self._single if len(prompts) == 1 else self._batch
            played = play(prompts, drafting)
            stack.callback(played.close)
            _sample(played, warm_up)
            taken = [_sample(played, rounds) for _ in range(samples)]
        self._assistant.reset(self._language)  # it holds the last round's keys and values
        mx.clear_cache()
        return taken

    def _single(self, prompts: list[list[int]], drafting: dict[str, Any]) -> Rounds:
        from mlx_vlm.generate.ar import generate_step
        from mlx_vlm.models.base import InputEmbeddingsFeatures

        embedded = InputEmbeddingsFeatures(self._embed(prompts[0]))
        multimodal = SimpleNamespace(  # as much of a multimodal model as text asks for
            config=None,
            language_model=self._language,
            get_input_embeddings=lambda *_, **__: embedded,
        )
        steps = generate_step(
            mx.array(prompts),
            multimodal,
            None,
            None,
            max_tokens=ENDLESS,
            temperature=0.0,
            prefill_step_size=PREFILL_STEP,
            **drafting,
        )
        next(steps)  # the prefill's token
        for _ in steps:  # the first of a round; its others are there already
            others = self._assistant.accept_lens[-1] if drafting else 0
            for _ in range(others):
                next(steps)
            yield 1 + others

    def _batch(self, prompts: list[list[int]], drafting: dict[str, Any]) -> Rounds:
        from mlx_vlm.generate.ar import BatchGenerator

        generator = BatchGenerator(
            self._language,
            _NeverStops(),
            max_tokens=ENDLESS,
            prefill_batch_size=len(prompts),
            completion_batch_size=len(prompts),
            prefill_step_size=PREFILL_STEP,
            compute_logprobs=False,
            **drafting,
        )
        embedded = [{"inputs_embeds": self._embed(prompt)} for prompt in prompts]
        generator.insert(prompts, prompt_kwargs=embedded)
        try:
            while True:
                _, answers = generator.next()
                if answers:  # none while it prefills
                    yield len(answers)
        finally:
            generator.close()

    def _embed(self, prompt: list[int]) -> mx.array:
        model = self._language.model
        return model.embed_tokens(mx.array([prompt])) * model.embed_scale


def _drawn(walk: Callable[..., Any], draw: Draw) -> Callable[..., Any]:
    """Their acceptance walk over a round, with the target's answers to the drafts drawn.

    The walk takes the verified states position by position to logits, lets `sampler` choose,
    waits, compares with the draft, and ends at the first rejection in any row. Only the return
    value of `sampler` changes: where the draw accepts, to the draft; where not and the choice
    happens to be the draft, to its neighbour. One small kernel per position does it; it reads the
    true choice, so no work falls away, and nothing waits for the device that did not. Drafting,
    verifying, head, waiting, comparing, clamping to the worst row and rolling back stay theirs.
    """

    def drawn_walk(
        lm: Any, hidden: mx.array, drafts: mx.array, sampler: Any, *args: Any, **kwargs: Any
    ) -> Any:
        num_rows, num_drafts = drafts.shape
        accepted, positions = draw(num_rows, num_drafts), iter(range(num_drafts + 1))

        def choose(logits: mx.array) -> mx.array:
            chosen: mx.array = sampler(logits)
            position = next(positions)
            if position == num_drafts:
                return chosen
            right = mx.array([count > position for count in accepted])
            return _answer(right, drafts[:, position], chosen)

        return walk(lm, hidden, drafts, choose, *args, **kwargs)

    return drawn_walk


@mx.compile
def _answer(right: mx.array, draft: mx.array, chosen: mx.array) -> mx.array:
    return mx.where(right, draft, mx.where(chosen == draft, chosen ^ 1, chosen))


def _sample(played: Rounds, rounds: int) -> Sample:
    begun = time.perf_counter()
    tokens = sum(next(played) for _ in range(rounds))
    return Sample(tokens, rounds, time.perf_counter() - begun)


class _NeverStops:
    """A tokenizer of which only the stopping criteria are asked."""

    def __init__(self) -> None:
        self.stopping_criteria = self

    def add_eos_token_ids(self, tokens: object) -> None:
        """No token ends a row."""

    def __call__(self, token: int) -> bool:
        return False
