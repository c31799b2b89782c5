"""Tiny random Gemma 4 checkpoints, written by Transformers' own classes and `save_pretrained`.

One target and one assistant per published kind, in the published layout, float32, a few megabytes
each and without a tokenizer. Default initialisation gives nearly flat logits, so every weight is
drawn from (seed, name) instead: then each part has an effect that a parity test can see, and one
seed gives one model in all its layouts. Torch and Transformers are imported where they are used.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel

_DATA = json.loads(Path(__file__).with_name("kinds.json").read_text())
COMMON: dict[str, Any] = _DATA["common"]
VOCAB: int = COMMON["vocab_size"]
EOS: list[int] = COMMON["eos_token_id"]
# What each kind adds. The proportions are those of the published models: which layers share K/V,
# which type has which head size, how many queries share a K/V head. Some hidden sizes differ from
# the drafter's, and in 31B two full layers own K/V, so that confusing either fails a test.
TARGETS: dict[str, dict[str, Any]] = _DATA["targets"]
KINDS = tuple(TARGETS)
CENTROID_KINDS = ("E2B", "E4B")
PER_LAYER_WIDTH = 64
SUPPRESSED = {"12B": list(range(200, 216))}  # the published 12B has such a list as well
# Root mean squares: of a scaled embedding, of a final hidden state, of a query-key product. A small
# embedding keeps greedy output from repeating its last token. Logits, whose spread is the product
# of the first two, and attention are as flat as a test of each part allows: a sharper random
# network turns float32's last bits into differences of 1e-4.
EMBEDDING = 0.1
FINAL_HIDDEN = 15.0
ATTENTION_SCORE = 1.2


class PairPaths(NamedTuple):
    target: Path
    drafter: Path


def make_pair(
    kind: str, folder: Path, seed: int, *, sharded: bool = False, multimodal: bool = False
) -> PairPaths:
    """Write `kind`'s target to `folder/target` and its assistant to `folder/target-assistant`.

    The text weights depend on (kind, seed) alone. sharded: several safetensors files and an index.
    multimodal: names under `model.language_model.`, towers, and unused k/v weights in the layers
    that share K/V, as in the published checkpoints.
    """
    import torch
    from transformers import GenerationConfig
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    paths = PairPaths(folder / "target", folder / "target-assistant")
    shards = {"max_shard_size": "600KB"} if sharded else {}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        text = _text_config(kind, TARGETS[kind])
        target = _multimodal(kind, text) if multimodal else _class(kind, "ForCausalLM")(text)
        drafter = _assistant(kind)
    draw_weights(target, f"{kind} target", seed)
    draw_weights(drafter, f"{kind} drafter", seed)

    state = target.state_dict()
    if multimodal:
        state |= _unused_key_value_weights(target)
    suppressed = SUPPRESSED.get(kind)
    target.generation_config = GenerationConfig(**_DATA["generation"], suppress_tokens=suppressed)
    target.save_pretrained(paths.target, state_dict=state, **shards)
    drafter.save_pretrained(paths.drafter, **shards)
    return paths


def draw_weights(model: PreTrainedModel, role: str, seed: int) -> None:
    """Draw every text weight from (seed, role, name); towers stay as they are.

    Activations stay near 1 and logits spread by about 1.5.
    """
    import torch

    for name, tensor in model.state_dict().items():
        if "vision" in name or "audio" in name or name == "lm_head.weight":
            continue
        name = name.replace("language_model.", "")
        rng = np.random.default_rng([seed, zlib.crc32(f"{role} {name}".encode())])
        with torch.no_grad():
            tensor.copy_(torch.from_numpy(_draw(name, tuple(tensor.shape), rng)))


def _draw(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    if name.endswith("token_ordering"):
        return rng.permutation(shape[0])
    if name.endswith("layer_scalar"):
        return rng.uniform(0.5, 1.2, shape)
    if name.endswith("per_expert_scale"):
        return rng.uniform(0.5, 1.5, shape)
    if len(shape) == 1:
        mean = 1.0
        if name == "model.norm.weight":
            mean = FINAL_HIDDEN
        elif name.endswith("q_norm.weight"):
            mean = ATTENTION_SCORE * shape[0] ** -0.5
        return mean * rng.uniform(0.7, 1.3, shape)
    std = shape[-1] ** -0.5
    if name.endswith("embed_tokens.weight"):
        std *= EMBEDDING
    elif name == "pre_projection.weight":
        # The embedding and the last hidden state have the same weight.
        half = shape[-1] // 2
        std *= np.repeat([EMBEDDING**-1, FINAL_HIDDEN**-1], half)
    elif name.endswith("embed_tokens_per_layer.weight"):
        std = PER_LAYER_WIDTH**-0.5
    elif name.endswith("router.proj.weight"):
        std = 1.5
    return rng.standard_normal(shape, dtype=np.float32) * np.asarray(std, np.float32)


def to_global_spelling(folder: Path) -> None:
    """Rewrite a config.json from `per_layer_config` to the older spelling.

    It has `global_head_dim` and `num_global_key_value_heads` (null: as in sliding layers).
    """
    path = folder / "config.json"
    config = json.loads(path.read_text())
    text = config.get("text_config", config)
    overrides = list(text.pop("per_layer_config").values())
    assert all(override == overrides[0] for override in overrides)
    text["global_head_dim"] = overrides[0]["head_dim"]
    text["num_global_key_value_heads"] = overrides[0].get("num_key_value_heads")
    path.write_text(json.dumps(config, indent=2))


def _family(kind: str) -> str:
    return "Gemma4Unified" if kind == "12B" else "Gemma4"


def _class(kind: str, name: str) -> Any:
    """Transformers' class of this name for a kind, such as Gemma4TextConfig for "TextConfig"."""
    import transformers

    return getattr(transformers, _family(kind) + name)


