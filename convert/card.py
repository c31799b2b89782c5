"""README.md of a converted folder: what it is, how to run it, how it was made, how good it is.

How good is not known when it is written: `with_quality` fills that section in.
"""

from __future__ import annotations

from typing import Literal

from rich.filesize import decimal

from .manifest import Manifest
from .plan import Plan
from .recipes import RECIPES
from .report import format_table, table

CARD = "README.md"
_BEGIN, _END = "<!-- quality -->", "<!-- end of quality -->"


def card(kind: Literal["target", "drafter"], name: str, plan: Plan, manifest: Manifest) -> str:
    """The text of the card of the output called `name`, or of its drafter."""
    source = manifest.source
    front = ["library_name: mlx", "pipeline_tag: text-generation"]
    if "/" in source.name:  # a Hub name
        front += [f"base_model: {source.name}", "base_model_relation: quantized"]
    front.append("tags: [mlx, gemma4, speculative-decoding, multi-token-prediction]")
    made_of = f"`{source.name}`" + (f" at commit `{source.revision}`" if source.revision else "")
    recipe = manifest.recipe
    lines = ["---", *front, "---", ""]
    if kind == "target":
        lines += [f"# {name}", "", f"MLX weights of {made_of}, {manifest.bits_per_weight:.2f} "]
        lines[-1] += f"bits per weight, {decimal(plan.nbytes)}. Text only."
        lines += ["", "## Run", "", _RUN.format(name=name)]
    else:
        lines += [f"# The drafter of {name}", "", f"MLX weights of {made_of}, "]
        lines[-1] += f"{manifest.bits_per_weight:.2f} bits per weight, {decimal(plan.nbytes)}. "
        lines[-1] += "It is of use with its target only, in whose folder it lies."
    lines += ["", "## Quality", "", _quality(_UNKNOWN), "", "## How it was made", ""]
    tools = ", ".join(f"{tool} {version}" for tool, version in manifest.tools.items())
    lines += [
        f"`mgm convert --bits {recipe.bits}`, recipe `{recipe.name}`: "
        f"{RECIPES[recipe.name].reason}. What is not quantized is {recipe.dtype}. "
        f"Made with {tools}.",
        "",
        format_table(plan),
        "",
        "`4/64` is 4 bits in groups of 64. The first rule that matches a name decides:",
        "",
        table(["names", "format"], [(f"`{names}`", chosen) for names, chosen in recipe.rules]),
    ]
    return "\n".join(lines) + "\n"


def with_quality(text: str, section: str) -> str:
    """A card with this Markdown as what it says of quality, in the place of what it said before.

    One without the section, an edited one say, gets it at its end.
    """
    begin, end = text.find(_BEGIN), text.find(_END)
    if 0 <= begin < end:
        return text[:begin] + _quality(section) + text[end + len(_END) :]
    return text.rstrip("\n") + f"\n\n## Quality\n\n{_quality(section)}\n"


def _quality(section: str) -> str:
    return f"{_BEGIN}\n{section.strip()}\n{_END}"


_UNKNOWN = "Not measured: `mgm verify --quality` does that, and writes it here."

_RUN = """```sh
mgm chat --model {name}
```

```python
from mlx_gemma_mtp import load

with load("{name}") as engine:  # with its drafter, if it has one
    print(engine.generate("Why is the sky blue?")[0].text)
```

mlx-lm loads it too, without the drafter."""
