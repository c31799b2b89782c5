"""The pages in docs say what the package says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import mlx_gemma_mtp
from helpers.cells import run_cells
from helpers.fake_target import fake_engine

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def test_the_api_reference_is_current() -> None:
    run = [sys.executable, "-W", "error", DOCS / "api.py"]
    done = subprocess.run(run, check=True, capture_output=True, text=True)
    assert done.stdout == (DOCS / "api.md").read_text(), "make docs writes it"


def test_all_that_the_reference_shows_is_described() -> None:
    shown = (DOCS / "api.md").read_text()
    for part in re.split(r"(?m)^##+ ", shown)[1:]:
        title, _, rest = part.partition("\n")
        prose = re.sub(r"(?s)```.*?```", "", rest).strip()
        assert prose or title in ("Types",), f"{title} has no docstring"


def test_all_that_the_reference_shows_has_an_example() -> None:
    shown = (DOCS / "api.md").read_text()
    for part in re.split(r"(?m)^##+ ", shown)[1:]:
        title = part.partition("\n")[0]
        assert "](python.md#" in part, f"{title} is not in python.md"


def test_attributes_and_types_that_the_reference_names_are_there() -> None:
    shown = (DOCS / "api.md").read_text()
    with fake_engine() as engine:
        for title, one in (("Engine", engine), ("Chat", engine.chat())):
            listed = shown.partition(f"\n## {title}\n")[2].partition("\n#")[0]
            names = re.findall(r"(?m)^([a-z]\w*): ", listed)
            assert names
            assert all(hasattr(one, name) for name in names)
    types = shown.partition("\n## Types\n")[2]
    for alias in ("Callback", "Exact", "Kind", "Message", "Tools", "Watch"):
        assert f"\n{alias} = " in types


@pytest.mark.slow
@pytest.mark.parametrize("page", ["README.md", "docs/python.md"])
def test_the_code_of_a_page_runs_and_prints_what_it_says(page: str) -> None:
    blocks = re.findall(r"(?ms)^```python\n(.*?)^```", (ROOT / page).read_text())
    for block, printed in zip(blocks, run_cells(blocks), strict=True):
        lines = printed.splitlines()
        for said in re.findall(r"(?m)^ *print\(.*\)  # (.+)$", block):
            assert said in lines


def test_names_and_files_in_the_pages_exist() -> None:
    for page in (*DOCS.glob("*.md"), ROOT / "README.md"):
        written = page.read_text()
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", written):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
        for names in re.findall(r"from mlx_gemma_mtp import ([\w, ]+)", written):
            assert {*names.replace(" ", "").split(",")} <= {*mlx_gemma_mtp.__all__}
