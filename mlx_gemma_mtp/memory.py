"""What a pair, a context and a batch need at their peak, and what this machine has for them.

Counted before anything is loaded: from configs, from weights that are not read yet, and from what
prefill, joining and rounds hold at once. Knows nothing of what is running.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx
from rich.filesize import decimal

from mlx_gemma_mtp import device
from mlx_gemma_mtp.decode.costs import WIDTHS
from mlx_gemma_mtp.decode.params import MAX_DRAFT_TOKENS
from mlx_gemma_mtp.errors import NotEnoughMemoryError
from mlx_gemma_mtp.files import weights
from mlx_gemma_mtp.files.published import best_fit
from mlx_gemma_mtp.files.quantization import is_quantized
from mlx_gemma_mtp.files.tensors import read_tensors
from mlx_gemma_mtp.files.weights import num_bytes
from mlx_gemma_mtp.model.cache import SLOT_STEP, KVCache, capacity_for
from mlx_gemma_mtp.model.config import DrafterConfig, TargetConfig
from mlx_gemma_mtp.model.drafter import Drafter
from mlx_gemma_mtp.model.pass_bytes import prompt_bytes, round_bytes
from mlx_gemma_mtp.model.target import Target

LOAD_CONTEXT = 2048  # tokens of context that must fit, or a model is not loaded

# The float32 copies of the logits in `sampling.choose` if it sorts the whole vocabulary: capped,
# divided, ranked, as probabilities, summed up, filtered, the keys and bits of the noise, their sum.
# Five more with penalties: counts of each position and what is made of them. Biases and masks, a
# megabyte per row at most, and log-probabilities, which come after the sorting, fit in that.
LOGITS_COPIES = 15


@dataclass(frozen=True)
class Limits:
    """What an engine may hold, and how it paces its work.

    chunks: sizes in which prompts are read, in tokens of a pass, ascending. The smallest is also
    what the shortest prompt counts for. decoding_chunk: the largest while rows are decoding.
    pause_seconds: how long they may wait for a chunk. start_seconds: how long rows that have only
    their first token may wait for the prompts that came with them.
    max_draft_tokens: the most drafts of a round. snapshots: what a session keeps, the end of the
    last prompt and of the one before it. rollback: how many tokens a session can go back without
    one; no fewer than the smallest chunk, because its cache holds the padding of a pass. opening:
    the most tokens with which templates open the model's turn, an empty thought included; a prompt
    can be kept up to there once it is read, see `Prefixes`. slot_step: see `KVCache.empty`.
    shrink_after: rounds with spare rows before the batch shrinks, because that copies the cache.
    overlap: False to read each round before the next one starts, so that its parts can be timed.
    """

    chunks: tuple[int, ...] = (64, 128, 256, 512, 1024, 2048)
    decoding_chunk: int = 512
    pause_seconds: float = 0.25
    start_seconds: float = 10.0
    max_draft_tokens: int = MAX_DRAFT_TOKENS
    snapshots: int = 2
    rollback: int = 512
    opening: int = 16
    slot_step: int = SLOT_STEP
    shrink_after: int = 16
    overlap: bool = True

    @property
    def most_beyond(self) -> int:
        """The most positions that a row writes beyond the end of its output.

        Those of the round that ended it, and of one dispatched before that was known: see `Batch`.
        A session that takes the row over still needs the window before the end.
        """
        return 2 * (self.max_draft_tokens + 1)


class Pair(NamedTuple):
    """A pair that is loaded, or as it will be.

    target_bytes, drafter_bytes: of the weights. dtype_bytes: of a number in activations, keys and
    values. loading: the most bytes held while it is loaded.
    """

    target: TargetConfig
    drafter: DrafterConfig | None
    target_bytes: int
    drafter_bytes: int
    dtype_bytes: int
    loading: int = 0

    @classmethod
    def of(cls, target: Target, drafter: Drafter | None) -> Pair:
        """Return the pair of these models. Evaluates nothing."""
        return cls(
            target.config,
            None if drafter is None else drafter.config,
            num_bytes(target),
            0 if drafter is None else num_bytes(drafter),
            target.dtype.size,
        )

    def needs(self, context: int, batch: int, sessions: int = 0) -> int:
        """Return the most bytes an engine holds for `batch` rows of up to `context` positions.

        context: of prompt and completion together; more than the model's maximum counts as that.
        sessions: how many conversations of that length are kept (`Engine.session`), including those
        in rows.

        The peak is the largest of four moments: prompts are read while other rows decode, their
        cache joins theirs, a round is played, a session gets its row. An upper bound if it depends
        on timing: it counts the largest passes over prompts and the most drafts of "auto", which a
        slow machine doesn't reach. Compared with measurements on MLX's CPU backend.
        """
        context = min(context, self.target.max_position_embeddings)
        limits = Limits()
        window, largest = self.target.sliding_window, limits.chunks[-1]
        empty = partial(
            KVCache.empty, self.target, dtype=mx.float32 if self.dtype_bytes == 4 else mx.bfloat16
        )
        rows = empty(
            batch,
            capacity=capacity_for(context + limits.most_beyond),
            most=limits.most_beyond,
        )
        capacity, chunk = capacity_for(context), min(largest, context)
        held = limits.rollback if sessions else min(0, context - window) + limits.opening
        prompt = empty(1, capacity=capacity, most=held)
        together = max(1, min(batch, largest // context))
        group = prompt
        if together > 1:
            group = empty(together, capacity=capacity, most=context - window)
        sliding = prompt.capacity("sliding_attention") * prompt.bytes_of("sliding_attention")
        kept = sessions * (prompt.nbytes + limits.snapshots * sliding)
        others = kept - prompt.nbytes if sessions else 0  # one of them lends its cache
        rows_then = rows.nbytes if batch > together else 0  # allocated after the first prompts
        if batch > max(together, 2):  # a prompt is overtaken by others, of as many tokens together
            rows_then += prompt.nbytes
        reading = others + rows_then + group.nbytes + prompt_bytes(group, context, chunk)
        # While a buffer is copied, old and new are both held.
        joining = others + rows_then + group.nbytes + max(keys.nbytes for keys in rows.keys)
        positions = limits.max_draft_tokens + 1
        most_tokens = min(batch * positions, WIDTHS[-1])
        logits = 4 * LOGITS_COPIES * most_tokens * self.target.vocab_size
        playing = others + rows.nbytes + max(round_bytes(rows, positions), logits)
        leaving = kept + rows.nbytes
        return self.target_bytes + self.drafter_bytes + max(reading, joining, playing, leaving)

    @property
    def needs_to_load(self) -> int:
        """Bytes to load it, and then to run it with LOAD_CONTEXT tokens of context."""
        return max(self.loading, self.needs(LOAD_CONTEXT, 1))

    def longest_context(self, *, batch: int, have: int, sessions: int = 0) -> int:
        """Return the longest context whose `needs` fit in `have` bytes; 0 if none does."""
        low, high = 0, self.target.max_position_embeddings
        while low < high:
            middle = (low + high + 1) // 2
            fits = self.needs(middle, batch, sessions) <= have
            low, high = (middle, high) if fits else (low, middle - 1)
        return low


def read_pair(
    folder: Path, beside: Path | None, *, bits: int | None = None, on_mac: bool = False
) -> Pair:
    """Return the pair in these folders, as `engine.load` would load it. Reads no weights.

    beside: the drafter's folder. on_mac: as it would be loaded with Metal. Raises CheckpointError,
    UsageError.
    """
    dtype = None if on_mac else weights.default_dtype()
    target, drafter = weights.open_pair(folder, beside, bits=bits, dtype=dtype)
    loading = weights.loading_bytes(target, folder)
    if drafter is not None and beside is not None:
        loading = max(loading, num_bytes(target) + weights.loading_bytes(drafter, beside))
    return Pair.of(target, drafter)._replace(loading=loading)


def check(
    need: int,
    have: int,
    what: str,
    *,
    ways: Iterable[tuple[str, int]] = (),
    limited: bool = False,
    instead: str = "use a smaller model",
    despite: str = "",
) -> None:
    """Raise NotEnoughMemoryError unless `need` bytes fit in `have`.

    what: the subject of the message. ways: alternatives with their bytes; those that fit are named.
    limited: True if memory_limit is what they must fit in. instead: what to do if none fits.
    despite: how to continue anyway.
    """
    if need <= have:
        return
    fitting = [f"{way} ({decimal(size)})" for way, size in ways if size <= have]
    size = decimal(max(have, 0))
    limit = f"memory_limit is {size}" if limited else f"{size} is available"
    raise NotEnoughMemoryError(
        f"{what} needs {decimal(need)} of memory, but {limit}: "
        + (f"{' or '.join(fitting)} would fit" if fitting else instead)
        + (f"; {despite}" if despite else "")
    )


def check_load(
    folder: Path,
    beside: Path | None,
    name: str,
    *,
    bits: int | None = None,
    most: int | None = None,
) -> None:
    """Raise NotEnoughMemoryError unless a pair can be loaded and then run with a modest context.

    beside: the drafter's folder. name: what people call the model. most: bytes that it may take.
    Memory that this process already holds is not available. Reads no weights. Raises
    CheckpointError, UsageError.
    """
    pair = read_pair(folder, beside, bits=bits)
    context = min(LOAD_CONTEXT, pair.target.max_position_embeddings)

    def ways() -> Iterator[tuple[str, int]]:
        if not is_quantized(read_tensors(folder)):
            for fewer in (8, 4):
                if bits is None or fewer < bits:
                    yield f"bits={fewer}", read_pair(folder, beside, bits=fewer).needs_to_load
            converted = read_pair(folder, beside, bits=4).needs(LOAD_CONTEXT, 1)
            yield "the output of `mgm convert --bits 4`", converted
        if beside is not None:
            yield "the model without its drafter", read_pair(folder, None, bits=bits).needs_to_load

    have = device.available() - mx.get_active_memory()
    limited = most is not None and most < have
    have = most if most is not None and limited else have
    size, in_bits = best_fit(have)
    instead, smaller = "use a smaller model", size.needs(in_bits)
    if smaller <= have:
        instead += f", such as {size.short} ({decimal(smaller)})"
    if limited:
        instead += ", or raise it"
    check(
        pair.needs_to_load,
        have,
        f"{name}, with {context:,} tokens of context,",
        ways=ways(),
        limited=limited,
        instead=instead,
        despite="" if limited else "force=True or --force loads it anyway",
    )
