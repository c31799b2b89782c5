"""The shape of the package: rooms import one way, inside functions too; the import is quick."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

# A room, or a file of the front hall, imports only from those to its left.
ROOMS = [
    *(
        "errors",
        "device",
        "model",
        "command_buffers",
        "decode",
        "files",
        "text",
        "memory",
        "engine",
        "__init__",
    ),
    *("show", "progress", "margin", "check", "doctor", "chat", "server", "convert", "bench"),
    *("cli", "__main__", "_pyinstaller"),
]

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "mlx_gemma_mtp"
# convert/ and bench/ stand at the root and are installed inside the package.
SOURCES = [
    path
    for folder in (PACKAGE, ROOT / "convert", ROOT / "bench")
    for path in sorted(folder.rglob("*.py"))
]

IMPORT_SECONDS = 0.15
SLOW_TO_IMPORT = ["torch", "transformers", "mlx_lm"]


def room(path: Path) -> str:
    """The room of a source file: its folder, or its own name in the front hall."""
    parts = path.relative_to(PACKAGE if PACKAGE in path.parents else ROOT).parts
    return parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    """The rooms that a file imports from, without its own."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            package, *rest = name.split(".")
            if package in ("convert", "bench"):
                found.add(package)
            elif package == PACKAGE.name:
                found.add(rest[0] if rest and rest[0] in ROOMS else "__init__")
    return found - {room(path)}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_room_imports_only_from_rooms_to_its_left(path: Path) -> None:
    if room(path) == "demo":  # data, and the recipe that made it: stands alone
        assert not imported_rooms(path)
        return
    if room(path) == "__init__":  # users' names, imported lazily
        return
    left = ROOMS[: ROOMS.index(room(path))]
    assert imported_rooms(path) <= {*left}


def test_importing_the_package_is_quick_and_loads_nothing_heavy(tmp_path: Path) -> None:
    script = (
        f"import sys, time; start = time.perf_counter(); import {PACKAGE.name};"
        "print(time.perf_counter() - start);"
        f"print([name for name in {SLOW_TO_IMPORT} if name in sys.modules])"
    )
    seconds = []
    for _ in range(5):
        run = [sys.executable, "-c", script]  # elsewhere, so that it is the installed package
        result = subprocess.run(run, cwd=tmp_path, check=True, stdout=subprocess.PIPE, text=True)
        took, heavy = result.stdout.splitlines()
        assert heavy == "[]"
        seconds.append(float(took))
    assert min(seconds) < IMPORT_SECONDS


@pytest.mark.parametrize("command", ["--help", "list"])
def test_a_command_that_runs_no_model_loads_nothing_heavy(command: str) -> None:
    script = (
        f"import sys; from mlx_gemma_mtp.cli import main; sys.argv = ['mgm', {command!r}]\n"
        "try: main()\n"
        f"finally: print([name for name in {SLOW_TO_IMPORT} if name in sys.modules])"
    )
    run = [sys.executable, "-c", script]
    done = subprocess.run(run, check=True, stdout=subprocess.PIPE, text=True)
    assert done.stdout.splitlines()[-1] == "[]"
