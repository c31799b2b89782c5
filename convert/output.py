"""The files of a converted folder: weights, then the files that go with them, then hashes."""

from __future__ import annotations

import copy
import hashlib
import json
import re
import shutil
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mlx_gemma_mtp import __version__
from mlx_gemma_mtp.files.atomic import write_whole
from mlx_gemma_mtp.files.checkpoint import INDEX
from mlx_gemma_mtp.files.weights import dtype_name
from mlx_gemma_mtp.model.config import DrafterConfig, TargetConfig
from mlx_gemma_mtp.model.rope import RopeConfig
from mlx_gemma_mtp.progress import Update

from . import card
from .formats import parse_format
from .manifest import MANIFEST, FileRecord, Manifest, TensorRecord
from .partial import Partial
from .plan import MULTIMODAL, Options, Plan
from .slices import write_weights

# Files next to the weights; a drafter is used with its target's tokenizer.
_EXTRAS = {
    "target": ("*.json", "*.jinja", "tokenizer.model"),
    "drafter": ("generation_config.json",),
}
# Of these weights, or of how another tool stored them.
_OF_WEIGHTS = re.compile(rf"^config\.json$|^{re.escape(MANIFEST)}$|\.index\.|quant\w*_config")
DRAFTER_FOLDER = "drafter"  # where `find_pair` looks first


def needed_bytes(plan: Plan) -> int:
    """Return what a model of the output takes on the disk, within a megabyte."""
    extras = sum(path.stat().st_size for path in _extras(plan))
    return sum(shard.nbytes for shard in plan.shards) + extras + 2**20


def write(
    plans: Sequence[Plan], options: Options, place: Partial, name: str, on_progress: Update
) -> None:
    """Fill `place.model` with the output that will be called `name`. Raises as `write_weights`.

    Configurations come last, the target's after all others: before that, nothing can be loaded.
    """
    folders = [place.model / (DRAFTER_FOLDER if p.kind == "drafter" else "") for p in plans]
    done, total = 0, sum(plan.nbytes for plan in plans)
    for plan, folder in zip(plans, folders, strict=True):
        files = {part: shard.name for shard in plan.shards for part in shard.places}
        finished, on_disk = place.finished.get(plan.kind, {}), partial(place.on_disk, plan.kind)
        for parameter, count in write_weights(plan, folder, options, finished, on_disk):
            done += count
            file = folder / files[parameter.parts[0].name]
            on_progress(f"writing {file.relative_to(place.model)}", done, total)
    for plan, folder in zip(reversed(plans), reversed(folders), strict=True):
        _write_rest(plan, folder, name, on_progress)


def _write_rest(plan: Plan, folder: Path, name: str, on_progress: Update) -> None:
    sizes = {"total_size": plan.nbytes, "total_parameters": plan.num_weights}
    files_of = {part: shard.name for shard in plan.shards for part in shard.places}
    index = {"metadata": sizes, "weight_map": dict(sorted(files_of.items()))}
    write_whole(folder / INDEX, json.dumps(index, indent=1).encode())
    extras = [Path(shutil.copyfile(path, folder / path.name)) for path in _extras(plan)]
    files = [*(folder / shard.name for shard in plan.shards), folder / INDEX, *extras]
    config = _config_json(plan).encode()
    records = {"config.json": FileRecord(len(config), hashlib.sha256(config).hexdigest())}
    done, total = 0, sum(shard.nbytes for shard in plan.shards)
    for path in files:
        on_progress(f"hashing the {plan.kind}", min(done, total), total)
        records[path.name] = record(path)
        done += records[path.name].bytes
    tools = {name: version(name) for name in ("mlx", "huggingface_hub")}
    manifest = Manifest(
        kind=plan.kind,
        source=plan.source.origin,
        created=datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        tools={"mlx_gemma_mtp": __version__} | tools,
        recipe=plan.recipe,
        bits_per_weight=round(plan.bits_per_weight, 4),
        parameters=plan.num_weights,
        files=dict(sorted(records.items())),
        tensors={
            one.name: TensorRecord(
                one.shape, dtype_name(one.dtype), **({} if one.format is None else one.format.block)
            )
            for one in plan.parameters
        },
    )
    write_whole(folder / card.CARD, card.card(name, plan, manifest).encode())
    write_whole(folder / MANIFEST, manifest.to_json().encode())
    write_whole(folder / "config.json", config)


