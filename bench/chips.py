"""Apple's chips: the speed of their memory and GPUs, and the sizes that Macs have.

The figures are in chips.json, each with its source; none was measured here. A binned chip is listed
if its memory is slower too; the others have less compute in proportion to their cores.
"""

from __future__ import annotations

import difflib
import json
from functools import cache
from pathlib import Path
from typing import NamedTuple

from mlx_gemma_mtp.errors import UsageError


class Chip(NamedTuple):
    """A chip with all the GPU cores of its name.

    bandwidth: bytes per second. compute: half-precision operations per second in matrix products,
    two for a multiply-add. sizes: GB of memory of Macs with it. source: of bandwidth and cores.
    """

    name: str
    bandwidth: float
    compute: float
    sizes: tuple[int, ...]
    source: str


@cache
def chips() -> list[Chip]:
    """All known chips.

    compute is cores × operations per clock × clock. M1 to M4 have 128 units per core, and half
    precision is no faster than single. M5's 1,024 operations are estimated from 7.5 TFLOP/s
    measured on five of its cores in an A19; MLX reaches 58 of 66 TFLOP/s on an M5 Max. Apple
    doesn't publish the clock: the one reported for one chip is taken for its generation.
    """
    found = json.loads(Path(__file__).with_name("chips.json").read_text(encoding="utf-8"))
    chips = []
    for name, cores, gigabytes, sizes, source in (one.values() for one in found["chips"]):
        generation = found["generations"][name.split()[0]]
        compute = cores * generation["operations"] * generation["ghz"] * 1e9
        chips.append(Chip(name, gigabytes * 1e9, compute, tuple(sizes), source))
    return chips


def find_chip(name: str) -> Chip:
    """The chip of this name, in any case and spacing, with or without "Apple" before it."""
    wanted = "".join(name.casefold().removeprefix("apple").split())
    known = {"".join(chip.name.casefold().split()): chip for chip in chips()}
    if wanted in known:
        return known[wanted]
    near = difflib.get_close_matches(wanted, known, n=4)
    names = ", ".join(known[one].name for one in near or known)
    raise UsageError(f"unknown chip {name!r}; {'nearest are' if near else 'known are'} {names}")


def own_chip(name: str) -> Chip:
    """The chip of this machine, by the name that MLX reports. Raises UsageError if it is no Mac."""
    if not name.startswith("Apple"):
        raise UsageError(f'this is not a Mac ({name}): name a chip, such as --chip "M4 Max"')
    return find_chip(name)
