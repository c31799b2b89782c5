"""What a conversion will write, to the byte, from the source's config and headers alone.

Knows which tensors a model needs and which format each gets; reads no weights, writes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import mlx.core as mx
from mlx.utils import tree_flatten
from rich.filesize import decimal

from mlx_gemma_mtp.errors import CheckpointError, UsageError
from mlx_gemma_mtp.files.arrays import give_own_head, refuse_unknown
from mlx_gemma_mtp.files.checkpoint import parse_config
from mlx_gemma_mtp.files.quantization import check_readable, is_quantized
from mlx_gemma_mtp.files.weights import dtype_name
from mlx_gemma_mtp.model.config import DrafterConfig, TargetConfig, check_pair
from mlx_gemma_mtp.model.drafter import Drafter
from mlx_gemma_mtp.model.target import Target

from . import recipes
from .formats import AFFINE_BITS, UNQUANTIZED, parse_format
from .manifest import RecipeRecord
from .parameter import Parameter, locate, stored_parts
from .recipes import Rule
from .shards import Shard, lay_out
from .source import Source

DTYPES = {"bfloat16": mx.bfloat16, "float16": mx.float16, "float32": mx.float32}
MULTIMODAL = ("gemma4", "gemma4_unified")


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to convert a pair.

    bits: one of formats.NAMES. group_size: of affine formats; 64 by default. dtype: of unquantized
    tensors; by default each keeps its own. rules: `PATTERN=FORMAT`, before the recipe's; patterns
    for the drafter start with `drafter.`. drafter_bits: 8 for a target of more than 4 bits, else 4.
    slice_bytes: of the source, read and quantized at a time. sync_bytes: of the output, the most
    that a kill may cost. shard_bytes: maximum size of a file; a larger tensor gets its own.
    """

    bits: str = "4"
    group_size: int | None = None
    dtype: str | None = None
    recipe: str = "mixed"
    rules: tuple[str, ...] = ()
    drafter_bits: str | None = None
    slice_bytes: int = 16 * 2**20
    sync_bytes: int = 256 * 2**20
    shard_bytes: int = 5_000_000_000

    def __post_init__(self) -> None:
        """Raise UsageError for options that fit no checkpoint."""
        if self.dtype is not None and self.dtype not in DTYPES:
            raise UsageError(f"dtype must be one of {', '.join(DTYPES)}, not {self.dtype!r}")
        for rule in self.rules:
            recipes.parse_rule(rule, self.group_size)
        recipes.rules_of(self.recipe, self.bits, self.group_size)
        self.drafter_rules()

    @property
    def bits_of_drafter(self) -> str:
        """`drafter_bits`, or its default; `files.weights.drafter_bits` has the reason."""
        if self.drafter_bits or self.bits in (UNQUANTIZED, "q4_0"):
            return self.drafter_bits or self.bits
        chosen = parse_format(self.bits)
        return "8" if chosen is not None and chosen.bits > 4 else "4"

    def drafter_rules(self, config: DrafterConfig | None = None) -> list[Rule]:
        """Return the recipe's rules, for any drafter or one. Raises UsageError."""
        group_size = self.group_size if self.bits_of_drafter in AFFINE_BITS else None
        rules = recipes.rules_of(recipes.DRAFTER_RECIPE, self.bits_of_drafter, group_size)
        centroids = config is not None and config.use_ordered_embeddings
        return [*recipes.CENTROID_RULES, *rules] if centroids else rules


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The conversion of a target or a drafter."""

    kind: Literal["target", "drafter"]
    source: Source
    config: TargetConfig | DrafterConfig
    recipe: RecipeRecord
    parameters: tuple[Parameter, ...]
    shards: tuple[Shard, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all weights of the output."""
        return sum(parameter.nbytes for parameter in self.parameters)

    @property
    def num_weights(self) -> int:
        real = (one for one in self.parameters if mx.issubdtype(one.dtype, mx.floating))
        return sum(math.prod(parameter.shape) for parameter in real)

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.nbytes / self.num_weights

    @property
    def size(self) -> str:
        return f"{self.bits_per_weight:.2f} bits per weight, {decimal(self.nbytes)}"

    @property
    def left_out(self) -> int:
        """Bytes of the source's tensors that a text model doesn't need."""
        used = {tensor.name for one in self.parameters for tensor in one.rows.tensors}
        tensors = self.source.tensors.values()
        return sum(tensor.nbytes for tensor in tensors if tensor.name not in used)


