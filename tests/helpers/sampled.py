"""Outputs without a model: any allowed token may come next."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mlx_gemma_mtp.decode.constraint import Constraint, Mask
from mlx_gemma_mtp.text.calls import ToolCall
from mlx_gemma_mtp.text.channels import ChannelParser, Kind
from mlx_gemma_mtp.text.tokenizer import Text


def tokens_of(mask: Mask | None, size: int) -> list[int]:
    """The tokens that a mask allows."""
    if mask is None:
        return [*range(size)]
    bits = np.unpackbits(mask.view(np.uint8), bitorder="little")
    return [*map(int, np.flatnonzero(bits))]


def sample(
    rule: Constraint,
    rng: np.random.Generator,
    ends: Sequence[int],
    *,
    size: int = 2048,
    most: int = 3000,
    drafts: int = 0,
) -> list[int]:
    """Return the tokens of an output; the last one ends it, if there are fewer than `most`.

    drafts: so many are given along with most tokens, some of them allowed, and have no effect.
    """
    output: list[int] = []
    while len(output) < most:
        guesses: list[int] = []
        masks = rule.masks([])
        for _ in range(drafts):
            allowed = tokens_of(masks[-1], size)
            guesses.append(int(rng.choice(allowed if rng.random() < 0.7 else size)))
            following = rule.masks(guesses)
            assert all(same(*pair) for pair in zip(masks, following, strict=False))
            if len(following) <= len(guesses):
                break
            masks = following
        allowed = tokens_of(rule.masks(guesses)[0], size)
        assert allowed
        token = int(rng.choice(allowed))
        rule.accept([token])
        output.append(token)
        if token in ends:
            break
    return output


def same(one: Mask | None, other: Mask | None) -> bool:
    return one is other or (one is not None and other is not None and bool((one == other).all()))


def read(
    text: Text, output: Sequence[int], ends: Sequence[int], prompt: Sequence[int] = ()
) -> tuple[dict[Kind, str], list[ToolCall]]:
    """The text of an output by kind, and its calls."""
    parser = ChannelParser(text.stream(), prompt)
    pieces = []
    for token in output:
        pieces += [parser.end(token)] if token in ends else parser.add(token)
    found: dict[Kind, Any] = {"answer": "", "thought": "", "tool_call": ""}
    for piece in [*pieces, parser.finish()]:
        found[piece.kind] += piece.text
    return found, [piece.call for piece in pieces if piece.call]
