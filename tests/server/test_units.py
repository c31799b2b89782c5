"""Service files run the command that printed them, whatever is in its arguments."""

from __future__ import annotations

import configparser
import os
import plistlib
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.command import Here, assert_one_line, assert_plain
from mlx_gemma_mtp.server.units import LABEL, launchd, systemd

AWKWARD = ["a b", 'say "hi"', "it's", "100%", "$HOME ${HOME}", "back\\slash", "<&>", "é", "--x"]
COMMAND = ["/opt/my python/bin/python", "-m", "mlx_gemma_mtp", "serve", *AWKWARD]
VARIABLES = {"HF_HOME": '/Volumes/big "disk"/100% $x \\y'}


def words(line: str) -> list[str]:
    """The words of a line as systemd reads them."""
    return [word.replace("%%", "%") for word in shlex.split(line)]


def section(unit: str) -> configparser.SectionProxy:
    parser = configparser.ConfigParser(interpolation=None, comment_prefixes="#", strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(unit)
    return parser["Service"]


def test_a_launch_agent_has_the_command_word_for_word(tmp_path: Path) -> None:
    agent = plistlib.loads(launchd(COMMAND, VARIABLES, tmp_path).encode())
    assert agent["ProgramArguments"] == COMMAND
    assert agent["EnvironmentVariables"] == VARIABLES
    assert agent["Label"] == LABEL
    assert agent["RunAtLoad"] is True
    assert agent["KeepAlive"] == {"SuccessfulExit": False}
    assert Path(agent["StandardErrorPath"]).parent == tmp_path / "Library" / "Logs"


def test_a_unit_has_the_command_word_for_word() -> None:
    service = section(systemd(COMMAND, VARIABLES))
    assert [word.replace("$$", "$") for word in words(service["ExecStart"])] == COMMAND
    [variable] = words(service["Environment"])
    assert variable == f"HF_HOME={VARIABLES['HF_HOME']}"
    assert service["Type"] == "exec"
    assert service["Restart"] == "on-failure"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
def test_systemd_finds_nothing_wrong_with_a_unit(tmp_path: Path) -> None:
    unit = tmp_path / "mgm-serve.service"
    unit.write_text(systemd([sys.executable, *AWKWARD], VARIABLES))
    run = ["systemd-analyze", "--user", "verify", unit]
    environment = os.environ | {"XDG_RUNTIME_DIR": str(tmp_path)}
    done = subprocess.run(run, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(shutil.which("plutil") is None, reason="not a Mac")
def test_macos_finds_nothing_wrong_with_a_launch_agent(tmp_path: Path) -> None:
    agent = tmp_path / "agent.plist"
    agent.write_text(launchd(COMMAND, VARIABLES, tmp_path))
    subprocess.run(["plutil", "-lint", agent], check=True)


def printed(mgm_here: Here, *arguments: str) -> list[str]:
    """The arguments of `serve` in the unit that this command prints."""
    done = mgm_here("serve", *arguments, "--print-service", "systemd")
    assert_plain(done)
    assert (done.returncode, done.stderr) == (0, "")
    line = words(section(done.stdout)["ExecStart"])
    assert line[:5] == [sys.executable, "-P", "-m", "mlx_gemma_mtp", "serve"]
    return line[5:]


def test_a_printed_service_runs_the_options_that_were_given(
    mgm_here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert printed(mgm_here) == ["demo"]
    given = ["--no-copies", "--port", "9000", "--served-name", "a b", "--served-name", "c"]
    assert printed(mgm_here, "e4b", *given, "--quiet") == ["e4b", *given, "--quiet"]
    assert printed(mgm_here, "-m", "e4b") == ["e4b"]
    for seconds in ("600", "0.5"):
        assert printed(mgm_here, "--idle-unload", seconds) == ["demo", "--idle-unload", seconds]
    monkeypatch.setenv("MGM_MODEL", "12b")  # which a service does not have
    assert printed(mgm_here) == ["12b"]


def test_a_printed_service_finds_folders_from_everywhere(
    mgm_here: Here, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("my model", "drafter"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    found = printed(mgm_here, "my model", "--drafter", "drafter")
    assert found == [str(tmp_path / "my model"), "--drafter", str(tmp_path / "drafter")]


def test_a_printed_service_has_the_places_of_models_but_never_the_key(
    mgm_here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", "/big/models")
    monkeypatch.setenv("MGM_API_KEY", "secret-1")
    for kind in ("launchd", "systemd"):
        done = mgm_here("serve", "--api-key", "secret-2", "--print-service", kind)
        assert "/big/models" in done.stdout
        assert "MGM_API_KEY" in done.stdout
        assert "secret" not in done.stdout + done.stderr


def test_an_unknown_kind_of_service_is_one_line(mgm_here: Here) -> None:
    assert_one_line(mgm_here("serve", "--print-service", "cron"), 2, "launchd")
