"""Rotary embedding: its settings as a config.json spells them, and the rotation itself."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from mlx_gemma_mtp.errors import CheckpointError
from mlx_gemma_mtp.model.defaults import check_number

_DEFAULTS: dict[str, dict[str, Any]] = {  # Transformers', by layer kind
    "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
    "full_attention": {
        "rope_type": "proportional",
        "partial_rotary_factor": 0.25,
        "rope_theta": 1_000_000.0,
    },
}
# What Transformers reads for these two types, and the one key that it ignores for both.
_KEYS = {
    *("rope_type", "type", "rope_theta", "partial_rotary_factor", "factor"),
    "original_max_position_embeddings",
}
_OLDER = {"rope_theta": "full_attention", "rope_local_base_freq": "sliding_attention"}


@dataclass(frozen=True)
class RopeConfig:
    """Rotary embedding of one layer kind.

    rotated: the share of the head that turns. factor: what all periods are multiplied by, so that a
    model reads longer texts.
    """

    theta: float
    rotated: float
    factor: float = 1.0

    def __post_init__(self) -> None:
        check_number("rope_theta", self.theta)
        check_number("partial_rotary_factor", self.rotated, most=1)
        check_number("factor", self.factor)

    @staticmethod
    def from_dict(text: dict[str, Any], kind: str) -> RopeConfig:
        """Read the settings of a layer kind from the text part of a config.

        As Transformers reads them. Raises CheckpointError for anything that it would refuse, and
        for settings that it ignores but that other tools don't.
        """
        nested = _DEFAULTS if text.get("rope_parameters") is None else text["rope_parameters"]
        found = nested.get(kind) if isinstance(nested, dict) else None
        name = f"rope_parameters.{kind}"
        if not isinstance(found, dict):
            raise CheckpointError(f"config.json: {name} must be an object, not {found!r}")
        own = {key: value for key, value in found.items() if value is not None}
        unknown = own.keys() - _KEYS
        if unknown:
            raise CheckpointError(f"config.json: {name}.{min(unknown)} is not supported")
        rope_type = own.get("rope_type", own.get("type", "default"))
        if rope_type not in ("default", "proportional"):
            raise CheckpointError(f"config.json: {name}.rope_type={rope_type!r} is not supported")
        rotated, factor = own.get("partial_rotary_factor", 1.0), own.get("factor", 1.0)
        if rope_type == "default" and (rotated, factor) != (1, 1):
            raise CheckpointError(
                f"config.json: {name} has partial_rotary_factor {rotated!r} and factor {factor!r}, "
                "which rope_type='default' doesn't have"
            )
        theta = own.get("rope_theta")
        if theta is None:
            raise CheckpointError(f"config.json: {name}.rope_theta is missing")
        if text.get("rope_scaling") is not None:
            raise CheckpointError("config.json: rope_scaling is not supported")
        for older, meant in _OLDER.items():
            if meant == kind and text.get(older) not in (None, theta):
                raise CheckpointError(
                    f"config.json: {older} is {text[older]!r}, but {name}.rope_theta is {theta!r}"
                )
        return RopeConfig(theta, rotated, factor)


class Rope:
    """Half-split rotary embedding; only the first `rotated` share of the pairs is turned.

    "Proportional" RoPE (the full-attention layers) turns the pairs (i, i + head_dim / 2) for the
    first `rotated * head_dim / 2` values of i, at frequencies spaced for the whole head.
    """

    def __init__(self, head_dim: int, config: RopeConfig) -> None:
        half, turning = head_dim // 2, int(head_dim * config.rotated) // 2
        periods = [config.factor * config.theta ** (pair / half) for pair in range(turning)]
        self._head_dim = head_dim
        # An infinite period never turns. Built from numbers, because a compiled round would compute
        # an MLX expression again each time.
        self._periods = mx.array(periods + [math.inf] * (half - turning), mx.float32)

    def __call__(self, x: mx.array, position: mx.array) -> mx.array:
        """Rotate x [B, heads, T, head_dim], whose rows start at position [B]."""
        return mx.fast.rope(
            x,
            self._head_dim,
            traditional=False,
            base=None,
            scale=1.0,
            offset=position,
            freqs=self._periods,
        )
