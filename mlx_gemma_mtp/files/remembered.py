"""What a probe and runs measured of a model, kept for later runs in a small file.

`folders.depth_file`. It only saves time: it can be deleted, a damaged file counts as empty, and if
it cannot be written nothing is kept.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import version
from typing import Any

import mlx.core as mx

from mlx_gemma_mtp.decode.depth import Depth
from mlx_gemma_mtp.decode.division import Exact
from mlx_gemma_mtp.decode.table import PassTable
from mlx_gemma_mtp.files.atomic import keep
from mlx_gemma_mtp.files.folders import depth_file

FORMAT = 5  # of the file; another one counts as empty
DAMAGED = (KeyError, ValueError, TypeError, AttributeError, ArithmeticError)


def depth_key(name: str, digest: str) -> str:
    """Return the key of all that a model's costs and acceptance depend on: with device and MLX.

    digest: of everything about the model, including quantization.
    """
    return f"{name} {digest}{_here()}"


def load_depth(key: str | None, exact: Exact = "auto", table: PassTable | None = None) -> Depth:
    """Return what was saved under this key, or an empty Depth; key: None to look for nothing.

    table: if given, takes the place of another saved one, and of the costs that belong to it.
    """
    saved = None if key is None else _sound(_entries().get(key))
    depth = Depth(exact=exact) if saved is None else Depth.from_json(saved, exact)
    if table not in (None, depth.table):
        depth.table = table
    return depth


def load_table(key: str) -> PassTable | None:
    """Return what a probe measured of this model; None if nothing sound is saved."""
    return load_depth(key).table


def depths_of(name: str) -> Iterator[Depth]:
    """Yield what was saved of a model on this device and MLX, whatever its quantization."""
    for key, saved in _entries().items():
        ours = key.startswith(f"{name} ") and key.endswith(_here())
        if ours and (sound := _sound(saved)) is not None:
            yield Depth.from_json(sound)


def save_depth(key: str, depth: Depth) -> bool:
    """Save what this run measured; return False if that is not possible.

    Saved costs of other batch sizes, and other keys, stay. Costs belong to a table: those of a run
    without one do not replace those of the saved one.
    """
    entries, found = _entries(), depth.to_json()
    if (earlier := _sound(entries.get(key))) is not None:
        if earlier["table"] == found["table"]:
            found["costs"] = earlier["costs"] | found["costs"]
        elif depth.table is None:
            found = earlier | {"acceptance": found["acceptance"]}
    return _keep({**entries, key: found})


def save_table(key: str, table: PassTable) -> bool:
    """Save what a probe measured in place of another table and its costs; as `save_depth`."""
    return save_depth(key, load_depth(key, table=table))


class DepthKeeper:
    """Saves a depth when it knows more shapes of rounds than before, and when it is told to.

    All on the worker.
    """

    def __init__(self, key: str, depth: Depth) -> None:
        self._key = key
        self._depth = depth
        self._known = depth.num_timed

    def idle(self) -> None:
        """Save it if it is worth it: there is nothing else to do."""
        if self._depth.num_timed > self._known:
            self.save()

    def save(self) -> None:
        """Save it."""
        self._known = self._depth.num_timed
        save_depth(self._key, self._depth)


def _here() -> str:
    return f", {mx.device_info().get('device_name', '')}, mlx {version('mlx')}"


def _sound(saved: Any) -> dict[str, Any] | None:
    """Return an entry; None if it is missing or damaged.

    If its table or its costs are damaged, it has neither: they belong together.
    """
    nothing: dict[str, Any] = {"table": None, "costs": {}}
    for without in ({}, nothing):
        with suppress(*DAMAGED):
            entry = {**saved, **without}
            table = Depth.from_json(entry).table
            return entry | {"table": table and table.to_json()}
    return None


def _entries() -> dict[str, Any]:
    """Return what the file holds, by key; nothing if it is missing or not one of ours."""
    try:
        saved = json.loads(depth_file().read_text(encoding="utf-8"))
        return dict(saved["entries"]) if saved["format"] == FORMAT else {}
    except (OSError, KeyError, ValueError, TypeError):  # ValueError: not JSON, not UTF-8
        return {}


def _keep(entries: dict[str, Any]) -> bool:
    text = json.dumps({"format": FORMAT, "entries": entries}, indent=1)
    return keep(depth_file(), text.encode())
