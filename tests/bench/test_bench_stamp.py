"""The machine's stamp: what macOS and NVIDIA print is understood; no test depends on this machine.

The outputs are as the sources named next to them show.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import datetime, timedelta

import pytest
from mlx_gemma_mtp.bench import stamp as stamps
from mlx_gemma_mtp.bench.stamp import Stamp, stamp

# `pmset -g batt`: gist.github.com/igrigorik/3270482; github.com/guarinogabriel/Mac-CLI/pull/69;
# of a Mac without battery github.com/liquidprompt/liquidprompt/pull/317.
ON_BATTERY = """Currently drawing from 'Battery Power'
 -InternalBattery-0\t76%; discharging; 4:16 remaining
"""
ON_MAINS = """Now drawing from 'AC Power'
 -InternalBattery-0\t84%; charging; 1:05 remaining present: true
"""
DESKTOP = "Now drawing from 'AC Power'\n"
# `pmset -g`: github.com/AppHouseKitchen/AlDente-Battery_Care_and_Monitoring/issues/603; powermode
# and its values: github.com/alfredapp/low-power-mode-workflow/issues/4.
SETTINGS = """System-wide power settings:
 SleepDisabled\t\t1
Currently in use:
 standby              1
 Sleep On Power Button 1
 {}         {}
 womp                 1
"""
HEAT = "com.apple.system.thermalpressurelevel {}\n"  # notifyutil(1)


def test_a_stamp_has_every_field_and_survives_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLX_MAX_OPS_PER_BUFFER", "8")
    monkeypatch.setenv("MLX_METAL_PATH", "/home/someone/lib")
    found = stamp()
    assert Stamp(**json.loads(json.dumps(asdict(found)))) == found
    assert datetime.fromisoformat(found.time).utcoffset() == timedelta(0)
    assert found.memory_bytes > 2**28
    assert "" not in (found.device, found.system)
    assert found.versions.keys() == {"python", "mlx_gemma_mtp", "mlx", "numpy"}
    assert found.environment["MLX_MAX_OPS_PER_BUFFER"] == "8"
    assert "MLX_METAL_PATH" not in found.environment


@pytest.mark.parametrize(
    ("batt", "setting", "power", "warnings"),
    [
        (ON_BATTERY, ("lowpowermode", 0), "battery 76%", ["runs on battery"]),
        (ON_BATTERY, ("lowpowermode", 1), "battery 76%, low power mode", ["battery", "low power"]),
        (ON_MAINS, ("powermode", 1), "mains, low power mode", ["low power mode is on"]),
        (DESKTOP, ("powermode", 2), "mains", []),  # high power mode
        ("", ("powermode", 0), "unknown", []),
    ],
)
def test_the_power_of_a_mac(
    batt: str, setting: tuple[str, int], power: str, warnings: list[str]
) -> None:
    found = stamps.mac_power(batt, SETTINGS.format(*setting))
    assert found == power
    for said, part in zip(stamps.mac_slowed(found, "", ""), warnings, strict=True):
        assert part in said


@pytest.mark.parametrize(
    ("heat", "pressure", "warnings"),
    [(0, "1\n", []), (2, "1\n", ["heavy thermal pressure"]), ("", "2\n", ["memory is short"])],
)
def test_what_slows_a_mac(heat: object, pressure: str, warnings: list[str]) -> None:
    found = stamps.mac_slowed("mains", HEAT.format(heat), pressure)
    for said, part in zip(found, warnings, strict=True):
        assert part in said


# docs.nvidia.com/deploy/nvml-api, nvmlClocksEventReasons; "0x%016llx" and "[N/A]" as nvidia-smi
# prints them. 0x1 is idle, 0x8 also a change of clocks.
@pytest.mark.parametrize(
    ("reasons", "warnings"),
    [
        ("0x0000000000000001\n", []),
        ("0x0000000000000008\n", []),
        ("0x0000000000000004\n", ["power limit"]),
        ("0x0000000000000060\n", ["by its heat", "half or less by its heat"]),
        ("0x0000000000000080\n", ["power supply"]),
        ("[N/A]", []),
        ("", []),
    ],
)
def test_what_limits_the_clocks_of_an_nvidia_gpu(reasons: str, warnings: list[str]) -> None:
    for said, part in zip(stamps.nvidia_slowed(reasons), warnings, strict=True):
        assert part in said


def test_a_busy_machine_is_reported_but_not_after_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.getloadavg", lambda: (stamps.CORES * 0.25, 0.0, 0.0))
    assert "the machine was busy before the run" in stamp().warnings[-1]
    assert not any("busy" in one for one in stamp(after_run=True).warnings)


def test_a_command_that_is_missing_fails_or_hangs_gives_nothing() -> None:
    assert stamps.answer("echo", "hello") == "hello\n"
    assert stamps.answer("no-such-command") == ""
    assert stamps.answer("sh", "-c", "echo half; exit 3") == ""
    assert stamps.answer("sleep", "60", timeout=0.2) == ""
