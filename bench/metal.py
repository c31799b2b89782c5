"""What MLX's Metal kernels cost by number of rows, for each generation of Apple's GPUs.

The figures are in metal.json, each with its source; none was measured here. Knows nothing of
models, nor of a chip's bandwidth.
"""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

FOUR_BITS = 9 / 16  # bytes of a weight in 4 bits with scales and biases, by which costs scale
TILE = 32  # rows that the quantized matrix kernel computes at once, needed or not
BFLOAT16_TILE = 64  # the same of the bfloat16 one
FEW_ROWS_COST = 1.15  # of 2 to `few_rows` bfloat16 rows
SORTED_PAIRS = 512  # (token, expert) pairs from which on an expert is read once per tile
EXPERT_TILE = 16
FULL_ATTENTION_COST = 3  # reading keys and values of head_dim 512, over reading the bytes
LAUNCHES_PER_LAYER = 26
LAUNCHES_PER_MIXTURE_LAYER = 50
LAUNCHES_PER_DRAFT = 120


class Kernels(NamedTuple):
    """The kernels of a generation.

    rows: (rows, cost of a 4-bit product relative to one row), ascending, the last one a full tile.
    few_rows: up to this many bfloat16 rows are computed without a tile. launch_seconds:
    of a kernel that depends on the one before, with the boundaries of command buffers. sources: of
    these figures, and of those that hold for all generations.
    """

    rows: tuple[tuple[int, float], ...]
    few_rows: int
    launch_seconds: float
    sources: tuple[str, ...]

    def cost(self, rows: int) -> float:
        """The cost of a 4-bit product relative to one row: interpolated, past a tile by tiles."""
        if rows > TILE:
            return math.ceil(rows / TILE) * self.rows[-1][1]
        below = max(entry for entry in self.rows if entry[0] <= rows)
        above = min(entry for entry in self.rows if entry[0] >= rows)
        slope = (above[1] - below[1]) / max(above[0] - below[0], 1)
        return below[1] + slope * (rows - below[0])


def kernels(chip: str) -> Kernels:
    """The kernels of a chip of this name, such as "M4 Max". Raises KeyError if it isn't Apple's."""
    found = _read()
    one = found["generations"][chip.split()[0]]
    return Kernels(
        tuple((rows, cost) for rows, cost in one["rows"]),
        one["few_rows"],
        one["launch_microseconds"] / 1e6,
        (*one["sources"], *found["sources"]),
    )


@cache
def _read() -> dict[str, Any]:
    return json.loads(Path(__file__).with_name("metal.json").read_text(encoding="utf-8"))
