"""The pages in docs say what the package says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import mlx_gemma_mtp

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


def test_names_and_files_in_the_pages_exist() -> None:
    for page in (*DOCS.glob("*.md"), ROOT / "README.md"):
        written = page.read_text()
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", written):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
        for names in re.findall(r"from mlx_gemma_mtp import ([\w, ]+)", written):
            assert {*names.replace(" ", "").split(",")} <= {*mlx_gemma_mtp.__all__}
