"""Safetensors files of zeros, or with nothing that anybody reads."""

import json
import struct
from collections.abc import Mapping, Sequence

from mlx.utils import tree_flatten

from mlx_gemma_mtp.model.config import DrafterConfig, TargetConfig
from mlx_gemma_mtp.model.drafter import Drafter
from mlx_gemma_mtp.model.target import Target


def weight_file(
    tensors: Mapping[str, tuple[str, Sequence[int], int]], fill: bytes = bytes(1)
) -> bytes:
    """Return a safetensors file of tensors with a type, a shape and a number of bytes."""
    entries, end = {}, 0
    for name, (dtype, shape, size) in tensors.items():
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    header = json.dumps(entries).encode()
    return struct.pack("<Q", len(header)) + header + fill * end


def weights(num_bytes: int, fill: bytes = b"w") -> bytes:
    """Return a safetensors file of one tensor."""
    return weight_file({"model.norm.weight": ("U8", [num_bytes], num_bytes)}, fill)


def few_weights(width: int, bits: int) -> bytes:
    """Return a safetensors file of one row of a map from `width` numbers, quantized to `bits`."""
    scales = ("BF16", [1, width // 64], width // 32)
    parts = {"weight": ("U32", [1, width * bits // 32], width * bits // 8)}
    parts |= {"scales": scales, "biases": scales}
    if bits == 16:
        parts = {"weight": ("BF16", [1, width], 2 * width)}
    return weight_file({f"model.layers.0.self_attn.q_proj.{n}": one for n, one in parts.items()})


def real_weights(config: Mapping[str, object], *, header_only: bool = False) -> bytes:
    """Return a safetensors file of zeros for the model of this config."""
    made: Target | Drafter
    if "backbone_hidden_size" in config:
        made = Drafter(DrafterConfig.from_dict(dict(config)))
    else:
        made = Target(TargetConfig.from_dict(dict(config)))
    tensors = {}
    for name, array in dict(tree_flatten(made.parameters())).items():
        stored = name if name.startswith(("pre_", "post_")) else f"model.{name}"
        tensors[stored] = ("BF16", array.shape, 2 * array.size)
    return weight_file(tensors, b"" if header_only else bytes(1))
