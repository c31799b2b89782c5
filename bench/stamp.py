"""The machine that a run was measured on, and what makes its figures worth less.

Asks the system with commands and files that need no rights. Anything it doesn't answer is left out,
never guessed. Knows nothing of models.
"""

from __future__ import annotations

import math
import os
import platform
import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import mlx.core as mx

from mlx_gemma_mtp import __version__, device

PACKAGES = ("mlx", "mlx-lm", "numpy")
CORES = os.cpu_count() or 1
ANSWER_SECONDS = 5  # for a command
BUSY = 0.2  # of all cores
GPU_BUSY = 10  # % of the time
LOAD_SECONDS = 60  # how far back a load average looks
SHORTEST = 30  # s; the load average says nothing about a shorter run

# macOS: OSThermalPressureLevel in <libkern/OSThermalNotification.h>.
HEAT_KEY = "com.apple.system.thermalpressurelevel"
HEAT = ("nominal", "moderate", "heavy", "trapping", "sleeping")
# NVML's nvmlClocksEventReasons. Without 0x8, which also stands for a mere change of clocks.
LIMITS = {
    0x04: "the GPU is at its power limit, as usual under full load",
    0x20: "the GPU is slowed down by its heat",
    0x40: "the GPU is slowed down to half or less by its heat",
    0x80: "the GPU is slowed down to half or less by the power supply",
}
PRIVATE = {"DIR", "FILE", "FOLDER", "HOME", "KEY", "PASSWORD", "PATH", "SECRET", "TOKEN"}


@dataclass(frozen=True)
class Stamp:
    """The machine at one moment; README.md explains the fields."""

    time: str
    device: str
    backend: str
    system: str
    memory_bytes: int
    gpu_memory_bytes: int | None
    versions: dict[str, str]
    environment: dict[str, str]
    power: str
    load: float | None
    warnings: list[str]


def stamp(*, at_end: bool = False) -> Stamp:
    """The machine now. at_end: after a run, whose own load is no reason for a warning."""
    backend, power, load = device.backend(), _power(), _load()
    busy = () if at_end else _busy(load)
    return Stamp(
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        device=device.chip_name(),
        backend=backend,
        system=device.system_name(),
        memory_bytes=device.installed(),
        gpu_memory_bytes=int(mx.device_info()["total_memory"]) if backend == "cuda" else None,
        versions={"python": platform.python_version(), "mlx_gemma_mtp": __version__}
        | {name: version(name) for name in PACKAGES},
        environment=environment(os.environ),
        power=power,
        load=load,
        warnings=[*busy, *weak(power), *_slowed()],
    )


def later_warnings(before: Stamp, after: Stamp, own_seconds: float) -> list[str]:
    """What changed for the worse during a run that took this many CPU seconds."""
    found = [text for text in after.warnings if text not in before.warnings]
    start, end = (datetime.fromisoformat(one.time) for one in (before, after))
    if before.load is not None and after.load is not None:
        seconds = (end - start).total_seconds()
        others = others_load(before.load * CORES, after.load * CORES, seconds, own_seconds)
        if others > BUSY * CORES:
            found.append(f"other programs were busy: a load of {others:.1f} on {CORES} cores")
    return found


def others_load(before: float, after: float, seconds: float, own_seconds: float) -> float:
    """The load of other programs during a run, in cores; 0 for a short run.

    before, after: load averages, in cores. A load average fades by a factor of e in a minute: the
    run's part is `after` without the faded rest of `before`.
    """
    if seconds < SHORTEST:
        return 0.0
    rest = math.exp(-seconds / LOAD_SECONDS)
    return max(0.0, (after - before * rest) / (1 - rest) - own_seconds / seconds)


def environment(variables: Mapping[str, str]) -> dict[str, str]:
    """The variables of MLX and mgm, without paths and possible secrets."""
    return {
        key: value
        for key, value in sorted(variables.items())
        if key.startswith(("MLX_", "MGM_"))
        and os.sep not in value
        and not PRIVATE & set(key.split("_"))
    }


