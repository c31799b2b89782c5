"""The options that commands share: which models, and how to sample."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from mlx_gemma_mtp.errors import UsageError

if TYPE_CHECKING:
    from mlx_gemma_mtp import Engine

Model = Annotated[
    str, typer.Option(help="A folder, a Hub name, or demo: the pair that comes with mgm.")
]
Drafter = Annotated[
    str, typer.Option(help="A folder or Hub name; auto: <model>-assistant if there is one; none.")
]
Bits = Annotated[int | None, typer.Option(help="Quantize to 4 or 8 bits while loading.")]
MaxTokens = Annotated[int | None, typer.Option(help="Most tokens to generate [the context].")]
Temperature = Annotated[float | None, typer.Option(help="0 is greedy [the model's].")]
TopK = Annotated[int | None, typer.Option(help="0 is off [the model's].")]
TopP = Annotated[float | None, typer.Option(help="1 is off [the model's].")]
Seed = Annotated[int | None, typer.Option(help="Same seed, same text [a fresh one].")]
NumDraftTokens = Annotated[str, typer.Option(help="Drafts per round: auto, or 0 (plain) to 15.")]


def open_engine(model: str, drafter: str, bits: int | None) -> Engine:
    """Load what the options name; says so where there is nothing to draft with."""
    from mlx_gemma_mtp import load

    engine = load(model, None if drafter == "none" else drafter, bits=bits)
    if drafter == "auto" and not engine.has_drafter:
        print(
            f"{model}: no drafter beside it or in the cache, decoding plainly; "
            "--drafter names one, and downloads it if need be",
            file=sys.stderr,
        )
    return engine


def draft_count(num_draft_tokens: str) -> int | Literal["auto"]:
    """--num-draft-tokens as SamplingParams takes it. Raises UsageError."""
    if num_draft_tokens == "auto":
        return "auto"
    if not num_draft_tokens.isdecimal():
        raise UsageError(f'--num-draft-tokens must be "auto" or a number, not {num_draft_tokens!r}')
    return int(num_draft_tokens)
