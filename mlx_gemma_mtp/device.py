"""This machine: what MLX computes on, the chip, and how much memory there is."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Literal, ParamSpec, TypeVar

import mlx.core as mx

P = ParamSpec("P")
T = TypeVar("T")

# GB (of 2**30 bytes) that Macs with Apple silicon have been sold with.
MAC_SIZES = (8, 16, 18, 24, 32, 36, 48, 64, 96, 128, 192, 256, 512)

MEMINFO = Path("/proc/meminfo")  # on Linux


def backend() -> Literal["cpu", "metal", "cuda"]:
    """Return what MLX computes on by default."""
    if mx.default_device() == mx.Device(mx.cpu):
        return "cpu"
    return "metal" if mx.metal.is_available() else "cuda"


def compiled(function: Callable[P, T]) -> Callable[P, T]:
    """Return a function of arrays, compiled if the device is a GPU.

    On a CPU, `mx.compile` would need a C++ compiler at run time.
    """
    return function if backend() == "cpu" else mx.compile(function)


def available(meminfo: Path = MEMINFO) -> int:
    """Return the bytes that MLX may hold in this process, including what it already holds.

    On macOS the GPU's recommended working set, with CUDA the device's memory, on the CPU what other
    processes leave, according to `meminfo`.
    """
    if backend() == "metal":
        return _working_set()
    if backend() == "cuda":
        return int(mx.device_info()["total_memory"])
    try:
        found = re.search(r"^MemAvailable: +(\d+) kB$", meminfo.read_text(), re.MULTILINE)
    except FileNotFoundError:  # a Mac without Metal
        found = None
    if found is None:
        return installed()
    # MemAvailable excludes what this process uses, MLX's cache of freed buffers included.
    return int(found[1]) * 1024 + mx.get_active_memory() + mx.get_cache_memory()


def usable(meminfo: Path = MEMINFO) -> int:
    """Return the bytes that MLX may hold on this machine when nothing else runs on it.

    On the CPU as much as on a Mac of this size, see `mac_limit`: the rest is left to the system.
    """
    if backend() == "cpu":
        return mac_limit(round(installed() / 2**30))
    return available(meminfo)


def installed() -> int:
    """Return the bytes of this machine's memory."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def keep_resident() -> None:
    """Ask macOS to keep in memory what MLX holds. Call it on the worker's thread.

    Otherwise the weights of an idle model may be compressed or swapped out, and the next request
    waits for them. MLX allows at most the recommended working set, see its documentation of
    set_wired_limit; before macOS 15 it has no effect.
    """
    if backend() == "metal":
        mx.set_wired_limit(_working_set())


def exact_products() -> None:
    """Make the digits of a float32 product independent of how many rows it has.

    With TF32, which MLX uses if the GPU has it, they depend on it. Call this before the first
    product: MLX looks once.
    """
    os.environ["MLX_ENABLE_TF32"] = "0"


def _working_set() -> int:
    return int(mx.device_info(mx.Device(mx.gpu))["max_recommended_working_set_size"])


def mac_limit(gigabytes: int) -> int:
    """Return the GPU's recommended working set, in bytes, on a Mac with this much memory.

    Two thirds of the memory up to 32 GB, three quarters from 36 GB on, going by the logs of
    llama.cpp's users, in MiB: 10922.67 of 16 GB (abetlen/llama-cpp-python#687), 21845.34 of 32 GB
    (ollama/ollama#434), 49152.00 of 64 GB and 73728.00 of 96 GB (ggml-org/llama.cpp#1870, #3213).
    macOS 26 grants more: 107.5 GiB of 128 (antirez/ds4#893).
    """
    size = gigabytes * 2**30
    return size * 2 // 3 if gigabytes < 36 else size * 3 // 4


def macs_with(needed: int, sizes: Sequence[int] = MAC_SIZES) -> list[int]:
    """Return which of these memory sizes of Macs, in GB, leave this many bytes to the GPU."""
    return [size for size in sizes if needed <= mac_limit(size)]


def chip_name() -> str:
    """Return the chip's name as MLX reports it."""
    return str(mx.device_info().get("device_name", platform.machine()))


@cache
def chip_brand() -> str:
    """Return the chip's name on a Mac, such as "Apple M4 Pro", without starting MLX's GPU."""
    command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def system_name() -> str:
    """Return the operating system and its version."""
    mac = platform.mac_ver()[0]
    return f"macOS {mac}" if mac else platform.platform()
