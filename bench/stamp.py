"""What a benchmark was measured on and in which state: chip, versions, power, load, heat.

Asks the system through commands and files that need no rights; what one of them does not tell is
left out, never guessed. Knows nothing of models, nor of what is measured.
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
from mlx_gemma_mtp.device import chip_name, system_name

PACKAGES = ("mlx", "mlx-lm", "numpy")
CORES = os.cpu_count() or 1
SECONDS = 5  # for a command to answer
BUSY = 0.2  # of all cores, by choice: one core of five, where a benchmark itself needs one
GPU_BUSY = 10  # % of the time
WAITED = 1  # % of the last minute in which something on Linux waited for memory
MINUTE = 60  # s; so far back the load average looks
SHORTEST = 30  # s; of a shorter run the load average tells nothing

SUPPLIES = Path("/sys/class/power_supply")  # Linux: Documentation/ABI/testing/sysfs-class-power
WAITING = Path("/proc/pressure/memory")  # Linux: Documentation/accounting/psi.rst
# macOS: OSThermalPressureLevel in <libkern/OSThermalNotification.h>.
HEAT_KEY = "com.apple.system.thermalpressurelevel"
HEAT = ("nominal", "moderate", "heavy", "trapping", "sleeping")
# NVML's nvmlClocksEventReasons. Not 0x8: it also stands for a mere change of clocks.
LIMITS = {
    0x04: "the GPU is at its power limit, which is usual under full load",
    0x20: "the GPU is slowed down by its heat",
    0x40: "the GPU is slowed down by half or more by its heat",
    0x80: "the GPU is slowed down by half or more by the power supply",
}
PRIVATE = {"DIR", "FILE", "FOLDER", "HOME", "KEY", "PASSWORD", "PATH", "SECRET", "TOKEN"}


@dataclass(frozen=True)
class Stamp:
    """The machine before a run.

    time: ISO 8601, UTC, seconds. backend: metal, cuda or cpu. memory_bytes: the machine's;
    gpu_memory_bytes: the GPU's own, None where it has none. versions: by package. environment: the
    MLX_ and MGM_ variables, without paths. power: "mains", "battery 83 %", either with ", low power
    mode", or "unknown". load: the load average of a minute over the number of cores, None where the
    system has none. warnings: a sentence for each thing that makes figures worth less.
    """

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


def stamp() -> Stamp:
    """The machine now. Call it first: whatever works before it, a model's loading too, is load."""
    backend, power, load = device.backend(), _power(), _load()
    own_bytes = int(mx.device_info()["total_memory"]) if backend == "cuda" else None
    return Stamp(
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        device=chip_name(),
        backend=backend,
        system=system_name(),
        memory_bytes=device.installed(),
        gpu_memory_bytes=own_bytes,
        versions={"python": platform.python_version(), "mlx_gemma_mtp": __version__}
        | {name: version(name) for name in PACKAGES},
        environment=environment(os.environ),
        power=power,
        load=load,
        warnings=[*_busy(load), *_weak(power), *_slowed()],
    )


def later_warnings(before: Stamp) -> list[str]:
    """What came up since `stamp()`, in sentences. Call it right after the last measurement."""
    found = []
    seconds = (datetime.now(UTC) - datetime.fromisoformat(before.time)).total_seconds()
    load, power, charge = _load(), _power(), re.compile(r" \d+ %")
    if load is not None and before.load is not None:
        own = sum(os.times()[:4])  # of this process since it began, and of those it started
        others = others_load(before.load * CORES, load * CORES, seconds, own)
        if others > BUSY * CORES:
            text = f"a load of {others:.1f} on {CORES} cores in the run"
            found.append(f"other programs were busy: {text}")
    if charge.sub("", power) != charge.sub("", before.power):
        found.append(f"the power changed during the run: {before.power} before, {power} after")
    return found + [one for one in _slowed() if one not in before.warnings]


def others_load(before: float, after: float, seconds: float, own: float) -> float:
    """The load that other programs made in a run of so many seconds, in cores; 0 of a short one.

    before, after: load averages, in cores. own: CPU seconds of this process. A load average fades
    by e in a minute: what the run left in it is `after` less the faded rest of `before`.
    """
    if seconds < SHORTEST:
        return 0.0
    rest = math.exp(-seconds / MINUTE)
    return max(0.0, (after - before * rest) / (1 - rest) - own / seconds)


def environment(variables: Mapping[str, str]) -> dict[str, str]:
    """Those of MLX and mgm, without paths and what may be secret."""
    return {
        key: value
        for key, value in sorted(variables.items())
        if key.startswith(("MLX_", "MGM_"))
        and os.sep not in value
        and not PRIVATE & set(key.split("_"))
    }


