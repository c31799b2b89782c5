"""The shape of a target or a drafter, as its config.json gives it.

Knows the spellings that Transformers has used for Gemma 4. Knows nothing of arrays, files or
quantization.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from mlx_gemma_mtp.errors import CheckpointError
from mlx_gemma_mtp.model.defaults import (
    check_number,
    check_sizes,
    text_section,
    with_integers,
)
from mlx_gemma_mtp.model.layer_config import KINDS, LayerConfig, LayerKind, read_layers
from mlx_gemma_mtp.model.rope import RopeConfig

TARGET_TYPES = ("gemma4", "gemma4_text", "gemma4_unified", "gemma4_unified_text")
_ARCHITECTURE = re.compile(r"Gemma4(Unified)?(Text)?(ForCausalLM|ForConditionalGeneration|Model)")
DRAFTER_TYPES = ("gemma4_assistant", "gemma4_unified_assistant")


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
        """Raise CheckpointError if no model could be built with a value."""
        if not self.layers:
            raise CheckpointError("config.json: num_hidden_layers must be at least 1")
        check_sizes(self, "vocab_size", "hidden_size", "num_attention_heads", "sliding_window")
        check_number("rms_norm_eps", self.rms_norm_eps, most=1)
        shapes: dict[LayerKind, LayerConfig] = {}
        for layer in self.layers:
            kv_heads = layer.num_key_value_heads
            if layer.owns_kv and self.num_attention_heads % kv_heads:
                raise CheckpointError(
                    f"config.json: {self.num_attention_heads} query heads cannot share "
                    f"{kv_heads} key/value heads evenly"
                )
            first = shapes.setdefault(layer.kind, layer)
            if (layer.head_dim, kv_heads) != (first.head_dim, first.num_key_value_heads):
                raise CheckpointError(
                    f"config.json: all {layer.kind} layers must have the same heads"
                )

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
    """A Gemma 4 text decoder.

    num_experts is 0 in a dense model; hidden_size_per_layer_input is 0 without per-layer
    embeddings.
    """

    max_position_embeddings: int
    final_logit_softcapping: float | None
    num_experts: int
    top_k_experts: int
    moe_intermediate_size: int
    hidden_size_per_layer_input: int
    vocab_size_per_layer_input: int

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sizes(self, "max_position_embeddings")
        if self.final_logit_softcapping is not None:
            check_number("final_logit_softcapping", self.final_logit_softcapping)
        if self.num_experts:
            check_sizes(self, "num_experts", "top_k_experts", "moe_intermediate_size")
            if self.top_k_experts > self.num_experts:
                raise CheckpointError(
                    f"config.json: top_k_experts is {self.top_k_experts}, but there are only "
                    f"{self.num_experts} experts"
                )
        if self.hidden_size_per_layer_input:
            check_sizes(self, "hidden_size_per_layer_input", "vocab_size_per_layer_input")
            if self.vocab_size_per_layer_input < self.vocab_size:  # MLX would read beyond the table
                raise CheckpointError(
                    "config.json: vocab_size_per_layer_input is "
                    f"{self.vocab_size_per_layer_input}, but there are {self.vocab_size} tokens"
                )
        for kind in KINDS:
            if not any(layer.owns_kv and layer.kind == kind for layer in self.layers):
                raise CheckpointError(
                    f"config.json: no {kind} layer has keys and values of its own"
                )

    @staticmethod
    def from_dict(raw: dict[str, Any]) -> TargetConfig:
        """Read the parsed config.json of a target, multimodal or text-only.

        Raises CheckpointError unless it is a Gemma 4 target that this runtime can run.
        """
        model_type = raw.get("model_type")
        if model_type in DRAFTER_TYPES:
            raise CheckpointError(
                "this is a drafter (an assistant checkpoint), which cannot generate alone: give "
                "its target as the model, and this one as the drafter"
            )
        if model_type not in TARGET_TYPES:
            raise CheckpointError(
                f"not a Gemma 4 model (model_type {model_type!r}); "
                "only Gemma 4 is supported: E2B, E4B, 12B, 26B-A4B and 31B"
            )
        for name in raw.get("architectures") or []:
            if not _ARCHITECTURE.fullmatch(str(name)):  # a classifier, or another tool's drafter
                raise CheckpointError(f"config.json: architecture {name!r} is not supported")
        raw = with_integers(raw)
        text = text_section(raw)
        keys = ("num_experts", "top_k_experts", "moe_intermediate_size")
        mixture = bool(text.get("enable_moe_block"))
        experts: dict[str, Any] = {key: (mixture and text.get(key)) or 0 for key in keys}
        if mixture and not all(experts.values()):
            raise CheckpointError(f"config.json: enable_moe_block needs {', '.join(keys)}")
        return TargetConfig(
            **_decoder_fields(text, num_shared=text.get("num_kv_shared_layers") or 0),
            **experts,
            max_position_embeddings=text["max_position_embeddings"],
            final_logit_softcapping=text.get("final_logit_softcapping"),
            hidden_size_per_layer_input=text["hidden_size_per_layer_input"] or 0,
            vocab_size_per_layer_input=text.get("vocab_size_per_layer_input", text["vocab_size"]),
        )


@dataclass(frozen=True, kw_only=True)
class DrafterConfig(DecoderConfig):
    """A multi-token-prediction drafter: query-only layers that read the target's keys and values.

    query_position: where its queries stand, relative to the newest token's position. -1 is the
    last committed position (vLLM, SGLang, mlx-vlm); Transformers and llama.cpp use 0. It changes
    how many drafts are accepted, never the text.
    """

    backbone_hidden_size: int
    use_ordered_embeddings: bool
    num_centroids: int
    centroid_intermediate_top_k: int
    query_position: int = -1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sizes(self, "backbone_hidden_size")
        if self.use_ordered_embeddings:
            check_sizes(self, "num_centroids", "centroid_intermediate_top_k")
            chosen, centroids = self.centroid_intermediate_top_k, self.num_centroids
            if self.vocab_size % centroids or chosen > centroids:
                raise CheckpointError(
                    f"config.json: {chosen} of {centroids} centroids do not fit a vocabulary of "
                    f"{self.vocab_size}"
                )

    @staticmethod
    def from_dict(raw: dict[str, Any]) -> DrafterConfig:
        """Read the parsed config.json of an assistant checkpoint. Raises CheckpointError."""
        if raw.get("model_type") not in DRAFTER_TYPES:
            raise CheckpointError(
                f"not a Gemma 4 drafter (model_type {raw.get('model_type')!r}); "
                "the names of drafters have -assistant in them"
            )
        raw = with_integers(raw)
        text = text_section(raw)
        count, shared = text["num_hidden_layers"], text.get("num_kv_shared_layers")
        if shared not in (None, 0, count):  # as in Transformers; 0 means all
            raise CheckpointError(
                f"config.json: num_kv_shared_layers is {shared!r}, but all {count} layers of a "
                "drafter use the target's keys and values"
            )
        return DrafterConfig(
            **_decoder_fields(text, num_shared=count),
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
        heads, kv_heads = drafter.num_attention_heads, read.num_key_value_heads
        if heads % kv_heads:
            pairs.append((f"query heads per key/value head of {kind} layers", heads, kv_heads))
    for what, has, needs in pairs:
        if has != needs:
            raise CheckpointError(
                f"this drafter belongs to another model: its {what} is {has}, the target's is "
                f"{needs}; name another one with --drafter, or none"
            )


def _decoder_fields(text: dict[str, Any], *, num_shared: int) -> dict[str, Any]:
    same = ("vocab_size", "hidden_size", "num_attention_heads", "rms_norm_eps", "sliding_window")
    return {
        **{key: text[key] for key in same},
        "layers": read_layers(text, num_shared),
        "rope": {kind: RopeConfig.from_dict(text, kind) for kind in KINDS},
    }
