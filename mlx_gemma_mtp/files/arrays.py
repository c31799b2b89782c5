"""The arrays of a checkpoint, and a model with the modules that they need.

A tensor that no module takes is refused if it belongs to the text model. Knows nothing of loading:
MLX reads an array when it is used.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlx_gemma_mtp.errors import CheckpointError
from mlx_gemma_mtp.files.checkpoint import read_config
from mlx_gemma_mtp.files.quantization import HasShape, check_readable, format_of
from mlx_gemma_mtp.files.sources import Joined, Source, whole
from mlx_gemma_mtp.files.tensors import StoredTensor, blocks, is_text, read_tensors
from mlx_gemma_mtp.model.drafter import Drafter
from mlx_gemma_mtp.model.target import Target

Arrays = dict[str, mx.array]

_UNUSED = re.compile(r"rotary_emb\.|\.(input|output)_(min|max)$")
_KEYS_VALUES = [f"self_attn.{part}" for part in ("k_proj", "k_norm", "v_proj", "v_norm")]
_IN_LAYER = re.compile(r"layers\.(\d+)\.(.*)\.")
_ONE_EXPERT = re.compile(r"(layers\.\d+\.experts)\.(\d+)\.(\w+_proj\.\w+)$")


def open_arrays(model: Target | Drafter, folder: Path) -> Arrays:
    """Return the arrays in a folder under our names; MLX reads them when they are used.

    The model gets the modules that are stored there: quantized ones, an output head of its own,
    experts whose gate and up maps are in different formats. Raises CheckpointError.
    """
    raw, tensors = read_config(folder), read_tensors(folder)
    check_readable(folder, raw, tensors)
    give_own_head(model, raw, tensors, folder)
    arrays = read_arrays(model, tensors)

    def stored(path: str, module: nn.Module) -> dict[str, Any] | bool:
        if not hasattr(module, "to_quantized"):
            return False
        chosen = format_of(path, module.weight.shape[-1], arrays)
        return False if chosen is None else chosen._asdict()

    nn.quantize(model, class_predicate=stored)
    return arrays


def give_own_head(
    model: Target | Drafter, raw: dict[str, Any], tensors: dict[str, StoredTensor], folder: Path
) -> None:
    """Give a target the output head of its checkpoint if that is not the same as its embedding.

    As in Transformers, the stored tensors decide, not the flag. raw: the parsed config.json. Reads
    the embedding if a head is stored. Raises CheckpointError for a head that can't be used.
    """
    head = {name: tensor for name, tensor in tensors.items() if name.startswith("lm_head.")}
    if not head and raw.get("tie_word_embeddings") is False:
        raise CheckpointError(
            f"{folder}: config.json: tie_word_embeddings is false, but there is no lm_head.weight"
        )
    if all(_same(one, tensors.get(f"embed_tokens.{name[8:]}")) for name, one in head.items()):
        return
    if isinstance(model, Drafter):
        raise CheckpointError(
            f"{folder} has an output head of its own (tensor lm_head.weight), which no Gemma 4 "
            "drafter has: use another drafter"
        )
    config = model.config
    model.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)


def refuse_unknown(model: Target | Drafter, tensors: Mapping[str, HasShape], folder: Path) -> None:
    """Raise CheckpointError for a tensor, by our names, that the text model has no place for.

    A tool that knows it would compute another text. Tensors of towers don't matter, and neither do
    key and value weights of layers that use others' keys and values.
    """
    wanted = dict(tree_flatten(model.parameters()))
    layers = model.config.layers
    for name in tensors:
        if name in wanted or not is_text(name) or _UNUSED.search(name):
            continue
        if name.startswith("lm_head.") and "lm_head" not in model:  # the same as the embedding
            continue
        if found := _IN_LAYER.match(name):
            if int(found[1]) >= len(layers):
                raise CheckpointError(
                    f"{folder} has tensor {name}, but config.json has only {len(layers)} layers: "
                    "weights and config are of different models"
                )
            layer = layers[int(found[1])]
            if found[2] in _KEYS_VALUES and not layer.owns_kv:
                continue
            if found[2] == "self_attn.v_proj" and layer.k_eq_v:
                continue
        raise CheckpointError(
            f"{folder} has tensor {name}, which a Gemma 4 with this config.json doesn't have; "
            "without it the output would be wrong: use the original checkpoint"
        )


def read_arrays(model: Target | Drafter, tensors: dict[str, StoredTensor]) -> Arrays:
    """Return the arrays of these tensors under our names; MLX reads them when they are used.

    Joined as `sources_of` joins them.
    """
    files: dict[Path, Arrays] = {}
    for path in {tensor.path for tensor in tensors.values()}:
        try:
            stored = mx.load(str(path))
        except RuntimeError as error:
            raise CheckpointError(f"{path} cannot be read: {error}") from None
        assert isinstance(stored, dict)  # safetensors always are
        files[path] = stored
    return {name: whole(one, files) for name, one in sources_of(model, tensors).items()}


def sources_of(model: Target | Drafter, tensors: dict[str, StoredTensor]) -> dict[str, Source]:
    """Return what each of our names is made of.

    Checkpoints may store the experts one by one, and their gate and up maps apart; here they are
    one product, in this model too unless the maps are stored in different formats.
    """
    sources: dict[str, Source] = {**tensors}
    _stack_experts(sources)
    for index, layer in enumerate(model.layers):
        gate, up = (f"layers.{index}.experts.{part}" for part in ("gate_proj", "up_proj"))
        if "experts" not in layer or f"{gate}.weight" not in sources:
            continue
        width = model.config.hidden_size
        if format_of(gate, width, sources) != format_of(up, width, sources):
            if "gate_up_proj" in layer.experts:
                layer.experts.split_gate_up()
            continue
        for part in ("weight", "scales", "biases"):
            one, other = (sources.pop(f"{path}.{part}", None) for path in (gate, up))
            if one is None and other is None:
                continue
            if one is None or other is None or one.shape != other.shape:
                raise CheckpointError(f"tensor {gate}.{part} has no up_proj of the same shape")
            # The rows of a quantized map are independent, so joining keeps every bit.
            joined = f"{gate.replace('gate_proj', 'gate_up_proj')}.{part}"
            sources[joined] = Joined((one, other), axis=1)
    return sources


def _stack_experts(sources: dict[str, Source]) -> None:
    """Stack maps that are stored one for each expert, in place; odd ones stay as they are."""
    apart: dict[str, dict[int, str]] = {}
    for name in sources:
        if found := _ONE_EXPERT.match(name):
            apart.setdefault(f"{found[1]}.{found[3]}", {})[int(found[2])] = name
    for stacked, names in apart.items():
        parts = tuple(sources[names[expert]] for expert in sorted(names))
        if len({part.shape for part in parts}) == 1 and max(names) == len(names) - 1:
            sources[stacked] = Joined(parts, axis=None)
            for name in names.values():
                del sources[name]


def _same(one: StoredTensor, other: StoredTensor | None) -> bool:
    """Return True if two tensors have the same bytes, type and shape. Reads both, in blocks."""
    if other is None or (one.code, one.shape) != (other.code, other.shape):
        return False
    return all(mine == theirs for mine, theirs in zip(blocks(one), blocks(other), strict=True))
