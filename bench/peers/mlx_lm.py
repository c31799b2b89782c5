"""mlx-lm on our target's arrays, with its own generation loops: a peer that doesn't draft."""

from __future__ import annotations

from importlib.metadata import version

import mlx.core as mx

from mlx_gemma_mtp.model.target import Target

from ..turn import Rounds
from . import ENDLESS, PREFILL_STEP, Draw, batched
from .lend import lend, settings


class MlxLm:
    """A target with mlx-lm's model class, caches, prefill and decoding as they are."""

    can_draft = False

    def __init__(self, target: Target) -> None:
        """Shares the target's arrays, see `lend`."""
        from mlx_lm.models.gemma4_text import Model, ModelArgs  # a second, with transformers

        self.name = f"mlx-lm {version('mlx-lm')}"
        self._model = Model(ModelArgs.from_dict(settings(target.config)))
        lend(target, self._model)

    def rounds(self, prompts: list[list[int]], num_draft_tokens: int, draw: Draw | None) -> Rounds:
        """See Peer: one row with their `generate_step`, several with their `BatchGenerator`."""
        from mlx_lm.generate import BatchGenerator, generate_step

        rows = len(prompts)
        if rows == 1:
            for token, _ in generate_step(
                mx.array(prompts[0]),
                self._model,
                max_tokens=ENDLESS,
                prefill_step_size=PREFILL_STEP,
            ):
                yield [[int(token)]]
        generator = BatchGenerator(
            self._model,
            max_tokens=ENDLESS,
            prefill_step_size=PREFILL_STEP,
            completion_batch_size=rows,
            prefill_batch_size=rows,
        )
        yield from batched(generator, generator.insert(prompts), generator.next_generated)
