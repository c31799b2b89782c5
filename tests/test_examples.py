"""The examples run as a user runs them, on the demo pair, and say what they should."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
ANSWERS = {"hello": "17 + 25 = 42"}


@pytest.mark.parametrize("name", ANSWERS)
def test_an_example_answers(name: str, tmp_path: Path) -> None:
    run = [sys.executable, "-W", "error", EXAMPLES / f"{name}.py"]
    offline = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(run, cwd=tmp_path, env=offline, capture_output=True, text=True)
    assert done.stderr == ""
    assert ANSWERS[name] in done.stdout
    assert not [*tmp_path.iterdir()]