def mac_power(batt: str, settings: str) -> str:
    """From what `pmset -g batt` and `pmset -g` print."""
    source = re.search(r"drawing from '(\w+) Power'", batt)
    if source is None:
        return "unknown"
    charge = re.search(r"(\d+)%", batt)
    power = f"battery {charge[1]}%" if charge else "battery"  # a UPS counts as one
    if source[1] == "AC":
        power = "mains"
    # Macs with a high power mode call the setting powermode: 0 automatic, 1 low, 2 high.
    low = re.search(r"^\s*(?:lowpowermode|powermode)\s+1\b", settings, re.MULTILINE)
    return f"{power}, low power mode" if low else power


def linux_power(supplies: Iterable[Mapping[str, str]]) -> str:
    """From the files of each power supply, see Documentation/ABI/testing/sysfs-class-power."""
    power = "unknown"
    for supply in supplies:
        if supply["scope"] == "Device":  # such as a mouse's
            continue
        if supply["status"] == "Discharging":
            return f"battery {supply['capacity']}%" if supply["capacity"] else "battery"
        if supply["online"] == "1" or supply["status"] in {"Charging", "Not charging", "Full"}:
            power = "mains"
    return power


def weak(power: str) -> Iterator[str]:
    """Warnings about the power."""
    if power.startswith("battery"):
        yield "the machine runs on battery"
    if "low power" in power:
        yield "low power mode is on"


def mac_slowed(heat: str, pressure: str) -> Iterator[str]:
    """From what `notifyutil -g HEAT_KEY` and sysctl's memory pressure level print."""
    level = re.search(r"(\d+)\s*$", heat)
    if level and 0 < int(level[1]) < len(HEAT):
        yield f"the machine is hot: macOS reports {HEAT[int(level[1])]} thermal pressure"
    # DISPATCH_MEMORYPRESSURE_NORMAL, _WARN and _CRITICAL of <dispatch/source.h>.
    if pressure.strip() in {"2", "4"}:
        yield "memory is short: macOS reports memory pressure"


def nvidia_slowed(reasons: str) -> Iterator[str]:
    """From the bits of what limits a GPU's clocks, such as "0x0000000000000004"."""
    if re.fullmatch(r"0x[0-9A-Fa-f]+", reasons.strip()):
        yield from (text for bit, text in LIMITS.items() if int(reasons, 16) & bit)


def _busy(load: float | None) -> Iterator[str]:
    if load is not None and load > BUSY:
        yield f"the machine was busy before the run: a load of {load * CORES:.1f} on {CORES} cores"
    use = _nvidia("utilization.gpu").strip()
    if use.isdecimal() and int(use) > GPU_BUSY:  # "[N/A]" for a shared GPU
        yield f"the GPU was busy before the run: {use}% of the time"


def _slowed() -> Iterator[str]:
    if platform.system() == "Darwin":
        pressure = answer("sysctl", "-n", "kern.memorystatus_vm_pressure_level")
        yield from mac_slowed(answer("notifyutil", "-g", HEAT_KEY), pressure)
    # Drivers from 535 on call it "event" instead of "throttle", and know the old name too.
    yield from nvidia_slowed(_nvidia("clocks_throttle_reasons.active"))


def _power() -> str:
    if platform.system() == "Darwin":
        return mac_power(answer("pmset", "-g", "batt"), answer("pmset", "-g"))
    supplies = sorted(Path("/sys/class/power_supply").glob("*"))
    keys = ("scope", "status", "capacity", "online")
    return linux_power({key: _text(supply / key) for key in keys} for supply in supplies)


def _load() -> float | None:
    try:
        return os.getloadavg()[0] / CORES
    except OSError:
        return None


def _nvidia(field: str) -> str:
    """A field of the GPU that MLX computes on."""
    if device.backend() != "cuda":
        return ""
    form, gpu = "--format=csv,noheader,nounits", mx.device_info()["uuid"]
    return answer("nvidia-smi", f"--id={gpu}", f"--query-gpu={field}", form)


def answer(*command: str, timeout: float = ANSWER_SECONDS) -> str:
    """What a command prints; nothing if it is missing, fails or doesn't answer in time."""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.decode(errors="replace")


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
