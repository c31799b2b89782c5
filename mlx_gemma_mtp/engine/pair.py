"""Opening a pair: a target, its drafter, its tokenizer and what its checkpoint says of sampling."""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from mlx_gemma_mtp import device, memory
from mlx_gemma_mtp.engine.worker import mlx_worker
from mlx_gemma_mtp.files import checkpoint, hub, weights
from mlx_gemma_mtp.files.remembered import depth_key
from mlx_gemma_mtp.model.drafter import Drafter
from mlx_gemma_mtp.model.layers import join_projections
from mlx_gemma_mtp.model.target import Target
from mlx_gemma_mtp.text.tokenizer import Text


class OpenPair(NamedTuple):
    """What an engine is made of.

    fingerprint: the name under which what is learned about depth outlives the process, of all that
    the cost of a round depends on; None where nothing is to.
    """

    target: Target
    drafter: Drafter | None
    text: Text | None
    defaults: dict[str, Any]
    fingerprint: str | None


def open_pair(
    model: str | Path,
    drafter: str | Path | None = "auto",
    *,
    bits: int | None = None,
    force: bool = False,
) -> OpenPair:
    """The weights and all that goes with them. Arguments and errors are those of `load`."""
    folder, beside = hub.find_pair(model, drafter)
    if not force:
        mlx_worker().run(partial(memory.check_load, folder, beside, str(model), bits=bits))

    def read() -> tuple[Target, Drafter | None]:
        device.keep_resident()
        target = join_projections(weights.load_target(folder, bits=bits))
        if beside is None:
            return target, None
        drafter_bits = weights.drafter_bits(folder, beside) if bits is None else bits
        drafter = weights.load_drafter(beside, target.config, bits=drafter_bits)
        return target, join_projections(drafter)

    defaults = checkpoint.read_generation_config(folder)
    text = Text(folder) if (folder / "tokenizer.json").exists() else None
    models = mlx_worker().run(read)
    return OpenPair(*models, text, defaults, _fingerprint(folder.name, *models))


def _fingerprint(name: str, target: Target, drafter: Drafter | None) -> str | None:
    """What rounds cost depends on: device, MLX, model, quantization. None without a drafter."""
    if drafter is None:
        return None
    sizes = [weights.num_bytes(model) for model in (target, drafter)]
    shape = repr((target.config, drafter.config, target.dtype, sizes))
    return depth_key(name, hashlib.sha256(shape.encode()).hexdigest()[:12])
