"""Opening a pair: a target, its drafter, its tokenizer and its checkpoint's sampling defaults."""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from mlx_gemma_mtp import device, memory
from mlx_gemma_mtp.decode.params import is_count
from mlx_gemma_mtp.engine.worker import mlx_worker
from mlx_gemma_mtp.errors import CheckpointError
from mlx_gemma_mtp.files import checkpoint, weights
from mlx_gemma_mtp.files.choice import choose
from mlx_gemma_mtp.files.find import find_pair
from mlx_gemma_mtp.files.remembered import depth_key
from mlx_gemma_mtp.model.drafter import Drafter
from mlx_gemma_mtp.model.layers import fuse_projections
from mlx_gemma_mtp.model.target import Target
from mlx_gemma_mtp.text.tokenizer import Text


class OpenPair(NamedTuple):
    """What an engine is made of.

    defaults: the checkpoint's generation_config. fingerprint: the key under which the measured
    depth is saved, made of all that the cost of a round depends on; None to save nothing.
    """

    target: Target
    drafter: Drafter | None
    text: Text | None
    defaults: dict[str, Any]
    fingerprint: str | None

    def default_tokens(self, key: str) -> list[int]:
        """Token ids of a generation_config entry, which may be one number, a list or null."""
        found = self.defaults.get(key)
        ids = found if isinstance(found, list) else [] if found is None else [found]
        if not all(is_count(i) and 0 <= i < self.target.config.vocab_size for i in ids):
            raise CheckpointError(f"generation_config.json: {key} is {found!r}, not token ids")
        return ids


def open_pair(
    model: str | Path,
    drafter: str | Path | None = "auto",
    *,
    bits: int | None = None,
    force: bool = False,
) -> OpenPair:
    """Load the weights and everything that belongs to them. Arguments and errors as `load`."""
    choice = choose(model, bits=bits) if isinstance(model, str) else None
    if choice is not None:
        model, bits = choice.name, choice.bits
    folder, drafter_folder = find_pair(model, drafter)
    if not force:
        mlx_worker().run(partial(memory.check_load, folder, drafter_folder, str(model), bits=bits))

    defaults = checkpoint.read_generation_config(folder)
    text = Text(folder) if (folder / "tokenizer.json").exists() else None

    def read() -> OpenPair:
        device.keep_resident()
        target = fuse_projections(weights.load_target(folder, bits=bits))
        if drafter_folder is None:
            return OpenPair(target, None, text, defaults, None)
        own = weights.drafter_bits(folder, drafter_folder) if bits is None else bits
        drafter = fuse_projections(weights.load_drafter(drafter_folder, target.config, bits=own))
        sizes = [weights.num_bytes(model) for model in (target, drafter)]
        shape = repr((target.config, drafter.config, target.dtype, sizes))
        key = depth_key(folder.name, hashlib.sha256(shape.encode()).hexdigest()[:12])
        return OpenPair(target, drafter, text, defaults, key)

    return mlx_worker().run(read)