def plan_target(source: Source, options: Options) -> Plan:
    """Plan the conversion of a target. Raises CheckpointError, UsageError."""
    config = parse_config(TargetConfig.from_dict, source.config, source.folder)
    recipe = recipes.rules_of(options.recipe, options.bits, options.group_size, config)
    return _plan(Target(config), source, recipe, options)


def plan_drafter(source: Source, target: Plan, options: Options) -> Plan:
    """Plan the conversion of a drafter for this target. Raises CheckpointError, UsageError."""
    config = parse_config(DrafterConfig.from_dict, source.config, source.folder)
    assert isinstance(target.config, TargetConfig)
    check_pair(target.config, config)
    return _plan(Drafter(config), source, options.drafter_rules(config), options)


def _plan(
    model: Target | Drafter, source: Source, recipe: Sequence[Rule], options: Options
) -> Plan:
    check_readable(source.folder, source.config, source.tensors)
    if is_quantized(source.tensors):
        raise CheckpointError(
            f"{source.folder} is already quantized: give the checkpoint it was made from"
        )
    if all(tensor.path.exists() for tensor in source.tensors.values()):
        give_own_head(model, source.config, source.tensors, source.folder)
    elif "lm_head.weight" in source.tensors:
        raise UsageError(
            f"{source.folder} has an output head that may equal its embedding: download it first, "
            f"with mgm pull {source.folder}, to plan its conversion"
        )
    is_target = isinstance(model, Target)
    multimodal = source.config["model_type"] in MULTIMODAL
    own = [
        recipes.parse_rule(rule.removeprefix(recipes.DRAFTER), options.group_size)
        for rule in options.rules
        if rule.startswith(recipes.DRAFTER) != is_target
    ]
    rules = [*own, *recipe]
    modules = {path for path, module in model.named_modules() if hasattr(module, "to_quantized")}
    parameters = []
    for name, array in dict(tree_flatten(model.parameters())).items():
        quantizable = name.removesuffix(".weight") in modules
        for own_name, shape, rows in locate(name, array, source):
            path = own_name.removesuffix(".weight")
            chosen = parse_format(recipes.deciding(path, rules).format) if quantizable else None
            written = _written(own_name, multimodal) if is_target else rows.tensors[0].name
            dtype = rows.dtype
            if options.dtype is not None and mx.issubdtype(dtype, mx.floating):
                dtype = DTYPES[options.dtype]
            parts = stored_parts(path, written, shape, dtype, chosen)
            parameters.append(
                Parameter(path, written, shape, dtype, quantizable, chosen, rows, parts)
            )
    used = {tensor.name for one in parameters for tensor in one.rows.tensors}
    rest = {name: one for name, one in source.tensors.items() if one.name not in used}
    refuse_unknown(model, rest, source.folder)
    paths = [parameter.path for parameter in parameters if parameter.quantizable]
    for rule in own:
        if not any(rule.matches(path) for path in paths):
            raise UsageError(
                f"the rule for {rule.pattern!r} matches nothing; names look like {paths[-1]}"
            )
    formats = {one.path: one.format for one in parameters}
    for gate in formats:
        up = gate.replace("gate_proj", "up_proj")
        if ".experts." in gate and formats[gate] != formats[up]:  # the loader joins them
            raise UsageError(f"{gate} and {up} must have the same format: give one rule for both")
    deciding = {recipes.deciding(path, rules) for path in paths}
    bits = options.bits if is_target else options.bits_of_drafter
    base = parse_format(bits, options.group_size)
    return Plan(
        kind="target" if is_target else "drafter",
        source=source,
        config=model.config,
        recipe=RecipeRecord(
            name=options.recipe if is_target else recipes.DRAFTER_RECIPE,
            bits=bits,
            group_size=None if base is None else base.group_size,
            dtype=dtype_name(next(one.dtype for one in parameters if one.path == "norm")),
            rules=tuple(dict.fromkeys(rule for rule in rules if rule in deciding)),
        ),
        parameters=tuple(parameters),
        shards=tuple(lay_out([one.parts for one in parameters], options.shard_bytes)),
    )


def _written(name: str, multimodal: bool) -> str:
    """Return the name that MLX's tools give to a target's tensor of this name here."""
    own = name if name.startswith("lm_head.") else f"model.{name}"
    return f"language_model.{own}" if multimodal else own
