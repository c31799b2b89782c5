"""What the rows of an engine may take of memory and context, and which prompts fit in that.

Knows nothing of what is running.
"""

from __future__ import annotations

import mlx.core as mx
from rich.filesize import decimal

from mlx_gemma_mtp import device
from mlx_gemma_mtp.errors import NotEnoughMemoryError, PromptTooLongError
from mlx_gemma_mtp.memory import LOAD_CONTEXT, Pair


class Budget:
    """What the rows of an engine may take.

    most: bytes, with the weights; None for no limit. context: the most tokens of a prompt and its
    answer; None for the model's maximum.
    """

    def __init__(self, pair: Pair, most: int | None = None, context: int | None = None) -> None:
        self.most = most
        self.pair = pair
        self._contexts = dict[int, int]()  # by batch size
        model = pair.target.max_position_embeddings
        allowed = model if context is None else min(context, model)
        self.context = min(self._longest(1), allowed)
        self._memory_decides = self.context < allowed

    def fits(self, context: int, batch: int) -> bool:
        """Return whether this many rows of up to `context` positions fit."""
        return self.most is None or context <= min(self.context, self._longest(batch))

    def left(self, context: int, batch: int) -> int | None:
        """Return the bytes that this many rows of up to `context` positions leave; None: any."""
        return None if self.most is None else self.most - self.pair.needs(context, batch)

    def check_prompt(self, num_tokens: int, *, counted: bool = True) -> None:
        """Raise PromptTooLongError unless a prompt leaves room for an answer.

        counted: False if it may have more tokens.
        """
        if num_tokens < self.context:
            return
        room, instead = "an answer", ""
        if self.most is not None and self._memory_decides:
            room += f" in the {decimal(self.most)} of memory that the engine may take"
            instead = ", or load with a higher memory_limit"
        if not counted:
            room += f"; it was not counted, but has at least {num_tokens} tokens"
        raise PromptTooLongError(
            # Claude Code reads both numbers from these words, and shortens its conversation.
            f"prompt is too long: {num_tokens} tokens > {self.context - 1} maximum, which leaves "
            f"room for {room}: shorten it{instead}"
        )

    def check(self, context: int, batch: int) -> None:
        """Raise NotEnoughMemoryError unless these rows fit."""
        if self.most is not None and not self.fits(context, batch):
            raise NotEnoughMemoryError(
                f"{batch} x {context:,} tokens of context need "
                f"{decimal(self.pair.needs(context, batch))} of memory, but the engine may take "
                f"{decimal(self.most)}: shorten the request, or load with a higher memory_limit"
            )

    def check_useful(self) -> None:
        """Raise NotEnoughMemoryError unless a prompt of one token and its answer fit."""
        if self.most is not None and self.context < 2:
            raise NotEnoughMemoryError(
                f"memory_limit is {decimal(self.most)}, but the model needs "
                f"{decimal(self.pair.needs(LOAD_CONTEXT, 1))} with {LOAD_CONTEXT:,} tokens of "
                "context: load with a higher limit"
            )

    def _longest(self, batch: int) -> int:
        if self.most is None:
            return self.pair.target.max_position_embeddings
        if batch not in self._contexts:
            longest = self.pair.longest_context(batch=batch, have=self.most)
            self._contexts[batch] = longest
        return self._contexts[batch]


def room_for(pair: Pair) -> int:
    """Return the bytes that a loaded pair may take on this machine, its weights included.

    What other models of this process hold is not available.
    """
    others = mx.get_active_memory() - pair.target_bytes - pair.drafter_bytes
    return device.available() - max(0, others)
