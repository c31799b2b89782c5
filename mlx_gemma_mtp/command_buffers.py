"""How much work MLX puts into one command buffer of a Mac's GPU.

MLX ends a command buffer once it has more than `max_ops` kernel launches, or once the arrays it
uses have more than `max_mb` * 2**20 elements: MLX calls them MB, but counts elements. It reads both
limits from the environment when it first uses the GPU, and never again (backend/metal/device.cpp of
MLX 0.32.4). Knows nothing of files or of what is running.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, MutableMapping
from typing import NamedTuple

import mlx.core as mx

from mlx_gemma_mtp import device
from mlx_gemma_mtp.model.config import TargetConfig


class BufferLimits(NamedTuple):
    """The most kernel launches of a command buffer, and the most 2**20 elements of its arrays."""

    max_ops: int
    max_mb: int


class Shape(NamedTuple):
    """What the number of launches depends on."""

    num_layers: int
    hidden_size: int
    is_mixture: bool

    @classmethod
    def of(cls, config: TargetConfig) -> Shape:
        """Return the shape of a target."""
        return cls(len(config.layers), config.hidden_size, config.num_experts > 0)

    @property
    def launches(self) -> int:
        """Kernel launches of a round without drafts, roughly; with drafts there are more."""
        return self.num_layers * (53 if self.is_mixture else 28)


NAMES = ("MLX_MAX_OPS_PER_BUFFER", "MLX_MAX_MB_PER_BUFFER")  # in the environment

# MLX's own limits by the last letter of the GPU's architecture, such as applegpu_g16s.
OWN = {"p": BufferLimits(20, 40), "s": BufferLimits(50, 50), "d": BufferLimits(50, 50)}
OTHERS = BufferLimits(40, 40)

# A round must have at least this many command buffers. MLX has up to 11 unfinished ones
# (MAX_ACTIVE_TASKS), and copies a cache buffer that one of them still uses.
LEAST = 18
MODERATE = BufferLimits(100, 160)

# MLX's own limits start at 20 and 40. At 10 launches a round of 26B-A4B has about 160 boundaries of
# 20 us (ml-explore/mlx#4521): 3 ms of about 13 on an M4 Max, as mgm estimate predicts.
TOO_LOW = 10

# From here on (12B, 31B) weights take so long to read that a dense model gains nothing: Qwen3.8-27B
# on an M3 Ultra (ml-explore/mlx#4521).
LARGE = 3840  # hidden_size


def moderate(shape: Shape, chip: str) -> BufferLimits | None:
    """Return higher limits than MLX's for a model of this shape; None if MLX's are better.

    A boundary between command buffers costs about 20 us. With higher limits a mixture gained 5 to
    15% on M1 to M4 (ml-explore/mlx#4521, lablup/mlxcel#360). chip: as `device.chip_brand`.
    """
    gains = shape.is_mixture or shape.hidden_size < LARGE
    if not gains or not re.match(r"Apple M[1-4]\b", chip):
        return None
    max_ops = min(MODERATE.max_ops, shape.launches // LEAST - 1)
    if max_ops <= max(own.max_ops for own in OWN.values()):
        return None
    return MODERATE._replace(max_ops=max_ops)


def choose_limits(
    shape: Shape,
    chip: str | None = None,
    environ: MutableMapping[str, str] = os.environ,
    start: Callable[[], object] = mx.device_info,
) -> None:
    """Start MLX's GPU with the limits for a model of this shape, unless the user has set any.

    Call it before anything else uses the GPU; afterwards it changes nothing. So the first model of
    a process decides. The environment is as before, for the processes that this one starts. chip:
    this Mac's by default. start: makes MLX read the environment.
    """
    if any(name in environ for name in NAMES) or (chip is None and device.backend() != "metal"):
        return
    limits = moderate(shape, device.chip_brand() if chip is None else chip)
    if limits is None:
        return
    environ.update(zip(NAMES, map(str, limits), strict=True))
    try:
        start()
    finally:
        for name in NAMES:
            del environ[name]


def limits_set(architecture: str, environ: Mapping[str, str] = os.environ) -> BufferLimits:
    """Return the limits that the user has set, and MLX's own in place of the others.

    architecture: the GPU's, from `mx.device_info`. A value that is not a number counts as 0, as in
    MLX.
    """

    def number(name: str, own: int) -> int:
        found = re.match(r"\s*[+-]?\d+", environ.get(name, str(own)))
        return int(found[0]) if found else 0

    own = OWN.get(architecture[-1:], OTHERS)
    return BufferLimits(*map(number, NAMES, own))


def rounds_may_overlap(config: TargetConfig) -> bool:
    """True if a round can be dispatched before the one before it has ended, without copies.

    That takes LEAST command buffers on Metal; no other backend of MLX is known to copy.
    """
    if device.backend() != "metal":
        return True
    return num_buffers(config, limits_set(str(mx.device_info()["architecture"]))) >= LEAST


def num_buffers(config: TargetConfig, limits: BufferLimits) -> int:
    """Return how many command buffers a round of a model in 4 bits has at least, roughly."""
    launches = Shape.of(config).launches
    # Eight weights of 4 bits make an element, and each group of 64 has a scale and a bias.
    counted = _weights(config) * (1 / 8 + 2 / 64) / 2**20
    return int(max(launches / (max(limits.max_ops, 0) + 1), counted / (max(limits.max_mb, 0) + 1)))


def _weights(config: TargetConfig) -> int:
    """Return how many weights a round refers to: with all experts, and the head."""
    experts = 3 * config.num_experts * config.moe_intermediate_size
    width = config.vocab_size
    for layer in config.layers:
        kv_heads = layer.owns_kv * layer.num_key_value_heads * (1 if layer.k_eq_v else 2)
        width += layer.head_dim * (2 * config.num_attention_heads + kv_heads)
        width += 3 * layer.intermediate_size + experts
    return width * config.hidden_size
