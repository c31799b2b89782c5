"""mlx-vlm 0.7.10 on our pair's arrays, plain and with its own MTP loops.

Its models, caches, prefill and decoding loops run as they are, except that the target's answers to
a random drafter's drafts can be drawn (see `_drawn`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from importlib.metadata import PackageNotFoundError, version
from itertools import count
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import mlx.core as mx

from mlx_gemma_mtp.errors import UsageError
from mlx_gemma_mtp.model.drafter import Drafter
from mlx_gemma_mtp.model.target import Target

from ..turn import Rounds
from . import ENDLESS, PREFILL_STEP, Draw, batched
from .lend import lend, settings

VERSION = "0.7.10"


def need_mlx_vlm(wanted: str = VERSION) -> None:
    """Raise UsageError if this version isn't installed."""
    install = f"pip install mlx-vlm=={wanted}"
    try:
        found = version("mlx-vlm")
    except PackageNotFoundError:
        raise UsageError(f"mlx-vlm is not installed: {install}") from None
    if found != wanted:
        raise UsageError(f"--peer mlx-vlm needs version {wanted}, not {found}: {install}")


class MlxVlm:
    """A pair, or a target alone, with mlx-vlm's classes and loops."""

    name = f"mlx-vlm {VERSION}"

    def __init__(self, target: Target, drafter: Drafter | None) -> None:
        """Shares the pair's arrays, see `lend`."""
        from mlx_vlm.models.gemma4.config import TextConfig
        from mlx_vlm.models.gemma4.language import LanguageModel
        from mlx_vlm.speculative.drafters.gemma4_assistant import (
            Gemma4AssistantDraftModel,
            ModelConfig,
        )

        self.can_draft = drafter is not None
        self._language: Any = LanguageModel(TextConfig.from_dict(settings(target.config)))
        lend(target, self._language)
        if drafter is None:
            return
        text = TextConfig.from_dict(settings(drafter.config))
        fields = vars(drafter.config) | {"text_config": text}
        self._assistant: Any = Gemma4AssistantDraftModel(ModelConfig.from_dict(fields))
        # Their centroid head reads the embedding's weights as if they were never quantized.
        plain = ["embed_tokens"] if drafter.config.use_ordered_embeddings else []
        lend(drafter, self._assistant, plain=plain)

    def rounds(self, prompts: list[list[int]], num_draft_tokens: int, draw: Draw | None) -> Rounds:
        """See Peer: one row with their `generate_step`, several with their `BatchGenerator`."""
        options: dict[str, Any] = {"max_tokens": ENDLESS, "prefill_step_size": PREFILL_STEP}
        if num_draft_tokens:
            # Their block counts the token before the drafts. A larger block in the request is only
            # a ceiling, used while 65% of the rounds accept all configured drafts. A larger block
            # in the config applies to every round.
            block = self._assistant.config.block_size = num_draft_tokens + 1
            options |= {"draft_model": self._assistant, "draft_kind": "mtp"}
            options["draft_block_size"] = block
        try:
            with nullcontext() if draw is None else _drawn(draw):
                yield from (self._single if len(prompts) == 1 else self._batch)(prompts, options)
        finally:
            if num_draft_tokens:
                self._assistant.reset(self._language)  # frees the last round's keys and values

    def _single(self, prompts: list[list[int]], options: dict[str, Any]) -> Rounds:
        from mlx_vlm.generate.ar import generate_step
        from mlx_vlm.models.base import InputEmbeddingsFeatures

        embedded = InputEmbeddingsFeatures(self._embed(prompts[0]))
        multimodal = SimpleNamespace(  # the parts of a multimodal model that text needs
            config=None,
            language_model=self._language,
            get_input_embeddings=lambda *_, **__: embedded,
        )
        steps = generate_step(mx.array(prompts), multimodal, None, None, temperature=0.0, **options)
        first, _ = next(steps)
        yield [[int(first)]]
        for token, _ in steps:  # the first of a round; the others are ready
            others = self._assistant.accept_lens[-1] if "draft_model" in options else 0
            yield [[int(token), *(int(next(steps)[0]) for _ in range(others))]]

    def _batch(self, prompts: list[list[int]], options: dict[str, Any]) -> Rounds:
        from mlx_vlm.generate.ar import BatchGenerator

        generator = BatchGenerator(
            self._language,
            SimpleNamespace(stopping_criteria=_NeverStops()),
            prefill_batch_size=len(prompts),
            completion_batch_size=len(prompts),
            compute_logprobs=False,
            **options,
        )
        embedded = [{"inputs_embeds": self._embed(prompt)} for prompt in prompts]
        uids = generator.insert(prompts, prompt_kwargs=embedded)
        yield from batched(generator, uids, lambda: generator.next()[1])

    def _embed(self, prompt: list[int]) -> mx.array:
        model = self._language.model
        return model.embed_tokens(mx.array([prompt])) * model.embed_scale


@contextmanager
def _drawn(draw: Draw) -> Iterator[None]:
    """In the block, draw the target's answers to the drafts of a random drafter.

    Position by position, their acceptance walk turns verified states into logits, lets `sampler`
    choose, waits, compares with the draft, and ends at the first rejection in any row. Only the
    result of `sampler` changes: to the draft if it is drawn as accepted, else to another token. One
    small kernel per position does this. It reads the true choice, so no work is skipped, and it
    adds no wait. The rest stays theirs: drafting, verifying, clamping to the worst row, rolling
    back.
    """
    from mlx_vlm.speculative import mtp

    def drawn(walk: Callable[..., Any]) -> Callable[..., Any]:
        def drawn_walk(
            lm: Any, hidden: Any, drafts: mx.array, sampler: Any, *rest: Any, **options: Any
        ) -> Any:
            accepted, positions = draw(*drafts.shape), count()

            def choose(logits: mx.array) -> mx.array:
                chosen: mx.array = sampler(logits)
                position = next(positions)
                if position == drafts.shape[1]:
                    return chosen
                right = mx.array([one > position for one in accepted])
                return _answer(right, drafts[:, position], chosen)

            return walk(lm, hidden, drafts, choose, *rest, **options)

        return drawn_walk

    # Of one row, and of several.
    names = "_speculative_walk_deferred_greedy", "_speculative_walk_batch_deferred_uniform"
    with patch.dict(vars(mtp), {name: drawn(getattr(mtp, name)) for name in names}):
        yield


@mx.compile
def _answer(right: mx.array, draft: mx.array, chosen: mx.array) -> mx.array:
    return mx.where(right, draft, mx.where(chosen == draft, chosen ^ 1, chosen))


class _NeverStops:
    """Their stopping criteria, without tokens that end a row."""

    def add_eos_token_ids(self, tokens: object) -> None: ...

    def __call__(self, token: int) -> bool:
        return False
