"""The machine that a run was measured on, and what makes its figures worth less.

Asks the system with commands that need no rights. Anything it doesn't answer is left out, never
guessed.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version

import mlx.core as mx

from mlx_gemma_mtp import __version__, device

PACKAGES = ("mlx", "numpy")
CORES = os.cpu_count() or 1
ANSWER_SECONDS = 5.0  # for a command
BUSY = 0.2  # of all cores

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


def stamp(*, after_run: bool = False) -> Stamp:
    """The machine now. after_run: its load is the run's own, and no reason for a warning."""
    cuda, power, warnings = device.backend() == "cuda", "unknown", list[str]()
    load = os.getloadavg()[0] / CORES
    if load > BUSY and not after_run:
        rate = f"a load of {load * CORES:.1f} on {CORES} cores"
        warnings.append(f"the machine was busy before the run: {rate}")
    if platform.system() == "Darwin":
        power = mac_power(answer("pmset", "-g", "batt"), answer("pmset", "-g"))
        pressure = answer("sysctl", "-n", "kern.memorystatus_vm_pressure_level")
        warnings += mac_slowed(power, answer("notifyutil", "-g", HEAT_KEY), pressure)
    if cuda:  # drivers from 535 on say "event" for "throttle", and know the old name too
        query, gpu = "--query-gpu=clocks_throttle_reasons.active", mx.device_info()["uuid"]
        reasons = answer("nvidia-smi", f"--id={gpu}", query, "--format=csv,noheader")
        warnings += nvidia_slowed(reasons)
    return Stamp(
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        device=device.chip_name(),
        backend=device.backend(),
        system=device.system_name(),
        memory_bytes=device.installed(),
        gpu_memory_bytes=int(mx.device_info()["total_memory"]) if cuda else None,
        versions={"python": platform.python_version(), "mlx_gemma_mtp": __version__}
        | {name: version(name) for name in PACKAGES},
        environment={
            key: value
            for key, value in sorted(os.environ.items())
            if key.startswith("MLX_") and os.sep not in value
        },
        power=power,
        load=load,
        warnings=warnings,
    )


def mac_power(batt: str, settings: str) -> str:
    """From what `pmset -g batt` and `pmset -g` print."""
    source = re.search(r"drawing from '(\w+) Power'", batt)
    if source is None:
        return "unknown"
    charge = re.search(r"\d+%", batt)
    battery = f"battery {charge[0]}" if charge else "battery"  # a UPS counts as one
    power = "mains" if source[1] == "AC" else battery
    # Macs with a high power mode call the setting powermode: 0 automatic, 1 low, 2 high.
    low = re.search(r"^\s*(?:lowpowermode|powermode)\s+1\b", settings, re.MULTILINE)
    return f"{power}, low power mode" if low else power


def mac_slowed(power: str, heat: str, pressure: str) -> Iterator[str]:
    """Warnings from `mac_power`, `notifyutil -g HEAT_KEY` and sysctl's memory pressure level."""
    if power.startswith("battery"):
        yield "the machine runs on battery"
    if "low power" in power:
        yield "low power mode is on"
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


def answer(*command: str, timeout: float = ANSWER_SECONDS) -> str:
    """What a command prints; nothing if it is missing, fails or doesn't answer in time."""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.decode(errors="replace")
