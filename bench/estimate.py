"""How fast a chip could run a pair: predicted from bandwidth and compute, not measured.

A pass takes the longer of two times, and a round the sum of its passes:

    pass = max(bytes / bandwidth, 2 x multiply-adds / compute) / share
    round(K) = the target's pass over K + 1 tokens of every row + K draft steps
    tokens of a round, per row = 1 + p1 + p1 p2 + ... + p1 ... pK
    tokens/s = rows x tokens of a round, per row / round(K)

with bytes and multiply-adds from `floor` and pi the chance that draft i comes true if those before
it did. Experts: of E, k for each of T tokens, chosen evenly and independently, are
E (1 - (1 - k/E)^T) different ones, an upper bound: tokens of one text share more.

Knows nothing of kernels, whose cost jumps at certain numbers of rows, nor of the host's work, the
heat, or sampling: where those decide, as for small models on fast chips, it promises too much.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from mlx_gemma_mtp import device, memory
from mlx_gemma_mtp.engine.batch import SIZES
from mlx_gemma_mtp.errors import ModelNotFoundError, UsageError
from mlx_gemma_mtp.files import hub
from mlx_gemma_mtp.files.checkpoint import (
    drafter_bits,
    fill,
    open_arrays,
    quantize,
    read_config,
    read_drafter_config,
    read_target_config,
)
from mlx_gemma_mtp.model.config import TargetConfig, check_pair
from mlx_gemma_mtp.model.drafter import Drafter
from mlx_gemma_mtp.model.target import Target

from .chips import Chip
from .drawn import Draws
from .floor import Floor
from .synthetic import TARGETS, random_pair

# How much of its maker's bandwidth and compute a chip is taken to reach. Rounds of 31B in bfloat16
# on an H100, of 3.35 TB/s by its datasheet, reached 0.51 (batch 8, 4 drafts) to 0.73 (batch 1,
# plain) of it, in the median 0.59 (see results/), and 0.52 on another such machine.
SHARE = 0.55

MOST_DRAFTS = 8
# The chances in the runs of the benchmark that follow what vLLM's users saw with 26B.
ACCEPT = (0.84, 0.71, 0.64, 0.70)

Model = TypeVar("Model", Target, Drafter)


class Subject(NamedTuple):
    """What is to run. bits: it is quantized to while loading."""

    name: str
    bits: int | None
    floor: Floor
    pair: memory.Pair


class Prediction(NamedTuple):
    """For one number of rows, all of them with the same context.

    tokens_per_second: of all rows together, by the number of drafts, none first; that one only
    without a drafter. best: the number of drafts with most of them. needs: bytes. fits: GB of those
    Macs with the chip that have them for a GPU (`device.mac_limit`).
    """

    batch: int
    tokens_per_second: tuple[float, ...]
    best: int
    needs: int
    fits: tuple[int, ...]


def predict(
    subject: Subject, chip: Chip, *, batch: int, context: int, accept: Sequence[float] = ACCEPT
) -> Prediction:
    """context: positions of each row, of which the prediction is for the last ones.

    accept: the chance of a draft to come true where those before it did, by position; the last one
    holds from there on. Raises UsageError.
    """
    most = subject.pair.target.max_position_embeddings
    if not 0 < context <= most:
        raise UsageError(f"a context of {subject.name} is 1 to {most} tokens, not {context}")
    if batch not in SIZES:
        sizes = ", ".join(map(str, SIZES))
        raise UsageError(f"a batch is of {sizes} rows, others run as the next larger; not {batch}")
    if not accept or not all(0 <= chance <= 1 for chance in accept):
        raise UsageError(f"accepts are chances, of 0 to 1, not {', '.join(map(str, accept))}")
    counts = range(MOST_DRAFTS + 1 if subject.pair.drafter is not None else 1)
    lengths = [context] * batch
    speeds = tuple(speed(subject, chip, lengths, count, accept) for count in counts)
    needs = subject.pair.needs(context, batch).total
    fits = tuple(size for size in chip.sizes if needs <= device.mac_limit(size))
    return Prediction(batch, speeds, speeds.index(max(speeds)), needs, fits)


def speed(
    subject: Subject,
    chip: Chip,
    lengths: Sequence[int],
    num_drafts: int,
    accept: Sequence[float],
    share: float = SHARE,
) -> float:
    """Tokens per second of rows of these lengths together, by the formulas above."""
    floor, tokens = subject.floor, num_drafts + 1
    experts = distinct_experts(subject.pair.target, tokens * len(lengths))
    read, products = floor.verify_bytes(lengths, experts), floor.verify_products(lengths, tokens)
    seconds = _seconds(chip, read, products)
    if num_drafts:
        step = _seconds(chip, floor.draft_bytes(lengths), floor.draft_products(lengths))
        seconds += num_drafts * step
    return share * len(lengths) * Draws(accept).expected_tokens(num_drafts) / seconds


def distinct_experts(config: TargetConfig, tokens: int) -> float | None:
    """How many of a layer's experts so many tokens choose if they choose evenly; None without."""
    if not config.num_experts:
        return None
    return config.num_experts * (1 - (1 - config.top_k_experts / config.num_experts) ** tokens)


def _seconds(chip: Chip, num_bytes: float, products: float) -> float:
    return max(num_bytes / chip.bandwidth, 2 * products / chip.compute)


def find_subject(model: str, *, bits: int | None = None) -> Subject:
    """A published size (E2B to 31B), a folder, or what the cache holds of a Hub name; its drafter.

    bits: 4 or 8 quantizes as `load` does. Reads no weights, computes nothing, downloads nothing.
    Raises UsageError, ModelNotFoundError, CheckpointError.
    """
    size = {name.casefold(): name for name in TARGETS}.get(model.casefold())
    target, drafter = random_pair(size, bits=bits) if size is not None else _stored(model, bits)
    return Subject(size or model, bits, Floor.of(target, drafter), memory.Pair.of(target, drafter))


def _stored(model: str, bits: int | None) -> tuple[Target, Drafter | None]:
    if not _is_here(model):
        raise ModelNotFoundError(
            f"{model!r} is none of the sizes {', '.join(TARGETS)}, no folder, and not in the "
            "cache, where `mgm pull` puts what is on the Hub"
        )
    folder, beside = hub.find_pair(model, "auto")
    config = read_target_config(folder)
    target = _unread(Target(config), folder, read_config(folder), bits)
    if beside is None:
        return target, None
    drafter_config = read_drafter_config(beside)
    check_pair(config, drafter_config)
    own_bits = drafter_bits(folder, beside) if bits is None else bits
    return target, _unread(Drafter(drafter_config), beside, read_config(beside), own_bits)


def _unread(model: Model, folder: Path, raw: dict[str, Any], bits: int | None) -> Model:
    """The model with the arrays of a folder, none of them read yet."""
    if bits is not None and raw.get("quantization") is not None:
        raise UsageError(f"{folder} is quantized already: leave bits out")
    arrays = open_arrays(model, folder, raw)
    fill(model, arrays, folder)
    model.set_dtype(arrays["norm.weight"].dtype)  # the checkpoint's, whatever this device takes
    if bits is not None:
        quantize(model, bits)
    return model


def _is_here(model: str) -> bool:
    if model == "demo" or hub.is_folder(model):
        return True
    try:
        return hub.from_cache(model) is not None
    except ModelNotFoundError:  # nothing that the Hub could know
        return False
