"""Our arrays in another library's Gemma 4 classes, so that memory holds them once.

mlx-lm and mlx-vlm build their classes from the same settings and name their modules alike.
"""

from __future__ import annotations

from collections.abc import Collection
from itertools import accumulate
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_gemma_mtp.convert.output import mlx_settings

from mlx_gemma_mtp.errors import MgmError
from mlx_gemma_mtp.model.config import DrafterConfig, TargetConfig
from mlx_gemma_mtp.model.drafter import Drafter
from mlx_gemma_mtp.model.target import Target

# Our joined or renamed modules -> theirs, by the end of a path. The parts follow each other along
# the output axis, the last but one; a part that a layer of theirs lacks is skipped.
PARTS = {
    "self_attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
    "experts.gate_up_proj": ("experts.switch_glu.gate_proj", "experts.switch_glu.up_proj"),
    "experts.down_proj": ("experts.switch_glu.down_proj",),
}
ROOTS = ("", "model.")  # theirs keep embedding, layers and norm below `model`


def settings(config: TargetConfig | DrafterConfig) -> dict[str, Any]:
    """Return their text configuration: our fields, and those with other names."""
    return vars(config) | mlx_settings(config)


def lend(ours: Target | Drafter, theirs: nn.Module, *, plain: Collection[str] = ()) -> None:
    """Put our arrays into theirs, which is quantized if ours is; ours stays as it is.

    A joined array is split into views of its rows. The halves of joined experts are not contiguous:
    GPU kernels may copy them at each use, or read them wrongly, so they are copied once. plain:
    paths of ours that get dequantized copies. Raises MgmError unless every array finds its place
    and every place its array.
    """
    modules = {path: module for path, module in ours.named_modules() if "scales" in module}
    kept = {
        path: {"group_size": module.group_size, "bits": module.bits, "mode": module.mode}
        for path, module in modules.items()
    }
    paths = {path for path, _ in theirs.named_modules()}
    quantized = kept.keys() - {*plain}
    formats = {place: kept[path] for path in quantized for place in _places(path, paths)}
    nn.quantize(theirs, class_predicate=lambda path, _: formats.get(path, False))
    places = dict(tree_flatten(theirs.parameters()))
    shapes = {name: place.shape for name, place in places.items()}
    lent: dict[str, mx.array] = {}
    for name, array in dict(tree_flatten(ours.parameters())).items():
        path, _, kind = name.rpartition(".")
        if path in plain and path in modules:
            if kind != "weight":
                continue
            module = modules[path]
            array = mx.dequantize(array, module.scales, module.get("biases"), **kept[path])
        names = [f"{place}.{kind}" for place in _places(path, paths) or [path]]
        pieces = [array]
        if len(names) > 1:
            *cuts, _ = accumulate(shapes[part][-2] for part in names)
            pieces = list(mx.split(array, cuts, axis=-2))
            if array.ndim == 3:
                pieces = [mx.contiguous(piece) for piece in pieces]
        lent |= zip(names, pieces, strict=True)
    found = {name: array.shape for name, array in lent.items()}
    if found != shapes:
        wrong = sorted(dict(found.items() ^ shapes.items()))
        raise MgmError(f"these classes have other arrays than ours at {', '.join(wrong)}")
    mx.eval(lent)
    theirs.load_weights(list(lent.items()))
    theirs.eval()


def _places(path: str, paths: Collection[str]) -> list[str]:
    """Where theirs, with these paths, keeps the module of this path of ours."""
    parts = [path]
    for joined, names in PARTS.items():
        if path.endswith(joined):
            parts = [path.removesuffix(joined) + name for name in names]
    return [root + part for part in parts for root in ROOTS if root + part in paths]
