"""What docs/serve.md says to type and to write into files is valid."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from pathlib import Path

import pytest

from helpers.command import Here
from mlx_gemma_mtp.server.announce import KEY
from mlx_gemma_mtp.server.units import LABEL, NAME

PAGE = (Path(__file__).parents[2] / "docs" / "serve.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"(?ms)^```{language}\n(.*?)^```", PAGE)


def test_every_command_line_is_one_that_mgm_takes(mgm_here: Here) -> None:
    lines = re.findall(r"(?m)^mgm serve.*$", "\n".join(blocks("sh")))
    assert len(lines) > 3
    for line in lines:
        words = shlex.split(line.partition(" > ")[0], comments=True)
        given = words[1:] if "--print-service" in words else [*words[1:], "--print-service=systemd"]
        done = mgm_here(*given)
        assert done.returncode == 0, f"{line}: {done.stderr}"


def test_every_option_that_it_names_is_there(
    mgm_here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    known = {*re.findall(r"(--[a-z-]+)", mgm_here("serve", "--help").stdout)}
    named = {*re.findall(r"`(--[a-z-]+)", PAGE)}
    others = {"--network"}  # of docker
    assert named - others <= known
    assert len(named) > 10


def test_what_goes_into_files_can_be_read() -> None:
    for one in blocks("json"):
        json.loads(one)
    for one in blocks("toml"):
        tomllib.loads(one)


def test_it_has_the_names_of_the_files_and_the_variable() -> None:
    assert f"LaunchAgents/{LABEL}.plist" in PAGE
    assert f"systemd/user/{NAME}.service" in PAGE
    assert f"export {KEY}=" in PAGE
