"""Is a text the same that is written without drafts? For `mgm generate --check`, and others."""

from __future__ import annotations

import json
import os
import secrets
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from mlx_gemma_mtp.check import Parting, Side, parting
from mlx_gemma_mtp.errors import UsageError, VerificationError

if TYPE_CHECKING:
    from mlx_gemma_mtp import Engine, SamplingParams
    from mlx_gemma_mtp.text.messages import Prompt
    from mlx_gemma_mtp.text.tokenizer import Text

NUM_DRAFT_TOKENS = 3  # in place of auto, which may find that here no drafts pay


def exact_products() -> None:
    """Have the digits of a float32 product not depend on how many rows it has.

    With TF32, which MLX uses where a GPU has it, they do. MLX looks at this once, before its first
    product.
    """
    os.environ["MLX_ENABLE_TF32"] = "0"


def with_drafts(params: SamplingParams) -> SamplingParams:
    """Settings of a text that can be checked: drafts in every round, and a seed to repeat it.

    Raises UsageError where 0 drafts were asked for.
    """
    asked = params.num_draft_tokens
    if asked == 0:
        raise UsageError("--check has nothing to compare: give --num-draft-tokens from 1 on")
    return replace(
        params,
        num_draft_tokens=NUM_DRAFT_TOKENS if asked == "auto" else asked,
        seed=secrets.randbits(32) if params.seed is None else params.seed,
    )


class Verdict(NamedTuple):
    """What comparing gave: a number of tokens, and where they part from those without drafts."""

    tokens: int
    parting: Parting | None
    text: Text

    def to_json(self) -> dict[str, Any]:
        """Whether they are the same, and if not: the position, what is before it and from it on."""
        found: dict[str, Any] = {"identical": self.parting is None, "tokens": self.tokens}
        if self.parting is not None:
            found |= {
                "position": self.parting.position,
                "before": self.text.decode(self.parting.before),
                "with_drafts": self._side(self.parting.found)._asdict(),
                "without": self._side(self.parting.wanted)._asdict(),
            }
        return found

    def tell(self) -> None:
        """Say so on standard error. Raises VerificationError where they are not the same."""
        if self.parting is None:
            print(f"the same {self.tokens} tokens with drafts and without", file=sys.stderr)
            return
        before = json.dumps(self.text.decode(self.parting.before), ensure_ascii=False)
        raise VerificationError(
            f"with drafts the text is another one: {self.parting.position} tokens are the same, "
            f"then behind {before} comes {self._side(self.parting.found)} with drafts, "
            f"{self._side(self.parting.wanted)} without"
        )

    def _side(self, tokens: list[int]) -> Side:
        return Side(tokens[0] if tokens else None, self.text.decode(tokens))


def compare(
    engine: Engine, prompt: Prompt, params: SamplingParams, tokens: Sequence[int]
) -> Verdict:
    """Write the text once more, without drafts, and compare its tokens with these."""
    plain = engine.generate(prompt, replace(params, num_draft_tokens=0))[0]
    assert engine.text is not None  # for the prompt is text
    return Verdict(len(tokens), parting(tokens, plain.tokens), engine.text)
