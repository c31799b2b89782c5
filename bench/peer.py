"""Another engine to compare with: what the benchmark asks of it, and how its rounds are timed.

Knows no engine; each has a file of its own that makes it a Peer.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from time import perf_counter
from typing import NamedTuple, Protocol

from .window import Window

ENDLESS = 1_000_000  # tokens that a peer may decode, never reached: it is stopped from outside
# Of a prompt at once, as ours. Theirs is 2,048, at which 8 rows of 31B do not fit into 80 GB.
PREFILL_STEP = 512

# Given the numbers of rows and of drafts in a round: how many drafts each row accepts.
Draw = Callable[[int, int], list[int]]
# A peer at work: each step plays one round and yields the new tokens of each row, none for a row
# whose prompt is not done yet. A row's first step yields the token that its prompt ends in.
Rounds = Generator[list[list[int]], None, None]


class PeerSample(NamedTuple):
    """What a turn showed. texts: all tokens of each row, those outside the window too."""

    window: Window
    texts: list[list[int]]


class Peer(Protocol):
    """Another engine on our arrays. Its MLX work happens on the thread that calls it."""

    name: str  # with its version
    can_draft: bool

    def decode(
        self,
        prompts: list[list[int]],
        num_drafts: int,
        *,
        tokens: int,
        warm_up: int,
        draw: Draw | None,
    ) -> PeerSample:
        """Decode greedily until the window holds `tokens` tokens of every row on average.

        num_drafts: in every round; 0 is plain decoding. warm_up: rounds between the last row's
        first token and the window. draw: how many drafts are accepted where the drafter is noise;
        None leaves it to the engine. No text ends. Raises UsageError for drafts of a peer that
        cannot draft.
        """


def timed(
    played: Rounds, prompts: Sequence[Sequence[int]], *, tokens: int, warm_up: int
) -> PeerSample:
    """Play rounds that have not begun yet, as `Peer.decode` says, and time them."""
    texts: list[list[int]] = [[] for _ in prompts]

    def play() -> int:
        new = next(played)
        for text, of_row in zip(texts, new, strict=True):
            text += of_row
        return sum(map(len, new))

    begun = perf_counter()
    while not all(texts):
        play()
    prefilled = perf_counter()
    for _ in range(warm_up):
        play()
    in_window = num_rounds = 0
    start = perf_counter()
    while in_window < tokens * len(prompts):
        in_window += play()
        num_rounds += 1
    end = perf_counter()
    num_prompt_tokens = sum(map(len, prompts))
    window = Window(in_window, num_rounds, end - start, num_prompt_tokens, prefilled - begun)
    return PeerSample(window, texts)
