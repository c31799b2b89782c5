"""Which module gets which format: recipes, as data, and the rules that a command line adds.

A rule is a pattern over module paths and a format; the first that matches decides. Paths are those
of the output without their prefix: `layers.3.mlp.down_proj`. Knows nothing of tensors or files.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from mlx_gemma_mtp.errors import UsageError
from mlx_gemma_mtp.files.weights import EIGHT_BIT
from mlx_gemma_mtp.model.config import TargetConfig

from .formats import FIXED, NAMES, UNQUANTIZED, parse_format

# Placeholders in a recipe's rules, filled in from --bits, --group-size and the model.
BASE = "base"  # the requested format
HIGH = "high"  # one that keeps more of a weight, see _HIGHER
HIGHEST = "highest"  # 8 bits; q4_0 if that was requested
SENSITIVE = "@"  # in a pattern: the layers of `_sensitive_layers`

_HIGHER = {"2": "6", "3": "6", "4": "6", "5": "6", "6": "8", "mxfp4": "6", "nvfp4": "6"}


class Rule(NamedTuple):
    """A pattern (`*` stands for any characters, `{1,2}` for either) and the name of a format."""

    pattern: str
    format: str

    def matches(self, path: str) -> bool:
        expression = re.escape(self.pattern).replace(r"\*", ".*")
        expression = re.sub(r"\\{(.*?)\\}", lambda m: f"(?:{m[1].replace(',', '|')})", expression)
        return re.fullmatch(expression, path) is not None


class Recipe(NamedTuple):
    """Rules for a target, and rules that come first if it has experts or per-layer embeddings."""

    reason: str
    rules: tuple[Rule, ...]
    experts: tuple[Rule, ...] = ()
    per_layer: tuple[Rule, ...] = ()


# Modules that low precision breaks (4-bit per-layer embeddings give garbage, a coarse router
# chooses wrong experts): the same list as when quantizing while loading. The router's group size
# is always 64.
_PROTECTED = (
    Rule("*.router.proj", "8/64"),
    *(Rule(path, "8") for path in EIGHT_BIT if path != "router.proj"),
)

RECIPES = {
    "mixed": Recipe(
        "more bits for the weights that lose most",
        # llama.cpp's Q4_K_M: the value and down projections of the first and last eighth of the
        # layers and of every third layer between. On LLaMA 7B it halves the loss of Q4_K_S
        # (perplexity 6.02 -> 5.96, unquantized 5.91) for 7% more bytes: ggml-org/llama.cpp#1684.
        # mlx-lm's mixed recipes do the same. Key projections too, because many full-attention
        # layers compute values with them.
        rules=(
            *_PROTECTED,
            Rule("layers.@.self_attn.v_proj", HIGH),
            Rule("layers.@.self_attn.k_proj", HIGH),
            Rule("layers.@.mlp.down_proj", HIGH),
            Rule("layers.@.experts.switch_glu.down_proj", HIGH),
            Rule("*", BASE),
        ),
        # Attention is 4% of a mixture's weights, and every token passes it: llama.cpp gives it
        # more bits in Mixtral, and in another mixture it carries most of the loss (KL divergence
        # 0.31 with 4 bits everywhere, 0.10 with attention at 8): raullenchai/Rapid-MLX#3059.
        experts=(Rule("*.self_attn.*", HIGH),),
        # E2B and E4B lose most. At Q4_K_M, E4B's perplexity is 23, unquantized 7.1
        # (ggml-org/llama.cpp#22407). With 4 bits everywhere it solves 24% of GSM8K; with 8 bits in
        # the most sensitive maps, such as attention and the last layers, 56%
        # (mlx-optiq.com/blog/gemma-4-support). The small maps around the per-layer embeddings are
        # 41 million weights in E2B; leaving them alone gives sane output
        # (FakeRocket543/mlx-gemma4).
        per_layer=(
            Rule("*per_layer_*", "8"),
            Rule("layers.@.self_attn.*", HIGHEST),
            Rule("layers.@.mlp.down_proj", HIGHEST),
        ),
    ),
    "uniform": Recipe(
        "smallest and fastest: 8 bits only for weights that low precision breaks",
        rules=(*_PROTECTED, Rule("*", BASE)),
    ),
}
# A drafter gets the uniform recipe: no measurement ranks its layers, and a worse draft costs speed
# only; the text stays the same.
DRAFTER_RECIPE = "uniform"
# mlx-vlm 0.7.10 reads rows of this table as they are stored. A draft reads 4,096 of its 262,144
# rows, so 16 bits cost no time, and 63 MB next to an E2B of 2.6 GB.
CENTROID_RULES = (Rule("embed_tokens", UNQUANTIZED),)
DRAFTER = "drafter."  # prefix of command-line rules for the drafter


def parse_rule(text: str, group_size: int | None) -> Rule:
    """Parse `PATTERN=FORMAT`; group_size as in `parse_format`. Raises UsageError."""
    pattern, equals, name = text.partition("=")
    if not equals or not pattern:
        raise UsageError(f"a rule is PATTERN=FORMAT, such as '*.down_proj=6', not {text!r}")
    chosen = parse_format(name, group_size)
    return Rule(pattern, UNQUANTIZED if chosen is None else chosen.name)


def rules_of(
    recipe: str, bits: str, group_size: int | None, config: TargetConfig | None = None
) -> list[Rule]:
    """Return a recipe's rules, for any model or one target, all filled in. Raises UsageError."""
    if recipe not in RECIPES:
        raise UsageError(f"unknown recipe {recipe!r}: choose {' or '.join(RECIPES)}")
    if "/" in bits:
        raise UsageError(f"bits must be one of {', '.join(NAMES)}; --group-size sets the group")
    base = parse_format(bits, group_size)
    if base is None:
        if group_size is not None:
            raise UsageError("bits none has no group size: leave it out")
        return [Rule("*", UNQUANTIZED)]
    if bits in FIXED and group_size not in (None, base.group_size):
        raise UsageError(f"{bits} has groups of {base.group_size}: leave the group size out")
    # Next to a fixed format, affine ones keep their default group size.
    group = None if bits in FIXED else group_size
    # Weights trained for q4_0's grid gain nothing from a finer one.
    highest = bits if bits == "q4_0" else "8"
    names = {BASE: base.name, HIGH: _HIGHER.get(bits, bits), HIGHEST: highest}
    chosen, layers = RECIPES[recipe], "{}"
    rules = chosen.rules
    if config is not None:
        layers = "{" + ",".join(map(str, _sensitive_layers(len(config.layers)))) + "}"
        rules = chosen.per_layer * (config.hidden_size_per_layer_input > 0) + rules
        rules = chosen.experts * (config.num_experts > 0) + rules
    filled = []
    for rule in rules:
        filling = parse_format(names.get(rule.format, rule.format), group)
        assert filling is not None  # as the base is
        filled.append(Rule(rule.pattern.replace(SENSITIVE, layers), filling.name))
    return filled


def _sensitive_layers(num_layers: int) -> list[int]:
    """Return the first and last eighth, and every third between (llama.cpp: `use_more_bits`)."""
    eighth = num_layers // 8
    return [
        layer
        for layer in range(num_layers)
        if layer < eighth or layer >= 7 * num_layers // 8 or (layer - eighth) % 3 == 2
    ]


def deciding(path: str, rules: Sequence[Rule]) -> Rule:
    """Return the first rule that matches a module. A recipe's last rule always does."""
    return next(rule for rule in rules if rule.matches(path))