def mac_power(batt: str, settings: str) -> str:
    """Of what `pmset -g batt` and `pmset -g` print."""
    source = re.search(r"drawing from '(\w+) Power'", batt)
    if source is None:
        return "unknown"
    charge = re.search(r"(\d+)%", batt)
    power = f"battery {charge[1]} %" if charge else "battery"  # a UPS is one, too
    if source[1] == "AC":
        power = "mains"
    # Macs that also have a high power mode call it powermode: 0 automatic, 1 low, 2 high.
    low = re.search(r"^\s*(?:lowpowermode|powermode)\s+1\b", settings, re.MULTILINE)
    return f"{power}, low power mode" if low else power


def linux_power(supplies: Iterable[Mapping[str, str]]) -> str:
    """Of the attributes of each power supply."""
    power = "unknown"
    for supply in supplies:
        if supply["scope"] == "Device":  # a mouse's, say
            continue
        if supply["status"] == "Discharging":
            return f"battery {supply['capacity']} %" if supply["capacity"] else "battery"
        if supply["online"] == "1" or supply["status"] in {"Charging", "Not charging", "Full"}:
            power = "mains"
    return power


def mac_slowed(level: str, therm: str, pressure: str) -> Iterator[str]:
    """Of what notifyutil prints of HEAT_KEY, `pmset -g therm`, and sysctl of memory pressure."""
    heat = re.search(r"(\d+)\s*$", level)
    if heat and 0 < int(heat[1]) < len(HEAT):
        yield f"the machine is hot: macOS reports {HEAT[int(heat[1])]} thermal pressure"
    speed = re.search(r"CPU_Speed_Limit\s*=\s*(\d+)", therm)
    if speed and int(speed[1]) < 100:
        yield f"macOS limits the CPU to {speed[1]} % of its speed"
    # DISPATCH_MEMORYPRESSURE_NORMAL, _WARN and _CRITICAL of <dispatch/source.h>.
    if pressure.strip() in {"2", "4"}:
        yield "memory is short: macOS reports memory pressure"


def linux_slowed(waiting: str) -> Iterator[str]:
    """Of /proc/pressure/memory."""
    share = re.search(r"^some .*\bavg60=([\d.]+)", waiting, re.MULTILINE)
    if share and float(share[1]) >= WAITED:
        yield "memory is short: programs had to wait for it"


def nvidia_slowed(reasons: str) -> Iterator[str]:
    """Of the bits of what holds a GPU's clocks down, "0x0000000000000004"."""
    if re.fullmatch(r"0x[0-9A-Fa-f]+", reasons.strip()):
        yield from (text for bit, text in LIMITS.items() if int(reasons, 16) & bit)


def _busy(load: float | None) -> Iterator[str]:
    if load is not None and load > BUSY:
        text = f"a load of {load * CORES:.1f} on {CORES} cores in the minute before the run"
        yield f"the machine was busy: {text}"
    use = _nvidia("utilization.gpu").strip()
    if use.isdecimal() and int(use) > GPU_BUSY:  # "[N/A]" where a GPU is shared out
        yield f"the GPU is busy: {use} % of the time before the run"


def _weak(power: str) -> Iterator[str]:
    if power.startswith("battery"):
        yield "the machine runs on battery"
    if "low power" in power:
        yield "low power mode is on"


def _slowed() -> Iterator[str]:
    if platform.system() == "Darwin":
        yield from mac_slowed(
            _output("notifyutil", "-g", HEAT_KEY),
            _output("pmset", "-g", "therm"),
            _output("sysctl", "-n", "kern.memorystatus_vm_pressure_level"),
        )
    yield from linux_slowed(_text(WAITING))
    # Drivers from 535 on say "event" for "throttle" and know the old name, too.
    yield from nvidia_slowed(_nvidia("clocks_throttle_reasons.active"))


def _power() -> str:
    if platform.system() == "Darwin":
        return mac_power(_output("pmset", "-g", "batt"), _output("pmset", "-g"))
    keys = ("scope", "status", "capacity", "online")
    return linux_power(
        {key: _text(supply / key) for key in keys} for supply in sorted(SUPPLIES.glob("*"))
    )


def _load() -> float | None:
    try:
        return os.getloadavg()[0] / CORES
    except OSError:
        return None


def _nvidia(field: str) -> str:
    """A field of the GPU that MLX computes on."""
    if device.backend() != "cuda":
        return ""
    gpu = mx.device_info()["uuid"]
    form = "--format=csv,noheader,nounits"
    return _output("nvidia-smi", f"--id={gpu}", f"--query-gpu={field}", form)


def _output(*command: str) -> str:
    """What a command prints; nothing where it is not there, fails or does not answer."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.decode(errors="replace")


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
