"""How two targets predict the same text: perplexity of each, and divergence of one from the other.

Both are streamed, so neither has to fit in memory: it holds one layer of one of them at a time,
then both heads and the logits of a few positions. Doesn't know where the text comes from.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import mlx.core as mx
import numpy as np

from mlx_gemma_mtp.decode.sampling import capped
from mlx_gemma_mtp.model.target import Target
from mlx_gemma_mtp.progress import Update

from .passage import Document
from .streamed import final_hidden

NUM_POSITIONS = 4096  # go through the layers together; for more, the weights are read again
NUM_LOGITS = 2**23  # of one model, in memory at a time


@dataclass(frozen=True)
class TextQuality:
    """How well one part of the text is predicted. Divergence is KL(source || quantized), nats."""

    text: str
    tokens: int  # predicted
    source_perplexity: float
    perplexity: float
    mean_divergence: float
    divergence_99: float  # 99th percentile
    same_top: float  # share of tokens with the same most likely token in both


def compare(
    source: Path,
    quantized: Path,
    documents: Sequence[Document],
    on_progress: Update = lambda *_: None,
    *,
    num_positions: int = NUM_POSITIONS,
    num_logits: int = NUM_LOGITS,
) -> list[TextQuality]:
    """Compare both by part of the text, on the worker's thread. Raises CheckpointError."""
    scores: dict[str, list[np.ndarray]] = {}
    for group in _groups(documents, num_positions):
        longest = max(len(document.tokens) for document in group)
        tokens = mx.array([one.tokens + [0] * (longest - len(one.tokens)) for one in group])
        targets, hidden = [], []
        for folder, what in ((source, "source"), (quantized, "quantized")):
            target, states = final_hidden(folder, tokens, partial(on_progress, what))
            targets.append(target)
            hidden.append(states)
        for row, document in enumerate(group):
            first, last = document.first, len(document.tokens)
            predicting = [states[row, first - 1 : last - 1] for states in hidden]  # [N, H]
            found = _scores(targets, predicting, tokens[row, first:last], num_logits)
            scores.setdefault(document.part, []).append(found)
    return [_summary(part, np.concatenate(of_part, axis=1)) for part, of_part in scores.items()]


def _scores(
    targets: Sequence[Target], hidden: Sequence[mx.array], tokens: mx.array, num_logits: int
) -> np.ndarray:
    """Compare the predictions from two hidden states [N, H] for the actual next tokens [N].

    Returns float64 [4, N]: surprise (-log p) in both, the divergence, and 1 for the same top token.
    """
    size = max(1, num_logits // targets[0].config.vocab_size)
    slices = []
    for at in range(0, len(tokens), size):
        p, q = (
            _log_probabilities(target, states[at : at + size])  # [size, V]
            for target, states in zip(targets, hidden, strict=True)
        )
        actual = tokens[at : at + size, None]
        surprises = (-mx.take_along_axis(logs, actual, axis=-1)[:, 0] for logs in (p, q))
        divergence = (mx.exp(p) * (p - q)).sum(axis=-1)
        same_top = mx.argmax(p, axis=-1) == mx.argmax(q, axis=-1)
        found = mx.stack([*surprises, divergence, same_top.astype(p.dtype)])
        slices.append(np.array(found, np.float64))
    return np.concatenate(slices, axis=1)


def _log_probabilities(target: Target, hidden: mx.array) -> mx.array:
    logits = capped(target.logits(hidden), target.config.final_logit_softcapping)
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)


def _summary(part: str, scores: np.ndarray) -> TextQuality:
    source_surprise, surprise, divergence, same_top = scores
    return TextQuality(
        part,
        tokens=len(surprise),
        source_perplexity=float(np.exp(source_surprise.mean())),
        perplexity=float(np.exp(surprise.mean())),
        mean_divergence=float(divergence.mean()),
        divergence_99=float(np.percentile(divergence, 99)),
        same_top=float(same_top.mean()),
    )


def _groups(documents: Sequence[Document], num_positions: int) -> Iterator[list[Document]]:
    """Yield documents that go through the layers together: at most `num_positions`, or one."""
    group: list[Document] = []
    for document in documents:
        longest = max(len(one.tokens) for one in (*group, document))
        if group and longest * (len(group) + 1) > num_positions:  # padding included
            yield group
            group = []
        group.append(document)
    if group:
        yield group
