"""The machine's stamp: that what macOS, Linux and NVIDIA print is read as it is meant.

The texts are as the sources named beside them show; no test depends on the machine's state.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from mlx_gemma_mtp.bench import stamp as stamps
from mlx_gemma_mtp.bench.stamp import Stamp, later_warnings, stamp

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
 hibernatefile        /var/vm/sleepimage
 sleep                1 (sleep prevented by powerd, sharingd)
 {}         {}
 womp                 1
"""
NORMAL = SETTINGS.format("lowpowermode", 0)
# `pmset -g therm`: newbetuts.com/407192-where-does-the-pmset-cpu-speed-limit-variable-come-from.
THERM = """Note: No thermal warning level has been recorded
Note: No performance warning level has been recorded
"""
SLOW_THERM = f"""{THERM}2020-11-24 13:10:40 +0100 CPU Power notify
\tCPU_Scheduler_Limit \t= 100
\tCPU_Available_CPUs \t= 8
\tCPU_Speed_Limit \t= 35
"""
# `notifyutil -g`: notifyutil(1); the levels: <libkern/OSThermalNotification.h>.
HEAT = "com.apple.system.thermalpressurelevel {}\n"
# Documentation/accounting/psi.rst
WAITING = """some avg10=0.00 avg60={} avg300=0.10 total=564995
full avg10=0.00 avg60=0.00 avg300=0.00 total=547951
"""

BATT, LIVE, LOOK = "pmset -g batt", "pmset -g", "pmset -g therm"
NOTIFY = f"notifyutil -g {stamps.HEAT_KEY}"
PRESSURE = "sysctl -n kern.memorystatus_vm_pressure_level"  # 1, 2, 4: <dispatch/source.h>


@pytest.fixture
def mac(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, str]:
    """What the commands of a Mac of ten cores say: at first that all is well."""
    said = {BATT: ON_MAINS, LIVE: NORMAL, LOOK: THERM, NOTIFY: HEAT.format(0), PRESSURE: "1\n"}
    monkeypatch.setattr(stamps, "_output", lambda *command: said[" ".join(command)])
    monkeypatch.setattr(stamps, "WAITING", tmp_path / "none")
    monkeypatch.setattr(stamps, "CORES", 10)
    monkeypatch.setattr("platform.system", lambda: "Darwin")
    set_load(monkeypatch, 1.5)
    return said


