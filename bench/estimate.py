"""How fast a chip could run a pair: predicted from bandwidth and compute, not measured.

    pass = max(bytes / bandwidth, 2 x multiply-adds / compute) / share
    round(K) = the target's pass over K + 1 tokens of every row + K draft steps
    tokens of a round, per row = 1 + p1 + p1 p2 + ... + p1 ... pK
    tokens/s = rows x tokens of a round, per row / round(K)

with bytes and multiply-adds from `floor`, and pi the chance that draft i is accepted if those
before it are. Doesn't know kernels, whose cost jumps at certain numbers of rows, nor the host's
work, heat or sampling: if those decide, as for small models on fast chips, it promises too much.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from mlx_gemma_mtp import device, memory
from mlx_gemma_mtp.errors import UsageError
from mlx_gemma_mtp.files import hub, weights
from mlx_gemma_mtp.files.find import find_pair
from mlx_gemma_mtp.files.names import is_local, no_such
from mlx_gemma_mtp.files.published import size_of, size_within
from mlx_gemma_mtp.model.drafter import Drafter
from mlx_gemma_mtp.model.target import Target

from .chips import Chip
from .floor import Floor, Work
from .synthetic import expected_tokens, random_pair

# The share of its maker's bandwidth and compute that a chip is assumed to reach. Rounds of 31B in
# bfloat16 on an H100 (3.35 TB/s by its datasheet) reached 0.51 to 0.73, median 0.59; on another
# such machine 0.52. See README.md.
SHARE = 0.55

MOST_DRAFTS = 8


class Planned(NamedTuple):
    """A pair that isn't loaded. bits: it is quantized to while loading."""

    name: str
    bits: int | None
    floor: Floor
    pair: memory.Pair


class Prediction(NamedTuple):
    """For one batch, with the same context in every row.

    tokens_per_second: of all rows, by number of draft tokens from 0. best: that number. needs:
    bytes. fits: GB of the Macs with the chip that have them for the GPU.
    """

    batch: int
    tokens_per_second: tuple[float, ...]
    best: int
    needs: int
    fits: tuple[int, ...]


def predict(
    planned: Planned, chip: Chip, *, batch: int, context: int, accept: Sequence[float]
) -> Prediction:
    """The prediction for the last of `context` positions. Raises UsageError.

    accept: the chance of each draft if those before it are accepted; the last one repeats.
    """
    most = planned.pair.target.max_position_embeddings
    if not 0 < context <= most:
        raise UsageError(f"--context must be 1 to {most:,} for {planned.name}, not {context}")
    counts = range(MOST_DRAFTS + 1 if planned.pair.drafter is not None else 1)
    speeds = tuple(speed(planned, chip, [context] * batch, count, accept) for count in counts)
    needs = planned.pair.needs(context, batch)
    fits = tuple(device.macs_with(needs, chip.sizes))
    return Prediction(batch, speeds, speeds.index(max(speeds)), needs, fits)


def speed(
    planned: Planned,
    chip: Chip,
    lengths: Sequence[int],
    num_draft_tokens: int,
    accept: Sequence[float],
    share: float = SHARE,
) -> float:
    """Tokens per second of rows of these lengths together, by the formulas above."""

    def seconds(work: Work) -> float:
        return max(work.bytes / chip.bandwidth, 2 * work.products / chip.compute)

    total = seconds(planned.floor.verify(lengths, num_draft_tokens + 1))
    if num_draft_tokens:
        total += num_draft_tokens * seconds(planned.floor.draft(lengths))
    return share * len(lengths) * expected_tokens(accept, num_draft_tokens) / total


def plans(model: str, *, bits: int | None = None) -> list[Planned]:
    """What a name may mean: a size without bits is in bfloat16, 8 and 4 bits; else it is one.

    Raises as `plan`.
    """
    is_size = bits is None and not is_local(model) and size_of(model) is not None
    return [plan(model, bits=each) for each in ((None, 8, 4) if is_size else (bits,))]


def plan(model: str, *, bits: int | None = None) -> Planned:
    """A size such as e4b, a folder or a Hub name, with its drafter; as `--model` takes them.

    bits: 4 or 8 quantizes as `load` does. Reads no weights and downloads nothing: of a Hub name
    that is not downloaded the size and the bits count. Raises UsageError, ModelNotFoundError,
    CheckpointError.
    """
    target: Target
    drafter: Drafter | None
    if is_local(model) or ("/" in model and hub.from_cache(model)):
        target, drafter = weights.open_pair(*find_pair(model, "auto"), bits=bits)
        return Planned(model, bits, Floor(target, drafter), memory.Pair.of(target, drafter))
    on_hub = re.fullmatch(r"[\w-]+/[\w.-]+", model)
    size = size_within(model) if on_hub else size_of(model)
    if size is None:
        raise no_such(model)
    if bits is None and (named := re.search(r"([48])-?bit", model)):
        bits = int(named[1])
    target, drafter = random_pair(size.kind, bits=bits)
    name = model if on_hub else size.kind
    return Planned(name, bits, Floor(target, drafter), memory.Pair.of(target, drafter))
