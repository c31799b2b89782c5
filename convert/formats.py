"""The number formats that weights are stored in, and how rows of a weight are quantized.

All are MLX's own but `q4_0`, stored as MLX's affine 4 bits. Knows nothing of models or files.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import mlx.core as mx

from mlx_gemma_mtp.errors import UsageError

AFFINE_BITS = ("2", "3", "4", "5", "6", "8")
AFFINE_GROUPS = (32, 64, 128)
DEFAULT_GROUP = 64  # divides every width of the published models
UNQUANTIZED = "none"


class Format(NamedTuple):
    """How one weight is quantized; `kind` is MLX's mode, or q4_0."""

    kind: str
    bits: int
    group_size: int

    @property
    def mode(self) -> str:
        """The mode that MLX reads it in."""
        return "affine" if self.kind == "q4_0" else self.kind

    @property
    def name(self) -> str:
        """As `parse_format` takes it: `4/64`, `mxfp4`."""
        return f"{self.bits}/{self.group_size}" if self.kind == "affine" else self.kind

    @property
    def block(self) -> dict[str, Any]:
        """Its entry in `quantization` of a config.json."""
        return {"group_size": self.group_size, "bits": self.bits, "mode": self.mode}


FIXED = {
    "mxfp4": Format("mxfp4", 4, 32),
    "mxfp8": Format("mxfp8", 8, 32),
    "nvfp4": Format("nvfp4", 4, 16),
    # The grid that Google's QAT checkpoints (…-qat-q4_0-unquantized) were trained for.
    "q4_0": Format("q4_0", 4, 32),
}
NAMES = (*AFFINE_BITS, *FIXED, UNQUANTIZED)


def parse_format(text: str, group_size: int | None = None) -> Format | None:
    """Parse `4`, `4/32`, `mxfp4` or `none`, for which it returns None. Raises UsageError.

    group_size: of affine formats that name none; 64 by default.
    """
    if text == UNQUANTIZED:
        return None
    if text in FIXED:
        return FIXED[text]
    bits, slash, group = text.partition("/")
    if bits not in AFFINE_BITS or (slash and not group.isdecimal()):
        raise UsageError(
            f"unknown bits {text!r}: choose one of {', '.join(NAMES)}; a number may have a group "
            "size, such as 4/32"
        )
    size = int(group) if slash else DEFAULT_GROUP if group_size is None else group_size
    if size not in AFFINE_GROUPS:
        raise UsageError(f"group size must be 32, 64 or 128, not {size}")
    return Format("affine", int(bits), size)


def quantize(rows: mx.array, chosen: Format) -> list[mx.array]:
    """Quantize rows [N, width] to packed weights, scales and, in affine mode, biases.

    Groups lie within rows, so rows quantized in slices have the same bits as all at once.
    """
    if chosen.kind == "q4_0":
        return _to_q4_0(rows)
    return list(mx.quantize(rows, chosen.group_size, chosen.bits, chosen.mode))


def _to_q4_0(rows: mx.array) -> list[mx.array]:
    """Quantize to GGML's Q4_0: in each group of 32, the number of largest size is level -8.

    MLX chooses a scale from both ends of the group and misses that grid unless the group happens
    to reach +7 as well: it loses 6% (relative RMS) on weights that lie on it exactly.
    """
    grouped = rows.reshape(rows.shape[0], -1, 32)
    ends = mx.take_along_axis(grouped, mx.argmax(mx.abs(grouped), axis=-1, keepdims=True), axis=-1)
    steps = ends / -8  # [N, groups, 1]; exact, a power of two
    levels = grouped.astype(mx.float32) / mx.where(steps == 0, 1, steps).astype(mx.float32)
    levels = mx.clip(mx.round(levels) + 8, 0, 15).astype(mx.uint32)
    shifts = mx.arange(0, 32, 4, dtype=mx.uint32)
    packed = mx.left_shift(levels.reshape(*levels.shape[:2], 4, 8), shifts).sum(axis=-1)
    return [packed.reshape(rows.shape[0], -1), steps[..., 0], ends[..., 0]]
