"""Other engines to compare with, on our arrays: mlx-lm and mlx-vlm.

In the repository only, not in the wheel. Each has a file that makes it a Peer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from typing import NamedTuple, Protocol

from mlx_gemma_mtp import device
from mlx_gemma_mtp.engine.worker import mlx_worker

from ..record import Window
from ..subject import Opened

ENDLESS = 1_000_000  # tokens that a peer may decode; it is stopped before
# Of a prompt at once, as ours. Their 2,048 doesn't fit into 80 GB with 8 rows of 31B.
PREFILL_STEP = 512

# Given the numbers of rows and drafts of a round: how many drafts each row accepts.
Draw = Callable[[int, int], list[int]]
# A peer at work. Each step plays one round and yields the new tokens of each row, none for a row
# whose prompt isn't done. A row's first step yields the token after its prompt.
Rounds = Generator[list[list[int]], None, None]


class Played(NamedTuple):
    """tokens: all of each row, those outside the window too."""

    window: Window
    tokens: list[list[int]]


class Peer(Protocol):
    """Another engine. Its MLX work happens on the thread that calls it."""

    name: str  # with its version
    can_draft: bool

    def decode(
        self,
        prompts: list[list[int]],
        num_draft_tokens: int,
        *,
        tokens: int,
        warm_up: int,
        draw: Draw | None,
    ) -> Played:
        """Decode greedily until the window holds `tokens` tokens of every row on average.

        warm_up: rounds between the last row's first token and the window. draw: how many drafts are
        accepted with random weights. No row ends before. Raises UsageError for drafts that the peer
        can't make.
        """


def open_peers(names: Sequence[str], opened: Opened) -> list[Peer]:
    """Peers with the pair's arrays. Raises UsageError if one isn't installed."""
    from .mlx_lm import MlxLm
    from .mlx_vlm import MlxVlm

    # Kernels must not read the halves of joined experts from views. With random weights it doesn't
    # matter; views are as fast with CUDA, and 26B in bfloat16 leaves no room for copies there.
    random = opened.draws is not None and opened.bits is None
    copy_experts = not (random and device.backend() == "cuda")
    target, drafter = opened.pair.target, opened.pair.drafter

    def make(name: str) -> Peer:
        if name == "mlx-lm":
            return MlxLm(target, copy_experts=copy_experts)
        return MlxVlm(target, drafter, copy_experts=copy_experts)

    return mlx_worker().run(lambda: [make(name) for name in names])


def timed(
    played: Rounds,
    prompts: Sequence[Sequence[int]],
    *,
    tokens: int,
    warm_up: int,
    clock: Callable[[], float] = time.perf_counter,
) -> Played:
    """Play and time rounds that haven't started yet, as `Peer.decode` says."""
    rows: list[list[int]] = [[] for _ in prompts]

    def play() -> int:
        new = next(played)
        for row, of_row in zip(rows, new, strict=True):
            row += of_row
        return sum(map(len, new))

    begin = clock()
    while not all(rows):
        play()
    prefilled = clock()
    for _ in range(warm_up):
        play()
    num_tokens = num_rounds = 0
    start = clock()
    while num_tokens < tokens * len(prompts):
        num_tokens += play()
        num_rounds += 1
    seconds, prompt_tokens = clock() - start, sum(map(len, prompts))
    window = Window(num_tokens, num_rounds, seconds, prompt_tokens, prefilled - begin)
    return Played(window, rows)
