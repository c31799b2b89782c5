"""mlx-vlm 0.7.10 on our pair's arrays, plain and with its own MTP loops.

Its models, caches, prefill and decoding loops run as they are but for one thing: a random drafter
is never right, so what the target answers to a draft can be drawn (`_drawn` says how).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import mlx.core as mx

from mlx_gemma_mtp.errors import UsageError
from mlx_gemma_mtp.model.drafter import Drafter
from mlx_gemma_mtp.model.target import Target

from .mlx_vlm_pair import VERSION, hand_over
from .peer import ENDLESS, PREFILL_STEP, Draw, PeerSample, Rounds, timed


class MlxVlmPeer:
    """A pair in mlx-vlm's hands, or a target alone."""

    name = f"mlx-vlm {VERSION}"

    def __init__(
        self, target: Target, drafter: Drafter | None, *, copy_experts: bool = True
    ) -> None:
        """Shares the pair's arrays; arguments and errors are those of `hand_over`."""
        self._language, self._assistant = hand_over(target, drafter, copy_experts=copy_experts)
        self.can_draft = drafter is not None

    def decode(
        self,
        prompts: list[list[int]],
        num_drafts: int,
        *,
        tokens: int,
        warm_up: int,
        draw: Draw | None,
    ) -> PeerSample:
        """See Peer. One row runs their `generate_step`, several run their `BatchGenerator`.

        That is what their `generate` and `batch_generate` do.
        """
        if num_drafts and not self.can_draft:
            raise UsageError("there is no drafter that mlx-vlm could draft with: ask for 0 drafts")
        drafting: dict[str, Any] = {}
        if num_drafts:
            # Their block counts the token before the drafts. Asking for a larger one than is
            # configured sets a mere ceiling, used while 65 % of the rounds accept all of the
            # configured ones; configuring it makes every round draft as many as are asked for.
            block = self._assistant.config.block_size = num_drafts + 1
            drafting = {"draft_model": self._assistant, "draft_kind": "mtp"}
            drafting["draft_block_size"] = block
        with ExitStack() as stack:
            if draw is not None:
                _enter_drawn(stack, draw)
            play = self._single if len(prompts) == 1 else self._batch
            played = play(prompts, drafting)
            stack.callback(played.close)
            sample = timed(played, prompts, tokens=tokens, warm_up=warm_up)
        if drafting:
            self._assistant.reset(self._language)  # it holds the last round's keys and values
        mx.clear_cache()
        return sample

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
            prefill_step_size=PREFILL_STEP,
            temperature=0.0,
            **drafting,
        )
        first, _ = next(steps)
        yield [[int(first)]]
        for token, _ in steps:  # the first of a round; its others are there already
            others = self._assistant.accept_lens[-1] if drafting else 0
            yield [[int(token), *(int(next(steps)[0]) for _ in range(others))]]

    def _batch(self, prompts: list[list[int]], drafting: dict[str, Any]) -> Rounds:
        from mlx_vlm.generate.ar import BatchGenerator

        generator = BatchGenerator(
            self._language,
            _NeverStops(),
            max_tokens=ENDLESS,
            prefill_step_size=PREFILL_STEP,
            prefill_batch_size=len(prompts),
            completion_batch_size=len(prompts),
            compute_logprobs=False,
            **drafting,
        )
        embedded = [{"inputs_embeds": self._embed(prompt)} for prompt in prompts]
        rows = {
            uid: row for row, uid in enumerate(generator.insert(prompts, prompt_kwargs=embedded))
        }
        try:
            while True:
                _, answers = generator.next()
                new: list[list[int]] = [[] for _ in prompts]
                for answer in answers:
                    new[rows[answer.uid]].append(answer.token)
                if answers:  # none while it prefills
                    yield new
        finally:
            generator.close()

    def _embed(self, prompt: list[int]) -> mx.array:
        model = self._language.model
        return model.embed_tokens(mx.array([prompt])) * model.embed_scale


def _enter_drawn(stack: ExitStack, draw: Draw) -> None:
    from mlx_vlm.speculative import mtp

    for walk in (
        "_speculative_walk_deferred_greedy",  # of one row
        "_speculative_walk_batch_deferred_uniform",  # of several
    ):
        stack.enter_context(patch.object(mtp, walk, _drawn(getattr(mtp, walk), draw)))


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


class _NeverStops:
    """A tokenizer of which only the stopping criteria are asked."""

    def __init__(self) -> None:
        self.stopping_criteria = self

    def add_eos_token_ids(self, tokens: object) -> None:
        """No token ends a row."""

    def __call__(self, token: int) -> bool:
        return False
