"""Apple's chips: how fast their memory and their GPUs are, and in which sizes Macs have them.

Figures from others, each with where it stands; none was measured here. Binned chips are listed
where their memory is slower too; the others have less compute in proportion to their cores.
"""

from __future__ import annotations

import difflib
from typing import NamedTuple

from mlx_gemma_mtp.errors import UsageError


class Chip(NamedTuple):
    """A chip with all GPU cores that its name stands for.

    bandwidth: bytes per second, as its maker says. compute: half-precision operations per second
    in matrix products, a multiply-add being two. sizes: GB of memory that Macs have with it.
    source: of bandwidth and cores.
    """

    name: str
    bandwidth: float
    compute: float
    sizes: tuple[int, ...]
    source: str


class Generation(NamedTuple):
    """What the GPU cores of a generation have in common.

    operations: per core and clock in half-precision matrix products. ghz: the highest clock,
    which Apple does not tell: what the system showed on one chip is taken for all of them.
    """

    operations: int
    ghz: float


# M1 to M4: 128 units per core, a multiply-add each, half precision no faster than single
# (https://github.com/philipturner/metal-benchmarks). M5: 1024, estimated from 7.5 TFLOP/s measured
# on five of these cores in an A19 (https://tzakharko.github.io/apple-neural-accelerators-benchmark);
# MLX reaches 58 TFLOP/s of 66 on an M5 Max (https://github.com/ml-explore/mlx/pull/3211).
GENERATIONS = {
    "M1": Generation(256, 1.296),  # https://github.com/philipturner/applegpuinfo/issues/2
    "M2": Generation(256, 1.398),  # https://github.com/philipturner/applegpuinfo/issues/10
    "M3": Generation(256, 1.380),  # https://github.com/philipturner/applegpuinfo/issues/4
    # "commonly stated": https://techboards.net/threads/apple-a19-m5-gpu-neural-accelerators.5297
    "M4": Generation(256, 1.578),
    "M5": Generation(1024, 1.620),  # https://github.com/feedback-assistant/reports/issues/830
}

NEWS = "https://www.apple.com/newsroom/"
SPECS = "https://support.apple.com/en-us/"
M1_PRO = NEWS + (
    "2021/10/introducing-m1-pro-and-m1-max-the-most-powerful-chips-apple-has-ever-built/"
)
M1_ULTRA = NEWS + (
    "2022/03/apple-unveils-m1-ultra-the-worlds-most-powerful-chip-for-a-personal-computer/"
)
M2 = NEWS + "2022/06/apple-unveils-m2-with-breakthrough-performance-and-capabilities/"
M2_PRO = NEWS + (
    "2023/01/apple-unveils-m2-pro-and-m2-max-next-generation-chips-for-next-level-workflows/"
)
M2_ULTRA = NEWS + "2023/06/apple-introduces-m2-ultra/"
M5 = NEWS + "2025/10/apple-unleashes-m5-the-next-big-leap-in-ai-performance-for-apple-silicon/"
M5_PRO = NEWS + (
    "2026/03/apple-debuts-m5-pro-and-m5-max-to-supercharge-the-most-demanding-pro-workflows/"
)
M5_ULTRA = NEWS + "2026/08/apple-introduces-new-mac-studio-with-m5-max-and-m5-ultra/"
MAC_STUDIO_2025 = SPECS + "122211"
MAC_STUDIO_2026 = "https://www.apple.com/mac-studio/specs/"
MACBOOK_PRO_2023 = SPECS + "117736"
MAC_MINI_2024 = SPECS + "121555"


def _chip(name: str, cores: int, gigabytes: float, sizes: tuple[int, ...], source: str) -> Chip:
    """gigabytes: per second."""
    generation = GENERATIONS[name.split()[0]]
    compute = cores * generation.operations * generation.ghz * 1e9
    return Chip(name, gigabytes * 1e9, compute, sizes, source)


CHIPS = (
    _chip("M1", 8, 68.2, (8, 16), "https://github.com/ggml-org/llama.cpp/pull/1642"),
    _chip("M1 Pro", 16, 200, (16, 32), M1_PRO),
    _chip("M1 Max", 32, 400, (32, 64), M1_PRO),
    _chip("M1 Ultra", 64, 800, (64, 128), M1_ULTRA),
    _chip("M2", 10, 100, (8, 16, 24), M2),
    _chip("M2 Pro", 19, 200, (16, 32), M2_PRO),
    _chip("M2 Max", 38, 400, (32, 64, 96), M2_PRO),
    _chip("M2 Ultra", 76, 800, (64, 128, 192), M2_ULTRA),
    _chip("M3", 10, 100, (8, 16, 24), SPECS + "117735"),
    _chip("M3 Pro", 18, 150, (18, 36), MACBOOK_PRO_2023),
    _chip("M3 Max", 40, 400, (48, 64, 128), MACBOOK_PRO_2023),
    _chip("M3 Max 30-core", 30, 300, (36, 96), MACBOOK_PRO_2023),
    _chip("M3 Ultra", 80, 819, (96, 256, 512), MAC_STUDIO_2025),
    _chip("M4", 10, 120, (16, 24, 32), MAC_MINI_2024),
    _chip("M4 Pro", 20, 273, (24, 48, 64), MAC_MINI_2024),
    _chip("M4 Max", 40, 546, (48, 64, 128), MAC_STUDIO_2025),
    _chip("M4 Max 32-core", 32, 410, (36,), MAC_STUDIO_2025),
    _chip("M5", 10, 153, (16, 24, 32), M5),
    _chip("M5 Pro", 20, 307, (24, 48, 64), M5_PRO),
    _chip("M5 Max", 40, 614, (48, 64, 128), M5_PRO),
    _chip("M5 Max 32-core", 32, 460, (36,), MAC_STUDIO_2026),
    _chip("M5 Ultra", 80, 1200, (96, 256, 512), M5_ULTRA),
)


def find_chip(name: str) -> Chip:
    """The chip of this name, however it is spaced, in whatever case, "Apple" before it or not.

    Raises UsageError.
    """
    wanted = "".join(name.casefold().removeprefix("apple").split())
    known = {"".join(chip.name.casefold().split()): chip for chip in CHIPS}
    if wanted in known:
        return known[wanted]
    near = difflib.get_close_matches(wanted, known, n=4)
    names = ", ".join(known[one].name for one in near or known)
    raise UsageError(f"no chip {name!r} is known; {'nearest are' if near else 'there are'} {names}")
