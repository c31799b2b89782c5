"""Rounds whose rows verify different numbers of drafts, at random."""

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from helpers.checkpoints import VOCAB
from helpers.forced import Row
from helpers.rounds import MOST, Models, after_prompts, play
from mlx_gemma_mtp.decode.round import Copies
from mlx_gemma_mtp.decode.sampling import row_settings
from mlx_gemma_mtp.model.packing import Packing, packing_of

MOST_POSITIONS = 8


def some_counts(rng: np.random.Generator, size: int, most: int) -> list[int]:
    """A random number of tokens for each row, at least one in all."""
    counts = rng.integers(0, most + 1, size)
    if not counts.any():
        counts[rng.integers(size)] = 1
    return [int(count) for count in counts]


def packed(rng: np.random.Generator, counts: Sequence[int], most: int) -> Packing | None:
    """Into more positions and more width than they need, or not."""
    num_positions = int(rng.integers(max(counts), most + 1))
    width = sum(counts) + int(rng.integers(0, 4))
    return packing_of(counts, num_positions, width)


def some_drafts(
    rng: np.random.Generator, row: Row, done: int, num_drafts: int
) -> tuple[list[int], int]:
    """Drafts after the first `done` tokens of a row, and how many of them are right in a row."""
    right = right_drafts(row, done, num_drafts)
    is_right = rng.random(num_drafts) < 0.85
    drafts = np.where(is_right, right, (right + rng.integers(1, VOCAB, num_drafts)) % VOCAB)
    return drafts.tolist(), int(np.cumprod(is_right).sum())


def right_drafts(row: Row, done: int, num_drafts: int) -> NDArray[np.int64]:
    """Return the tokens after the first `done` of a row, then zeros."""
    return np.array([*row.tokens, *[0] * num_drafts])[done : done + num_drafts]


def some_copies(
    rng: np.random.Generator, rows: Sequence[Row], done: Sequence[int], drafts: Sequence[list[int]]
) -> tuple[Copies, list[int]]:
    """Stretches that continue with these drafts, and how many drafts of each count.

    Some rows have none, and in some another token than the newest was expected.
    """
    length, tokens, starts, counting = int(rng.integers(4, 10)), list[list[int]](), [], []
    for row, count, own in zip(rows, done, drafts, strict=True):
        text = [*row.prompt, *row.tokens[:count]]
        back, fate = int(rng.integers(0, 3)), rng.random()
        stretch = [*text[len(text) - 1 - back :], *own][: int(rng.integers(back + 1, length + 1))]
        if fate < 0.15:
            stretch[back] = (stretch[back] + 1) % VOCAB
        starts.append(-1 if fate > 0.85 else len(text) - 1 - back)
        counting.append(len(stretch) - 1 - back if 0.15 <= fate <= 0.85 else 0)
        tokens.append([*stretch, *[-1] * (length - len(stretch))])
    return Copies(mx.array(tokens, mx.int32), mx.array(starts, mx.int32)), counting


def assert_plain(
    models: Models,
    rows: Sequence[Row],
    num_tokens: int,
    suppressed: Sequence[int],
    rng: np.random.Generator,
) -> None:
    """Play rounds with random divisions and drafts until every row has num_tokens of its tokens.

    Drafts are the drafter's, right or wrong by chance, or copies. Sliding layers have the smallest
    ring.
    """
    size = len(rows)
    at = after_prompts(models, rows, room=num_tokens + 2 * MOST, most=MOST_POSITIONS)
    suppress = mx.array(list(suppressed), mx.int32) if suppressed else None
    settings = row_settings([row.params.resolved({}) for row in rows], suppress)
    done = [1] * size
    while min(done) < num_tokens:
        counts = some_counts(rng, size, MOST_POSITIONS)
        counts = [count * (one < num_tokens) for one, count in zip(done, counts, strict=True)]
        if not any(counts):
            continue
        packing = packed(rng, counts, MOST_POSITIONS)
        num_drafts = (max(counts) if packing is None else packing.places.shape[1]) - 1
        most = np.array(counts) - 1
        pairs = zip(rows, done, strict=True)
        drafts, hits = zip(*(some_drafts(rng, *pair, num_drafts) for pair in pairs), strict=True)
        source, copies, functions = int(rng.integers(4)), None, dict[str, Any]()
        if source == 0:  # the drafter, which may have fewer steps
            steps = num_drafts if packing is None else int(rng.integers(0, num_drafts + 1))
            played = play(models, at, settings, most.tolist(), steps, packing)
        else:
            if source == 1:
                copies, counting = some_copies(rng, rows, done, drafts)
                hits = np.minimum(hits, counting)
                # What comes from elsewhere is wrong.
                right = [right_drafts(*pair, num_drafts) for pair in zip(rows, done, strict=True)]
                drafts = tuple(((own + 1) % VOCAB).tolist() for own in right)
            functions["draft"] = lambda *_, drafts=drafts: mx.array(drafts, mx.int32).reshape(
                size, -1
            )
            played = play(
                models, at, settings, most.tolist(), num_drafts, packing, copies, **functions
            )
            assert played.accepted.tolist() == np.minimum(hits, most).tolist()
        accepted = played.accepted.tolist()
        for row, (tokens, count) in enumerate(zip(played.tokens.tolist(), accepted, strict=True)):
            expected = rows[row].tokens[done[row] : done[row] + count + 1]
            assert tokens[: count + 1] == expected, f"row {row} after {done[row]} tokens"
            done[row] += count + 1