def record(path: Path) -> FileRecord:
    """Return a file's size and SHA-256. Raises OSError."""
    with path.open("rb") as file:
        return FileRecord(path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())


def _extras(plan: Plan) -> list[Path]:
    found = {path for glob in _EXTRAS[plan.kind] for path in plan.source.folder.glob(glob)}
    return sorted(path for path in found if not _OF_WEIGHTS.search(path.name) and path.is_file())


def _config_json(plan: Plan) -> str:
    """Return the source's config.json with the quantization and the keys that MLX's tools need."""
    config = copy.deepcopy(plan.source.config)
    text = config.get("text_config", config)
    for section in (config, text):
        for key in ("dtype", "torch_dtype"):
            if section.get(key) is not None:
                section[key] = plan.recipe.dtype
        for key in ("quantization", "quantization_config"):  # left over, as the weights are not
            section.pop(key, None)
    text |= mlx_settings(plan.config)
    if isinstance(plan.config, TargetConfig):
        own_head = any(one.path == "lm_head" for one in plan.parameters)
        config["tie_word_embeddings"] = text["tie_word_embeddings"] = not own_head
        if config["model_type"] in MULTIMODAL:
            config["vocab_size"] = plan.config.vocab_size
    blocks = {
        parameter.name.removesuffix(".weight"): parameter.format.block
        for parameter in plan.parameters
        if parameter.format is not None
    }
    if blocks:
        used = list(blocks.values())
        base = parse_format(plan.recipe.bits, plan.recipe.group_size)
        common = base.block if base is not None and base.block in used else used[0]
        others = {path: block for path, block in blocks.items() if block != common}
        config |= dict.fromkeys(("quantization", "quantization_config"), common | others)
    return json.dumps(config, indent=2) + "\n"


def mlx_settings(config: TargetConfig | DrafterConfig) -> dict[str, Any]:
    """Return the keys for which mlx-lm and mlx-vlm would use E2B's values, or that they need.

    Transformers leaves out keys that equal its own defaults, and MLX's tools ignore
    `per_layer_config`.
    """
    shapes = {layer.kind: layer for layer in config.layers}
    sliding = shapes.get("sliding_attention", config.layers[0])
    full = shapes.get("full_attention", config.layers[-1])
    narrow = config.layers[0].intermediate_size
    wanted: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": narrow,
        "use_double_wide_mlp": any(layer.intermediate_size > narrow for layer in config.layers),
        "num_hidden_layers": len(config.layers),
        "layer_types": [layer.kind for layer in config.layers],
        "num_kv_shared_layers": len(config.layers) - config.num_kv_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": sliding.num_key_value_heads,
        "head_dim": sliding.head_dim,
        "global_head_dim": full.head_dim,
        "attention_k_eq_v": full.k_eq_v,
        "sliding_window": config.sliding_window,
        "rms_norm_eps": config.rms_norm_eps,
        "hidden_size_per_layer_input": 0,
        "enable_moe_block": False,
        "rope_parameters": {kind: _rope(rope) for kind, rope in config.rope.items()},
    }
    if full.k_eq_v:
        wanted["num_global_key_value_heads"] = full.num_key_value_heads
    if isinstance(config, TargetConfig):
        wanted["max_position_embeddings"] = config.max_position_embeddings
        wanted["enable_moe_block"] = config.num_experts > 0
        if config.hidden_size_per_layer_input:
            keys = ("hidden_size_per_layer_input", "vocab_size_per_layer_input")
            wanted |= {key: getattr(config, key) for key in keys}
    return wanted


def _rope(rope: RopeConfig) -> dict[str, Any]:
    if (rope.rotated, rope.factor) == (1, 1):
        return {"rope_type": "default", "rope_theta": rope.theta}
    factor = {} if rope.factor == 1 else {"factor": rope.factor}
    own = {"partial_rotary_factor": rope.rotated, "rope_theta": rope.theta}
    return {"rope_type": "proportional"} | own | factor