def set_load(monkeypatch: pytest.MonkeyPatch, load: float, own: float = 30.0) -> None:
    """A load average, and CPU seconds of this process."""
    monkeypatch.setattr("os.getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr("os.times", lambda: os.times_result((own, 0.0, 0.0, 0.0, 0.0)))


def minutes_ago(before: Stamp, minutes: float) -> Stamp:
    then = datetime.now(UTC) - timedelta(minutes=minutes)
    return replace(before, time=then.isoformat(timespec="seconds"))


def test_a_stamp_of_this_machine_has_every_field_and_survives_json() -> None:
    found = stamp()
    assert Stamp(**json.loads(json.dumps(asdict(found)))) == found
    assert datetime.fromisoformat(found.time).utcoffset() == timedelta(0)
    assert found.memory_bytes > 2**28
    assert "" not in (found.device, found.system)
    assert found.versions.keys() == {"python", "mlx_gemma_mtp", "mlx", "mlx-lm", "numpy"}


def test_a_quiet_mac_on_mains_has_nothing_to_warn_of(mac: dict[str, str]) -> None:
    before = stamp()
    assert (before.power, before.load, before.warnings) == ("mains", 0.15, [])
    assert later_warnings(minutes_ago(before, 10)) == []


@pytest.mark.parametrize(
    ("command", "says", "warned"),
    [
        (BATT, ON_BATTERY, "runs on battery"),
        (LIVE, SETTINGS.format("lowpowermode", 1), "low power mode is on"),
        (LOOK, SLOW_THERM, "limits the CPU to 35 % of its speed"),
        (NOTIFY, HEAT.format(2), "heavy thermal pressure"),
        (PRESSURE, "2\n", "memory is short"),
    ],
)
def test_what_slows_a_mac_is_said_before_a_run_and_if_it_comes_up_in_it(
    command: str, says: str, warned: str, mac: dict[str, str]
) -> None:
    quiet = stamp()
    mac[command] = says
    slow = stamp()
    assert [warned in one for one in slow.warnings] == [True]
    (later,) = later_warnings(quiet)
    assert warned in later or "the power changed during the run: mains before" in later
    assert later_warnings(slow) == []  # said already


@pytest.mark.parametrize(
    ("batt", "setting", "power"),
    [
        (ON_BATTERY, ("lowpowermode", 0), "battery 76 %"),
        (ON_BATTERY, ("lowpowermode", 1), "battery 76 %, low power mode"),
        (ON_MAINS, ("powermode", 1), "mains, low power mode"),
        (DESKTOP, ("powermode", 2), "mains"),  # high power mode
        ("", ("powermode", 0), "unknown"),
    ],
)
def test_the_power_of_a_mac(batt: str, setting: tuple[str, int], power: str) -> None:
    assert stamps.mac_power(batt, SETTINGS.format(*setting)) == power


def test_a_draining_battery_is_no_change_of_power(mac: dict[str, str]) -> None:
    mac[BATT] = ON_BATTERY
    before = stamp()
    mac[BATT] = ON_BATTERY.replace("76%", "71%")
    assert later_warnings(before) == []
    mac[BATT] = ON_MAINS
    assert later_warnings(before) == [
        "the power changed during the run: battery 76 % before, mains after"
    ]


def test_other_programs_are_busy_and_the_benchmark_itself_is_not_another(
    mac: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    set_load(monkeypatch, 2.5)
    (warning,) = stamp().warnings
    assert warning == (
        "the machine was busy: a load of 2.5 on 10 cores in the minute before the run"
    )
    set_load(monkeypatch, 0.5)
    before = minutes_ago(stamp(), 10)
    set_load(monkeypatch, 6.5, own=3600.0)  # six cores for ten minutes
    assert later_warnings(before) == []
    set_load(monkeypatch, 6.5, own=600.0)
    (warned,) = later_warnings(before)
    assert warned == "other programs were busy: a load of 5.5 on 10 cores in the run"


def test_the_load_of_other_programs_is_right_before_the_average_has_settled() -> None:
    # One core of our own and two of others for a minute, after an hour of four of others:
    # the average has come down to 3 + (4 - 3) / e.
    assert stamps.others_load(4.0, 3.368, 60.0, 60.0) == pytest.approx(2.0, abs=0.01)
    assert stamps.others_load(0.0, 4.0, 10.0, 0.0) == 0.0  # too short to tell


def test_linux_tells_power_by_the_batteries_that_run_the_machine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("platform.system", lambda: "Linux")
    monkeypatch.setattr(stamps, "SUPPLIES", tmp_path)
    assert stamp().power == "unknown"
    # Documentation/ABI/testing/sysfs-class-power
    docked = {"BAT0/status": "Not charging", "BAT0/capacity": "80"}
    mouse = {"mouse/scope": "Device", "mouse/status": "Discharging", "mouse/capacity": "9"}
    alone = {"AC/online": "0", "BAT0/status": "Discharging", "BAT0/capacity": "42"}
    for attributes, power in ((docked | mouse, "mains"), (alone, "battery 42 %")):
        for name, value in attributes.items():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(f"{value}\n")
        assert stamp().power == power
    assert "the machine runs on battery" in stamp().warnings
    (tmp_path / "AC/online").write_text("1\n")
    (tmp_path / "BAT0/status").write_text("Unknown\n")
    assert stamp().power == "mains"


def test_linux_tells_of_waiting_for_memory() -> None:
    assert list(stamps.linux_slowed(WAITING.format("0.40"))) == []
    assert list(stamps.linux_slowed(WAITING.format("7.40"))) == [
        "memory is short: programs had to wait for it"
    ]


# docs.nvidia.com/deploy/nvml-api, nvmlClocksEventReasons; "0x%016llx" and "[N/A]" as nvidia-smi
# prints them. 0x1 is idle, 0x8 also a change of clocks.
@pytest.mark.parametrize(
    ("reasons", "warned"),
    [
        ("0x0000000000000001", []),
        ("0x0000000000000008", []),
        ("0x0000000000000004", ["power limit"]),
        ("0x0000000000000060", ["by its heat", "half or more by its heat"]),
        ("0x0000000000000080", ["power supply"]),
        ("[N/A]", []),
        ("", []),
    ],
)
def test_an_nvidia_gpu_tells_what_holds_its_clocks_down(
    reasons: str, warned: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = {"clocks_throttle_reasons.active": f"{reasons}\n", "utilization.gpu": "7\n"}
    monkeypatch.setattr(stamps, "_nvidia", answers.__getitem__)
    monkeypatch.setattr(stamps, "WAITING", Path("/nowhere"))
    set_load(monkeypatch, 0.0)
    assert not any("busy" in one for one in stamp().warnings)
    quiet = replace(stamp(), warnings=[])
    found = later_warnings(quiet)
    assert len(found) == len(warned)
    assert all(part in one for part, one in zip(warned, found, strict=True))
    answers["utilization.gpu"] = "45\n"
    assert stamp().warnings[0] == "the GPU is busy: 45 % of the time before the run"


def test_variables_are_kept_without_paths_and_secrets() -> None:
    variables = {
        "MLX_MAX_OPS_PER_BUFFER": "8",
        "MGM_CACHE_DIR": "cache",
        "MGM_LOG": "/home/someone/log",
        "MGM_HUB_TOKEN": "hf_secret",
        "OTHER": "8",
    }
    assert stamps.environment(variables) == {"MLX_MAX_OPS_PER_BUFFER": "8"}


def test_a_command_that_is_missing_fails_or_hangs_tells_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stamps, "SECONDS", 0.2)
    assert stamps._output("echo", "hello") == "hello\n"
    assert stamps._output("no-such-command") == ""
    assert stamps._output("sh", "-c", "echo half; exit 3") == ""
    assert stamps._output("sleep", "60") == ""
