"""How fast a Mac could run a pair: predicted from others' measurements of its kernels.

    product(rows) = (bytes + 9/16 byte x weights x (cost(rows) - 1)) / bandwidth    if quantized
                  = max(bytes / bandwidth, 2 x weights x rows of whole tiles / compute)    if not
    experts = bytes of one x (token, expert) pairs / bandwidth    below 512 pairs in a layer
            = bytes of those chosen x tiles of 16 rows x cost(32) / 2 / bandwidth    from there on
    attention = (bytes of sliding layers + 3 x bytes of full layers) / bandwidth
    pass(rows) = (product + experts + attention) / share + launches x seconds of a launch
    round = the target's pass + the draft steps
    tokens/s = rows x (1 + p1 + p1 p2 + ... + p1 ... pK) / round with K drafts of every row

with bytes and weights from `floor`, cost and launches from `metal`, pi the chance that draft i is
accepted if those before it are, and one share for all chips, set by `reported`. Doesn't know heat,
low power mode, prefill, nor sampling, which is small next to the rest.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

from mlx_gemma_mtp import device, memory
from mlx_gemma_mtp.decode.depth import MOST
from mlx_gemma_mtp.errors import UsageError
from mlx_gemma_mtp.files import hub, weights
from mlx_gemma_mtp.files.find import find_pair
from mlx_gemma_mtp.files.names import is_local, no_such
from mlx_gemma_mtp.files.published import size_of, size_within
from mlx_gemma_mtp.model.config import DecoderConfig
from mlx_gemma_mtp.model.drafter import Drafter
from mlx_gemma_mtp.model.target import Target

from . import metal
from .chips import Chip
from .floor import Floor, Work, expert_share
from .synthetic import expected_tokens, random_pair

# The share of its maker's bandwidth and compute that a chip reaches apart from launches: fitted to
# plain decoding of one row on the Macs of reported.json, where it is the median machine's.
SHARE = 0.78


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
    counts = range(MOST + 1 if planned.pair.drafter is not None else 1)
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
) -> float:
    """Tokens per second of rows of these lengths together, by the formulas above."""
    tokens = len(lengths) * (num_draft_tokens + 1)
    seconds = predicted_round(planned.floor, chip, lengths, tokens, num_draft_tokens).seconds()
    return len(lengths) * expected_tokens(accept, num_draft_tokens) / seconds


class RoundTime(NamedTuple):
    """Seconds of a round: of its kernels with all bandwidth and compute, and of its launches."""

    kernels: float
    launches: float

    def seconds(self, share: float = SHARE) -> float:
        """Seconds of the round with this share of bandwidth and compute."""
        return self.kernels / share + self.launches


def predicted_round(
    floor: Floor, chip: Chip, lengths: Sequence[int], num_tokens: int, num_steps: int
) -> RoundTime:
    """A round of rows of these lengths, by the formulas above.

    num_tokens: N, that the target's pass verifies, of all rows. num_steps: of the drafter.
    """
    kernels, target = metal.kernels(chip.name), floor.target
    per_layer = metal.LAUNCHES_PER_LAYER
    seconds = _product(floor.dense, num_tokens, chip) + _attention(floor, target, lengths, chip)
    if target.num_experts:
        per_layer = metal.LAUNCHES_PER_MIXTURE_LAYER
        seconds += _experts(floor, num_tokens, chip)
    launches = per_layer * len(target.layers)
    if num_steps:
        assert floor.drafter is not None
        step = _product(floor.draft_step, len(lengths), chip)
        step += _attention(floor, floor.drafter, lengths, chip)
        seconds += num_steps * step
        launches += num_steps * metal.LAUNCHES_PER_DRAFT
    return RoundTime(seconds, launches * kernels.launch_seconds)


def _product(weights: Work, rows: int, chip: Chip) -> float:
    """Seconds of rows of activations with these weights, all bandwidth and compute given."""
    kernels, (num_bytes, numbers) = metal.kernels(chip.name), weights
    if num_bytes < 2 * numbers:  # quantized
        more = metal.FOUR_BITS * numbers * (kernels.cost(rows) - 1)
        return (num_bytes + more) / chip.bandwidth
    reads = num_bytes / chip.bandwidth
    if rows <= kernels.few_rows:
        return reads * (metal.FEW_ROWS_COST if rows > 1 else 1)
    tiles = math.ceil(rows / metal.BFLOAT16_TILE) if rows > 1 else 1 / metal.BFLOAT16_TILE
    return max(reads, 2 * numbers * tiles * metal.BFLOAT16_TILE / chip.compute)


def _experts(floor: Floor, rows: int, chip: Chip) -> float:
    """Seconds of the experts of all layers, all bandwidth given. Routing counts as even."""
    config = floor.target
    pairs = rows * config.top_k_experts
    if pairs < metal.SORTED_PAIRS:
        return pairs * floor.experts.bytes / config.num_experts / chip.bandwidth
    chosen = floor.experts.bytes * expert_share(config, rows)
    tiles = math.ceil(pairs / config.num_experts / metal.EXPERT_TILE)
    tile = metal.kernels(chip.name).cost(metal.TILE) * metal.EXPERT_TILE / metal.TILE
    return chosen * tiles * tile / chip.bandwidth


def _attention(floor: Floor, config: DecoderConfig, lengths: Sequence[int], chip: Chip) -> float:
    """Seconds of the attention of a model's layers, all bandwidth given."""
    sliding = floor.attention(config, lengths, "sliding_attention").bytes
    full = floor.attention(config, lengths, "full_attention").bytes
    return (sliding + metal.FULL_ATTENTION_COST * full) / chip.bandwidth


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
