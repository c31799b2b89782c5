"""Other engines to compare with, on our arrays: mlx-lm and mlx-vlm.

In the repository only, not in the wheel. Each has a file that makes it a Peer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from mlx_gemma_mtp.engine.worker import mlx_worker

from ..subject import Opened
from ..turn import Rounds

ENDLESS = 1_000_000  # tokens that a peer may decode; it is stopped before
# Of each prompt at once; ours takes up to 2,048 of all together. Their 2,048 doesn't fit into 80 GB
# with 8 rows of 31B.
PREFILL_STEP = 512

# Given the numbers of rows and drafts of a round: how many drafts each row accepts.
Draw = Callable[[int, int], list[int]]


class Peer(Protocol):
    """Another engine. Its MLX work happens on the thread that plays its rounds."""

    name: str  # with its version
    can_draft: bool

    def rounds(self, prompts: list[list[int]], num_draft_tokens: int, draw: Draw | None) -> Rounds:
        """Decode greedily, past the ends of turns.

        num_draft_tokens: 0 unless `can_draft`. draw: how many drafts are accepted with random
        weights.
        """


def open_peers(names: Sequence[str], opened: Opened) -> list[Peer]:
    """Peers with the pair's arrays."""
    from .mlx_lm import MlxLm
    from .mlx_vlm import MlxVlm

    target, drafter = opened.pair.target, opened.pair.drafter

    def make(name: str) -> Peer:
        return MlxLm(target) if name == "mlx-lm" else MlxVlm(target, drafter)

    return mlx_worker().run(lambda: [make(name) for name in names])


def batched(generator: Any, uids: Sequence[int], answers: Callable[[], Iterable[Any]]) -> Rounds:
    """Rounds of a BatchGenerator whose rows have these ids. answers: plays its next step."""
    rows = {uid: row for row, uid in enumerate(uids)}
    try:
        while True:
            new: list[list[int]] = [[] for _ in rows]
            for answer in answers():
                new[rows[answer.uid]].append(answer.token)
            if any(new):  # not while it prefills
                yield new
    finally:
        generator.close()
