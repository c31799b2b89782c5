"""mlx-lm on our target's arrays, with its own generation loops: a peer that doesn't draft."""

from __future__ import annotations

from importlib.metadata import version

import mlx.core as mx

from mlx_gemma_mtp.model.target import Target

from ..turn import Rounds
from . import ENDLESS, PREFILL_STEP, Draw
from .lend import lend, settings


class MlxLm:
    """A target with mlx-lm's model class, caches, prefill and decoding as they are."""

    can_draft = False

    def __init__(self, target: Target, *, copy_experts: bool = True) -> None:
        """Shares the target's arrays. copy_experts: see `lend`."""
        from mlx_lm.models.gemma4_text import Model, ModelArgs  # a second, with transformers

        self.name = f"mlx-lm {version('mlx-lm')}"
        self._model = Model(ModelArgs.from_dict(settings(target.config)))
        lend(target, self._model, copy_experts=copy_experts)

    def rounds(self, prompts: list[list[int]], num_draft_tokens: int, draw: Draw | None) -> Rounds:
        """See Peer: one row with their `generate_step`, several with their `BatchGenerator`."""
        yield from self._single(prompts[0]) if len(prompts) == 1 else self._batch(prompts)

    def _single(self, prompt: list[int]) -> Rounds:
        from mlx_lm.generate import generate_step

        for token, _ in generate_step(
            mx.array(prompt), self._model, max_tokens=ENDLESS, prefill_step_size=PREFILL_STEP
        ):
            yield [[int(token)]]

    def _batch(self, prompts: list[list[int]]) -> Rounds:
        from mlx_lm.generate import BatchGenerator

        generator = BatchGenerator(
            self._model,
            max_tokens=ENDLESS,
            prefill_step_size=PREFILL_STEP,
            completion_batch_size=len(prompts),
            prefill_batch_size=len(prompts),
        )
        rows = {uid: row for row, uid in enumerate(generator.insert(prompts))}
        try:
            while True:
                new: list[list[int]] = [[] for _ in prompts]
                for answer in generator.next_generated():
                    new[rows[answer.uid]].append(answer.token)
                yield new
        finally:
            generator.close()
