"""A pair handed over to mlx-vlm 0.7.10: its Gemma 4 classes, on our arrays.

Knows where mlx-vlm keeps each array and how to import it where its dependencies are missing;
nothing of decoding.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from itertools import accumulate
from pathlib import Path
from types import ModuleType
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlx_gemma_mtp.config import DecoderConfig
from mlx_gemma_mtp.drafter import Drafter
from mlx_gemma_mtp.errors import MgmError
from mlx_gemma_mtp.target import Target

VERSION = "0.7.10"

# What we fuse or name otherwise -> theirs, by the end of a name. Parts follow each other along the
# output axis, the last but one, each as long as their parameter; what they lack is no part.
PARTS = {
    "self_attn.qkv_proj.weight": tuple(f"self_attn.{name}_proj.weight" for name in "qkv"),
    "mlp.gate_up_proj.weight": ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
    "experts.gate_up_proj.weight": (
        "experts.switch_glu.gate_proj.weight",
        "experts.switch_glu.up_proj.weight",
    ),
    "experts.down_proj.weight": ("experts.switch_glu.down_proj.weight",),
}


def hand_over(target: Target, drafter: Drafter) -> tuple[Any, Any]:
    """mlx-vlm's language model and assistant, made of our arrays; our two are empty afterwards.

    Arrays are shared, not copied, save that fused ones are split: one array at a time is in
    memory twice. Whatever else refers to ours (a compiled round does) keeps them: drop it before.
    """
    _find_mlx_vlm()
    from mlx_vlm.models.gemma4.language import LanguageModel
    from mlx_vlm.speculative.drafters.gemma4_assistant import Gemma4AssistantDraftModel, ModelConfig

    fields = vars(drafter.config) | {"text_config": _text_config(drafter.config)}
    language = LanguageModel(_text_config(target.config))
    assistant = Gemma4AssistantDraftModel(ModelConfig.from_dict(fields))
    _move(target, language)
    _move(drafter, assistant)
    return language.eval(), assistant.eval()  # as their loader leaves them


def _text_config(config: DecoderConfig) -> Any:
    """Their TextConfig: it takes what it knows by the same name, we add what it calls otherwise."""
    from mlx_vlm.models.gemma4.config import TextConfig

    kinds = {layer.kind: layer for layer in config.layers}
    sliding, full = kinds["sliding_attention"], kinds["full_attention"]
    first, last = config.layers[0], config.layers[-1]
    ropes = {
        kind: {
            "rope_type": "default" if rope.rotated == 1 else "proportional",
            "rope_theta": rope.theta,
            "partial_rotary_factor": rope.rotated,
        }
        for kind, rope in config.rope.items()
    }
    named_otherwise = {
        "intermediate_size": first.intermediate_size,
        "use_double_wide_mlp": last.intermediate_size > first.intermediate_size,
        "num_hidden_layers": len(config.layers),
        "num_kv_shared_layers": sum(not layer.owns_kv for layer in config.layers),
        "layer_types": [layer.kind for layer in config.layers],
        "num_key_value_heads": sliding.num_key_value_heads,
        "num_global_key_value_heads": full.num_key_value_heads,
        "head_dim": sliding.head_dim,
        "global_head_dim": full.head_dim,
        "attention_k_eq_v": full.k_eq_v,
        "rope_parameters": ropes,
        "enable_moe_block": getattr(config, "num_experts", 0) > 0,
    }
    no_per_layer_embedding = {"hidden_size_per_layer_input": 0}  # a drafter says nothing of it
    return TextConfig.from_dict(no_per_layer_embedding | vars(config) | named_otherwise)


def _move(ours: nn.Module, theirs: nn.Module) -> None:
    """Move every array of ours into theirs. Raises MgmError unless each finds its place."""
    arrays = dict(tree_flatten(ours.parameters()))
    places = dict(tree_flatten(theirs.parameters()))
    wanted = {name: place.shape for name, place in places.items()}
    del places
    ours.clear()
    while arrays:
        name, array = arrays.popitem()
        moved = _as_theirs(name, array, wanted)
        del array
        mx.eval(moved)
        for name, part in moved.items():
            if wanted.pop(name, None) != part.shape:
                raise MgmError(f"mlx-vlm has no place for {name} {part.shape}: adapt PARTS")
        theirs.load_weights(list(moved.items()), strict=False)
    mx.clear_cache()
    if wanted:
        raise MgmError(f"mlx-vlm also wants {', '.join(wanted)}: adapt PARTS")


def _as_theirs(
    name: str, array: mx.array, wanted: dict[str, tuple[int, ...]]
) -> dict[str, mx.array]:
    if name not in wanted:
        name = f"model.{name}"  # there they keep embedding, layers and norm
    for end, parts in PARTS.items():
        if name.endswith(end):
            names = [name.removesuffix(end) + part for part in parts]
            names = [part for part in names if part in wanted]
            *cuts, _ = accumulate(wanted[part][-2] for part in names)
            pieces = mx.split(array, cuts, axis=-2) if cuts else [array]
            return {part: mx.contiguous(piece) for part, piece in zip(names, pieces, strict=True)}
    return {name: array}


def _find_mlx_vlm() -> None:
    """Make importable what of mlx-vlm decodes text, without the rest of its dependencies.

    The `__init__` of these packages imports image, audio and server code, and with it
    transformers, requests, opencv and more. So the packages are entered past their `__init__`. Two
    modules then remain that the decoding code imports and plain token ids never reach:
    `mlx_vlm.utils`, and PIL, which may not be installed. They are left empty.
    """
    if "mlx_vlm" in sys.modules:
        return
    found = find_spec("mlx_vlm")
    if found is None or found.origin is None:
        raise MgmError(f"to compare with mlx-vlm: pip install --no-deps mlx-vlm=={VERSION} tqdm")
    home = Path(found.origin).parent
    for name in ("", ".generate", ".models.gemma4", ".models.qwen3_5", ".speculative"):
        _enter(f"mlx_vlm{name}", __path__=[str(home.joinpath(*name.split(".")))])
    drafters = [str(home / "speculative" / "drafters")]
    unchecked = {"validate_drafter_compatibility": lambda *_: None}
    _enter("mlx_vlm.speculative.drafters", __path__=drafters, **unchecked)
    unused = ("group_images_by_shape", "prepare_inputs", "should_add_special_tokens")
    _enter("mlx_vlm.utils", **dict.fromkeys(unused))
    if find_spec("PIL") is None:
        _enter("PIL", Image=None)
    from mlx_vlm.version import __version__

    if __version__ != VERSION:
        raise MgmError(f"this compares with mlx-vlm {VERSION}, not {__version__}")


def _enter(name: str, **attributes: Any) -> None:
    sys.modules[name] = ModuleType(name)
    vars(sys.modules[name]).update(attributes)
