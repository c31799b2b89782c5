"""What a checkpoint's config.json says about the shape of a target or a drafter, frozen.

Knows the spellings Transformers has used for Gemma 4 and the defaults of its configuration
classes; knows nothing of arrays, files or quantization.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from mlx_gemma_mtp.errors import CheckpointError

LayerKind = Literal["sliding_attention", "full_attention"]
KINDS: tuple[LayerKind, LayerKind] = ("sliding_attention", "full_attention")

TARGET_TYPES = ("gemma4", "gemma4_text", "gemma4_unified", "gemma4_unified_text")
DRAFTER_TYPES = ("gemma4_assistant", "gemma4_unified_assistant")

# Defaults of Transformers' Gemma4TextConfig: save_pretrained may leave out what equals them.
_TEXT_DEFAULTS: dict[str, Any] = {
    "vocab_size": 262_144,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 30,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "global_head_dim": 512,
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 131_072,
    "rms_norm_eps": 1e-6,
    "sliding_window": 512,
    "hidden_size_per_layer_input": 256,
}
_UNIFIED_DEFAULTS = {
    "max_position_embeddings": 262_144,
    "sliding_window": 1024,
    "hidden_size_per_layer_input": 0,
}
_ROPE_DEFAULTS: dict[str, dict[str, Any]] = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
    "full_attention": {
        "rope_type": "proportional",
        "partial_rotary_factor": 0.25,
        "rope_theta": 1_000_000.0,
    },
}


@dataclass(frozen=True)
class LayerConfig:
    """One decoder layer.

    `kv_source` is the layer whose keys and values this one reads: itself, or for a KV-shared
    layer the last layer of the same kind that owns any. `k_eq_v`: values are made of the key
    projection. A drafter's layers own nothing; their `kv_source` is meaningless.
    """

    kind: LayerKind
    head_dim: int
    num_key_value_heads: int
    k_eq_v: bool
    intermediate_size: int
    owns_kv: bool
    kv_source: int


@dataclass(frozen=True)
class RopeConfig:
    """Rotary embedding of one layer kind; `rotated` is the share of the head that turns."""

    theta: float
    rotated: float


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """What target and drafter have in common."""

    vocab_size: int
    hidden_size: int
    num_attention_heads: int
    rms_norm_eps: float
    sliding_window: int
    layers: tuple[LayerConfig, ...]
    rope: dict[LayerKind, RopeConfig]

    def __post_init__(self) -> None:
        """Raise CheckpointError for a value that no model could be built with."""
        if not self.layers:
            raise CheckpointError("config.json: num_hidden_layers must be 1 or more")
        sizes = {
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "num_attention_heads": self.num_attention_heads,
            "sliding_window": self.sliding_window,
        }
        for layer in self.layers:
            sizes |= {
                "head_dim": layer.head_dim,
                "num_key_value_heads": layer.num_key_value_heads,
                "intermediate_size": layer.intermediate_size,
            }
            _check_sizes(sizes)
            if layer.head_dim % 2:
                raise CheckpointError(f"config.json: head_dim is {layer.head_dim}, not even")
            if self.num_attention_heads % layer.num_key_value_heads and layer.owns_kv:
                raise CheckpointError(
                    f"config.json: {self.num_attention_heads} query heads do not share "
                    f"{layer.num_key_value_heads} key/value heads evenly"
                )
        for kind in self.kinds:
            shapes = {
                (layer.head_dim, layer.num_key_value_heads)
                for layer in self.layers
                if layer.kind == kind
            }
            if len(shapes) > 1:
                raise CheckpointError(f"config.json: {kind} layers differ in their heads")
        _check_share("rms_norm_eps", self.rms_norm_eps)
        for rope in self.rope.values():
            _check_share("partial_rotary_factor", rope.rotated)
            _check_positive("rope_theta", rope.theta)

    @property
    def kinds(self) -> tuple[LayerKind, ...]:
        """The layer kinds that occur."""
        return tuple(kind for kind in KINDS if any(layer.kind == kind for layer in self.layers))

    def last_owner(self, kind: LayerKind) -> int:
        """Index of the last layer of this kind with keys and values of its own."""
        return max(i for i, layer in enumerate(self.layers) if layer.owns_kv and layer.kind == kind)

    @property
    def num_kv_layers(self) -> int:
        """Layers that own keys and values; they are always the first ones."""
        return sum(layer.owns_kv for layer in self.layers)


@dataclass(frozen=True, kw_only=True)
class TargetConfig(DecoderConfig):
    """A Gemma 4 text decoder. Zero experts: dense; zero PLE width: no per-layer embeddings."""

    max_position_embeddings: int
    final_logit_softcapping: float | None
    num_experts: int
    top_k_experts: int
    moe_intermediate_size: int
    hidden_size_per_layer_input: int
    vocab_size_per_layer_input: int

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_sizes({"max_position_embeddings": self.max_position_embeddings})
        if self.final_logit_softcapping is not None:
            _check_positive("final_logit_softcapping", self.final_logit_softcapping)
        if self.num_experts:
            _check_sizes({"moe_intermediate_size": self.moe_intermediate_size})
        if self.hidden_size_per_layer_input:
            _check_sizes(
                {
                    "hidden_size_per_layer_input": self.hidden_size_per_layer_input,
                    "vocab_size_per_layer_input": self.vocab_size_per_layer_input,
                }
            )
        for kind in KINDS:
            if not any(layer.owns_kv and layer.kind == kind for layer in self.layers):
                raise CheckpointError(
                    f"config.json: no {kind} layer has keys and values of its own"
                )

    @staticmethod
    def from_dict(raw: dict[str, Any]) -> TargetConfig:
        """Read the parsed config.json of a target, multimodal or text-only.

        Raises CheckpointError for anything that is not a Gemma 4 target this runtime can run.
        """
        model_type = raw.get("model_type")
        if model_type in DRAFTER_TYPES:
            raise CheckpointError(
                "this is a drafter (an assistant checkpoint), not a model to talk to: "
                "give the target, and this one as its drafter"
            )
        if model_type not in TARGET_TYPES:
            raise CheckpointError(
                f"not a Gemma 4 model (model_type {model_type!r}); "
                "this runtime runs Gemma 4 only: E2B, E4B, 12B, 26B-A4B and 31B"
            )
        text = _text_section(raw)
        moe = bool(text.get("enable_moe_block"))
        experts = _required(text, "num_experts") if moe else 0
        chosen = _required(text, "top_k_experts") if moe else 0
        if moe:
            _check_sizes({"num_experts": experts, "top_k_experts": chosen})
        if moe and chosen > experts:
            raise CheckpointError(f"config.json: top_k_experts is {chosen} of {experts} experts")
        width = text["hidden_size_per_layer_input"] or 0
        return TargetConfig(
            **_decoder_fields(text, num_shared=text.get("num_kv_shared_layers") or 0),
            max_position_embeddings=text["max_position_embeddings"],
            final_logit_softcapping=text.get("final_logit_softcapping"),
            num_experts=experts,
            top_k_experts=chosen,
            moe_intermediate_size=_required(text, "moe_intermediate_size") if moe else 0,
            hidden_size_per_layer_input=width,
            vocab_size_per_layer_input=text.get("vocab_size_per_layer_input", text["vocab_size"]),
        )


@dataclass(frozen=True, kw_only=True)
class DrafterConfig(DecoderConfig):
    """A multi-token-prediction drafter: query-only layers that read the target's keys and values.

    `query_position` is where its queries stand, relative to the newest token's position P: -1,
    the last committed slot (vLLM, SGLang, mlx-vlm), or 0 (Transformers, llama.cpp). It changes
    how many drafts are accepted, never the text.
    """

    backbone_hidden_size: int
    use_ordered_embeddings: bool
    num_centroids: int
    centroid_intermediate_top_k: int
    query_position: int = -1

    def __post_init__(self) -> None:
        super().__post_init__()
        sizes = {"backbone_hidden_size": self.backbone_hidden_size}
        if self.use_ordered_embeddings:
            sizes["num_centroids"] = self.num_centroids
            sizes["centroid_intermediate_top_k"] = self.centroid_intermediate_top_k
        _check_sizes(sizes)
        if self.use_ordered_embeddings and (
            self.vocab_size % self.num_centroids
            or self.centroid_intermediate_top_k > self.num_centroids
        ):
            raise CheckpointError(
                f"config.json: {self.num_centroids} centroids, of which "
                f"{self.centroid_intermediate_top_k} are chosen, do not fit a vocabulary of "
                f"{self.vocab_size}"
            )

    @staticmethod
    def from_dict(raw: dict[str, Any]) -> DrafterConfig:
        """Read the parsed config.json of an assistant checkpoint. Raises CheckpointError."""
        if raw.get("model_type") not in DRAFTER_TYPES:
            raise CheckpointError(
                f"not a Gemma 4 drafter (model_type {raw.get('model_type')!r}); "
                "drafters are the checkpoints whose names end in -assistant"
            )
        text = _text_section(raw)
        return DrafterConfig(
            **_decoder_fields(text, num_shared=text["num_hidden_layers"]),
            backbone_hidden_size=raw.get("backbone_hidden_size", 1536),
            use_ordered_embeddings=raw.get("use_ordered_embeddings", False),
            num_centroids=raw.get("num_centroids", 2048),
            centroid_intermediate_top_k=raw.get("centroid_intermediate_top_k", 32),
        )


def check_pair(target: TargetConfig, drafter: DrafterConfig) -> None:
    """Raise CheckpointError unless the drafter was made for a target of this shape."""
    pairs = [
        ("hidden size", drafter.backbone_hidden_size, target.hidden_size),
        ("vocabulary", drafter.vocab_size, target.vocab_size),
        ("sliding window", drafter.sliding_window, target.sliding_window),
    ]
    for kind in drafter.kinds:
        read = target.layers[target.last_owner(kind)]
        own = next(layer for layer in drafter.layers if layer.kind == kind)
        pairs.append((f"head size of {kind} layers", own.head_dim, read.head_dim))
        if drafter.num_attention_heads % read.num_key_value_heads:
            pairs.append(
                (
                    f"query heads per key/value head of {kind} layers",
                    drafter.num_attention_heads,
                    read.num_key_value_heads,
                )
            )
    for what, has, needs in pairs:
        if has != needs:
            raise CheckpointError(
                f"this drafter belongs to another model: its {what} is {has}, the target's is "
                f"{needs}; give the drafter whose name is the target's followed by -assistant"
            )


def _check_sizes(sizes: dict[str, Any]) -> None:
    for key, value in sizes.items():
        if type(value) is not int or not 0 < value < 2**31:
            raise CheckpointError(f"config.json: {key} is {value!r}, not a size")


def _check_positive(key: str, value: Any) -> None:
    if type(value) not in (int, float) or not 0 < value < math.inf:
        raise CheckpointError(f"config.json: {key} is {value!r}, not a positive number")


def _check_share(key: str, value: Any) -> None:
    _check_positive(key, value)
    if value > 1:
        raise CheckpointError(f"config.json: {key} is {value!r}, more than 1")


def _required(text: dict[str, Any], key: str) -> Any:
    if text.get(key) is None:
        raise CheckpointError(f"config.json lacks {key!r}: the checkpoint is incomplete")
    return text[key]


def _text_section(raw: dict[str, Any]) -> dict[str, Any]:
    """The text part of a config, with what Transformers leaves out filled in."""
    section = raw.get("text_config", raw)
    if not isinstance(section, dict):
        raise CheckpointError("config.json: text_config is not a mapping")
    unified = "unified" in str(section.get("model_type", raw.get("model_type")))
    text = _TEXT_DEFAULTS | (_UNIFIED_DEFAULTS if unified else {})
    text |= {key: value for key, value in section.items() if value is not None or key not in text}
    unsupported = {
        "attention_bias": bool(text.get("attention_bias")),
        "use_bidirectional_attention": text.get("use_bidirectional_attention") == "all",
        "hidden_activation": text["hidden_activation"] != "gelu_pytorch_tanh",
        "tie_word_embeddings": text.get("tie_word_embeddings") is False,
    }
    for key, bad in unsupported.items():
        if bad:
            raise CheckpointError(
                f"config.json: {key}={text[key]!r} is none of Gemma 4's text models"
            )
    return text


def _decoder_fields(text: dict[str, Any], *, num_shared: int) -> dict[str, Any]:
    return {
        "vocab_size": text["vocab_size"],
        "hidden_size": text["hidden_size"],
        "num_attention_heads": text["num_attention_heads"],
        "rms_norm_eps": text["rms_norm_eps"],
        "sliding_window": text["sliding_window"],
        "layers": _layers(text, num_shared),
        "rope": {kind: _rope(text, kind) for kind in KINDS},
    }


def _layers(text: dict[str, Any], num_shared: int) -> tuple[LayerConfig, ...]:
    count = text["num_hidden_layers"]
    kinds = text.get("layer_types") or [KINDS[(i + 1) % 6 == 0] for i in range(count)]
    unknown = set(kinds) - set(KINDS)
    if len(kinds) != count or unknown:
        raise CheckpointError(
            f"config.json: layer_types must name {count} layers of {', '.join(KINDS)}"
        )
    num_own = count - num_shared
    if num_shared < 0 or num_own < 0:
        raise CheckpointError(
            f"config.json: num_kv_shared_layers is {num_shared} of {count} layers"
        )
    overrides = text.get("per_layer_config")
    if overrides is not None:  # keys are layer numbers, padded with zeros: "05"
        overrides = {int(key): value for key, value in overrides.items()}
    layers = []
    for index, kind in enumerate(kinds):
        full = kind == "full_attention"
        k_eq_v = bool(text.get("attention_k_eq_v")) and full
        head_dim, kv_heads = text["head_dim"], text["num_key_value_heads"]
        if overrides is not None:
            own = overrides.get(index, {})
            head_dim = own.get("head_dim", head_dim)
            kv_heads = own.get("num_key_value_heads", kv_heads)
        elif full:
            head_dim = text["global_head_dim"]
            kv_heads = (k_eq_v and text.get("num_global_key_value_heads")) or kv_heads
        shared = index >= num_own
        source = index
        if shared and num_own > 0:
            owners = [i for i in range(num_own) if kinds[i] == kind]
            if not owners:
                raise CheckpointError(
                    f"config.json: layer {index} shares the keys and values of a {kind} layer, "
                    "but none owns any"
                )
            source = owners[-1]
        wide = 2 if shared and num_own > 0 and text.get("use_double_wide_mlp") else 1
        layers.append(
            LayerConfig(
                kind=kind,
                head_dim=head_dim,
                num_key_value_heads=kv_heads,
                k_eq_v=k_eq_v,
                intermediate_size=text["intermediate_size"] * wide,
                owns_kv=not shared,
                kv_source=source,
            )
        )
    return tuple(layers)


def _rope(text: dict[str, Any], kind: LayerKind) -> RopeConfig:
    parameters = (text.get("rope_parameters") or {}).get(kind) or _ROPE_DEFAULTS[kind]
    rope_type = parameters.get("rope_type", "default")
    if rope_type not in ("default", "proportional"):
        raise CheckpointError(f"config.json: rope_type {rope_type!r} is none of Gemma 4's")
    rotated = parameters.get("partial_rotary_factor", 1.0) if rope_type == "proportional" else 1.0
    return RopeConfig(theta=parameters["rope_theta"], rotated=rotated)
