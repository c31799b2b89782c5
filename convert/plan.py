"""What a conversion will write, to the byte, from the source's config and headers alone.

Knows which tensors a model needs and which format each gets; reads no weights, writes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from mlx_gemma_mtp.errors import CheckpointError, UsageError
from mlx_gemma_mtp.files.checkpoint import parse_config
from mlx_gemma_mtp.files.weights import dtype_name
from mlx_gemma_mtp.model.config import DrafterConfig, TargetConfig, check_pair
from mlx_gemma_mtp.model.drafter import Drafter
from mlx_gemma_mtp.model.target import Target

from . import recipes
from .formats import AFFINE_BITS, parse_format
from .manifest import RecipeRecord
from .outputs import Output, stored_parts, tensor_sources
from .recipes import Rule
from .shards import Shard, lay_out
from .source import Source

DTYPES = {"bfloat16": mx.bfloat16, "float16": mx.float16, "float32": mx.float32}
MULTIMODAL = ("gemma4", "gemma4_unified")
_QUANTIZATION = ("quantization", "quantization_config")


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to make of a pair.

    bits: one of formats.NAMES. group_size: of affine formats; 64 by default. dtype: of what is not
    quantized; by default each tensor's own. rules: `PATTERN=FORMAT`, before the recipe's; patterns
    for the drafter begin with `drafter.`. drafter_bits: 8 for a target of more than 4 bits, else 4.
    """

    bits: str = "4"
    group_size: int | None = None
    dtype: str | None = None
    recipe: str = "mixed"
    rules: tuple[str, ...] = ()
    drafter_bits: str | None = None

    def __post_init__(self) -> None:
        """Raise UsageError for what no checkpoint could be converted with."""
        if self.dtype is not None and self.dtype not in DTYPES:
            raise UsageError(f"dtype must be one of {', '.join(DTYPES)}, not {self.dtype!r}")
        for rule in self.rules:
            recipes.parse_rule(rule, self.group_size)
        recipes.target_rules(
            self.recipe, self.bits, self.group_size, num_layers=1, experts=True, per_layer=True
        )
        recipes.drafter_rules(self.bits_of_drafter, self.group_of_drafter)

    @property
    def bits_of_drafter(self) -> str:
        return self.drafter_bits or recipes.default_drafter_bits(self.bits)

    @property
    def group_of_drafter(self) -> int | None:
        return self.group_size if self.bits_of_drafter in AFFINE_BITS else None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A target's or drafter's conversion."""

    folder: Path  # of the source
    raw: dict[str, Any]  # its config.json
    config: TargetConfig | DrafterConfig
    recipe: RecipeRecord
    outputs: tuple[Output, ...]
    shards: tuple[Shard, ...]
    left_out: int  # bytes of the source that no text model needs

    @property
    def nbytes(self) -> int:
        """Of all weights."""
        return sum(output.nbytes for output in self.outputs)

    @property
    def parameters(self) -> int:
        return sum(
            math.prod(output.shape)
            for output in self.outputs
            if mx.issubdtype(output.dtype, mx.floating)
        )

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.nbytes / self.parameters


def plan_target(source: Source, options: Options) -> Plan:
    """The conversion of a target. Raises CheckpointError, UsageError."""
    config = parse_config(TargetConfig.from_dict, source.config, source.folder)
    own = [rule for rule in options.rules if not rule.startswith(recipes.DRAFTER)]
    rules = recipes.target_rules(
        options.recipe,
        options.bits,
        options.group_size,
        num_layers=len(config.layers),
        experts=config.num_experts > 0,
        per_layer=config.hidden_size_per_layer_input > 0,
    )
    prefix = "language_model.model." if source.config["model_type"] in MULTIMODAL else "model."
    return _plan(Target(config), source, own, rules, options, options.bits, prefix)


def plan_drafter(source: Source, target: Plan, options: Options) -> Plan:
    """The conversion of a drafter, for this target; errors as plan_target."""
    config = parse_config(DrafterConfig.from_dict, source.config, source.folder)
    assert isinstance(target.config, TargetConfig)
    check_pair(target.config, config)
    own = [
        rule.removeprefix(recipes.DRAFTER)
        for rule in options.rules
        if rule.startswith(recipes.DRAFTER)
    ]
    bits, group_size = options.bits_of_drafter, options.group_of_drafter
    rules = recipes.drafter_rules(bits, group_size)
    return _plan(Drafter(config), source, own, rules, options, bits, None)


def _plan(
    model: Target | Drafter,
    source: Source,
    own: Sequence[str],
    rules: Sequence[Rule],
    options: Options,
    bits: str,
    prefix: str | None,
) -> Plan:
    """prefix: of the output's names; None: they are those of the source."""
    _check_unquantized(source)
    given = [recipes.parse_rule(rule, options.group_size) for rule in own]
    rules = [*given, *rules]
    modules = {path for path, module in model.named_modules() if hasattr(module, "to_quantized")}
    outputs = []
    for name, parameter in dict(tree_flatten(model.parameters())).items():
        quantizable = name.removesuffix(".weight") in modules
        for own_name, shape, rows in tensor_sources(name, parameter, source):
            path = own_name.removesuffix(".weight")
            chosen = parse_format(recipes.deciding(path, rules).format) if quantizable else None
            written = rows.tensor.name if prefix is None else prefix + own_name
            dtype = rows.tensor.dtype
            if options.dtype is not None and mx.issubdtype(dtype, mx.floating):
                dtype = DTYPES[options.dtype]
            parts = stored_parts(path, written, shape, dtype, chosen)
            outputs.append(Output(path, written, shape, dtype, quantizable, chosen, rows, parts))
    paths = [output.path for output in outputs if output.quantizable]
    _check_rules(given, paths)
    _check_experts(outputs)
    used = {output.rows.tensor.name for output in outputs}
    deciding = {recipes.deciding(path, rules) for path in paths}
    base = parse_format(bits, options.group_size)
    return Plan(
        folder=source.folder,
        raw=source.config,
        config=model.config,
        recipe=RecipeRecord(
            name=options.recipe if prefix is not None else "uniform",
            bits=bits,
            group_size=None if base is None else base.group_size,
            dtype=dtype_name(next(o.dtype for o in outputs if o.path == "norm")),
            rules=tuple(dict.fromkeys(rule for rule in rules if rule in deciding)),
        ),
        outputs=tuple(outputs),
        shards=tuple(lay_out([output.parts for output in outputs])),
        left_out=sum(
            tensor.nbytes for tensor in source.tensors.values() if tensor.name not in used
        ),
    )


def _check_unquantized(source: Source) -> None:
    text = source.config.get("text_config")
    sections = [source.config, text] if isinstance(text, dict) else [source.config]
    if any(section.get(key) for section in sections for key in _QUANTIZATION):
        raise CheckpointError(
            f"{source.folder} is quantized already: give the checkpoint it was made from"
        )


def _check_rules(given: Sequence[Rule], paths: Sequence[str]) -> None:
    for rule in given:
        if not any(rule.matches(path) for path in paths):
            raise UsageError(
                f"the rule for {rule.pattern!r} matches nothing; what can be quantized has names "
                f"such as {paths[-1]}"
            )


def _check_experts(outputs: Sequence[Output]) -> None:
    """The loader joins gate and up maps into one."""
    formats = {output.path: output.format for output in outputs}
    for path, chosen in formats.items():
        if ".experts." in path and path.endswith("gate_proj"):
            up = path.replace("gate_proj", "up_proj")
            if formats[up] != chosen:
                raise UsageError(
                    f"{path} and {up} must have the same format: give one rule for both"
                )
