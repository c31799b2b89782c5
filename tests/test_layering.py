"""The shape of the package: imports point one way, importing it is quick, files say what they are.

Reads the sources with `ast`: an import counts wherever it stands, inside a function too.
"""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# From the ground up. A part imports from the layers below its own, and from its own layer as long
# as that closes no circle. `__init__` is what `import mlx_gemma_mtp` gives: users' names, lazily.
LAYERS = [
    ["errors", "sizes", "atomic", "folders", "comparison", "config", "worker", "costs"],
    ["layers", "cache", "sampling", "messages", "text", "channels", "acceptance", "depth"],
    ["target", "drafter", "session", "request"],
    ["speculate", "remembered"],
    ["weights", "prefill"],
    ["hub", "download", "cached", "removal", "footprint", "memory", "batch"],
    ["scheduler"],
    ["engine"],
    ["__init__"],
    ["chat", "convert", "bench", "selftest", "doctor"],
    ["cli"],
]
# Data, and the recipe that made it: imports nothing of the package, and only `cli` may import it.
DEMO = "demo"

PACKAGE = "mlx_gemma_mtp"
ROOT = Path(__file__).parents[1]
# Where the repository keeps what is installed under each name.
FOLDERS = {PACKAGE: PACKAGE, f"{PACKAGE}.convert": "convert", f"{PACKAGE}.bench": "bench"}
LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}

IMPORT_SECONDS = 0.15
SLOW_TO_IMPORT = ["torch", "transformers", "mlx_lm"]


def sources() -> dict[str, Path]:
    """Every file of the package, by the dotted name it has when installed."""
    return {
        ".".join([package, *path.relative_to(ROOT / folder).with_suffix("").parts]): path
        for package, folder in FOLDERS.items()
        for path in sorted((ROOT / folder).rglob("*.py"))
    }


def part(name: str) -> str:
    """The part of the package a dotted name belongs to: `mlx_gemma_mtp.cli.chat` -> `cli`."""
    return [*name.split("."), "__init__"][1]


SOURCES = sources()
PARTS = {part(module) for module in SOURCES}
FILES = [*SOURCES.values(), *sorted((ROOT / "tests").rglob("*.py"))]


def imports(module: str) -> Iterator[tuple[str, str]]:
    """Where and what a module imports: `engine.py:12`, `mlx_gemma_mtp.cache`."""
    path = SOURCES[module]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parent = module.split(".")[: -node.level] if node.level else []
            base = ".".join([*parent, node.module] if node.module else parent)
            # `from mlx_gemma_mtp import cache` is a part; `from mlx_gemma_mtp import load` is not.
            imported = [alias.name for alias in node.names]
            names = [f"{base}.{n}" if base == PACKAGE and n in PARTS else base for n in imported]
        else:
            continue
        for name in names:
            yield f"{path.relative_to(ROOT)}:{node.lineno}", name


def test_every_part_of_the_package_has_its_layer() -> None:
    unplaced = PARTS - LEVEL.keys() - {DEMO}
    assert not unplaced, "each of these needs its place in LAYERS"


def test_imports_point_one_way() -> None:
    wrong = []
    graph: dict[str, set[str]] = {}
    for module in SOURCES:
        importer = part(module)
        for where, name in imports(module):
            if name.split(".")[0] in {"convert", "bench"}:
                wrong.append(f"{where}: {name} is installed as {PACKAGE}.{name}")
            if name.split(".")[0] != PACKAGE or part(name) == importer:
                continue
            graph.setdefault(importer, set()).add(part(name))
            if DEMO in (importer, part(name)):
                allowed = importer == "cli"
            else:
                allowed = LEVEL[part(name)] <= LEVEL[importer]
            if not allowed:
                wrong.append(f"{where}: {importer} may not import {part(name)}")
    assert not wrong, "\n".join(wrong)
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, naming the circle


def test_importing_the_package_is_quick_and_loads_nothing_heavy(tmp_path: Path) -> None:
    script = (
        f"import sys, time; start = time.perf_counter(); import {PACKAGE};"
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


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_opens_with_what_it_is(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
