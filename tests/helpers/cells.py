"""Runs Python cells as a notebook does: one namespace, one event loop, `await` at the top level."""

from __future__ import annotations

import ast
import asyncio
import inspect
import io
from collections.abc import Sequence
from contextlib import redirect_stdout
from typing import Any


def run_cells(cells: Sequence[str]) -> list[str]:
    """Run them in order. Return what each has printed."""
    return asyncio.run(_run(cells))


async def _run(cells: Sequence[str]) -> list[str]:
    names: dict[str, Any] = {"__name__": "__main__"}
    outputs = []
    for number, cell in enumerate(cells, 1):
        flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        code = compile(cell, f"cell {number}", "exec", flags, dont_inherit=True)
        with redirect_stdout(io.StringIO()) as printed:
            running = eval(code, names)
            if inspect.isawaitable(running):
                await running
        outputs.append(printed.getvalue())
    return outputs