def _text_config(kind: str, own: dict[str, Any]) -> PreTrainedConfig:
    settings = COMMON | own
    every = settings.pop("full_attention_every")
    settings["layer_types"] = [
        "sliding_attention" if index % every else "full_attention"
        for index in range(1, own["num_hidden_layers"] + 1)
    ]
    return _class(kind, "TextConfig")(**settings)


def _multimodal(kind: str, text: PreTrainedConfig) -> PreTrainedModel:
    towers = _DATA["towers"][_family(kind)]
    config = _class(kind, "Config")(
        text_config=text,
        vision_config=_class(kind, "VisionConfig")(**towers["vision"]),
        audio_config=_class(kind, "AudioConfig")(**towers["audio"]),
    )
    return _class(kind, "ForConditionalGeneration")(config)


def _assistant(kind: str) -> PreTrainedModel:
    target = TARGETS[kind]
    # The shape and the window of the K/V that it reads.
    own = {name: target[name] for name in _DATA["inherited"] if name in target}
    own |= {
        "hidden_size": 64,
        "num_hidden_layers": 4,
        "full_attention_every": 4,
        "num_kv_shared_layers": 4,
        "final_logit_softcapping": None,
    }
    if _family(kind) == "Gemma4":
        own |= {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0}
    config = _class(kind, "AssistantConfig")(
        text_config=_text_config(kind, own),
        backbone_hidden_size=target["hidden_size"],
        use_ordered_embeddings=kind in CENTROID_KINDS,
        num_centroids=32,
        centroid_intermediate_top_k=4,
    )
    return _class(kind, "AssistantForCausalLM")(config)


def _unused_key_value_weights(target: PreTrainedModel) -> dict[str, torch.Tensor]:
    """k/v weights of the layers that share another's K/V: a loader must leave them out."""
    import torch

    config = target.config.get_text_config()
    first = config.num_hidden_layers - config.num_kv_shared_layers
    state = target.state_dict()
    unused = {}
    for layer in range(first, config.num_hidden_layers):
        owner = config.layer_types[:first].index(config.layer_types[layer])
        for part in ("k_proj", "v_proj", "k_norm"):
            name = "model.language_model.layers.{}.self_attn." + part + ".weight"
            unused[name.format(layer)] = torch.full_like(state[name.format(owner)], 1e3)
    return unused
