"""The shape of each decoder layer, as a config.json gives it.

Knows nothing of what layers have in common.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from mlx_gemma_mtp.errors import CheckpointError
from mlx_gemma_mtp.model.defaults import check_sizes

LayerKind = Literal["sliding_attention", "full_attention"]
KINDS: tuple[LayerKind, LayerKind] = ("sliding_attention", "full_attention")


@dataclass(frozen=True)
class LayerConfig:
    """One decoder layer.

    kv_source: the layer whose keys and values this one reads: itself, or for a KV-shared layer the
    last layer of the same kind that owns any. k_eq_v: the values come from the key projection.
    A drafter's layers own nothing, and their kv_source means nothing.
    """

    kind: LayerKind
    head_dim: int
    num_key_value_heads: int
    k_eq_v: bool
    intermediate_size: int
    owns_kv: bool
    kv_source: int

    def __post_init__(self) -> None:
        check_sizes(self, "head_dim", "num_key_value_heads", "intermediate_size")
        if self.head_dim % 2:
            raise CheckpointError(f"config.json: head_dim must be even, not {self.head_dim}")


def read_layers(text: dict[str, Any], num_shared: int) -> tuple[LayerConfig, ...]:
    """Return the layers, of which the last num_shared own no keys and values; in a drafter, all.

    text: the text part of a config, with its defaults. Raises CheckpointError.
    """
    count = text["num_hidden_layers"]
    kinds = text["layer_types"]
    if len(kinds) != count or set(kinds) - set(KINDS):
        raise CheckpointError(
            f"config.json: layer_types must list {count} layers, each {' or '.join(KINDS)}"
        )
    if kinds[-1:] == ["sliding_attention"]:  # which Transformers overrides, and other tools don't
        raise CheckpointError("config.json: the last of layer_types must be full_attention")
    num_own = count - num_shared
    if not 0 <= num_own <= count:
        raise CheckpointError(
            f"config.json: num_kv_shared_layers is {num_shared}, but there are {count} layers"
        )
    last_owner = {kinds[index]: index for index in range(num_own)}
    overrides = text.get("per_layer_config")
    if overrides is not None:  # keys are layer numbers, padded with zeros: "05"
        overrides = {int(key): value for key, value in overrides.items()}
        for index, own in overrides.items():
            other = own.keys() - {"head_dim", "num_key_value_heads"}
            if other or not 0 <= index < count:
                raise CheckpointError(
                    f"config.json: per_layer_config.{index} is not supported: {own}"
                )
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
        owns_kv = index < num_own
        wide = 2 if num_own and not owns_kv and text.get("use_double_wide_mlp") else 1
        layers.append(
            LayerConfig(
                kind=kind,
                head_dim=head_dim,
                num_key_value_heads=kv_heads,
                k_eq_v=k_eq_v,
                intermediate_size=text["intermediate_size"] * wide,
                owns_kv=owns_kv,
                kv_source=index if owns_kv else last_owner.get(kind, index),
            )
        )
    return tuple(layers)
