"""README.md of a converted folder: what it is, how to run it, its quality, how it was made.

Quality is not known when the card is written: `with_quality` fills that section in.
"""

from __future__ import annotations

from mlx_gemma_mtp.show import table

from .manifest import Manifest
from .plan import Plan
from .recipes import RECIPES
from .report import format_table

CARD = "README.md"
_START, _END = "<!-- quality -->", "<!-- end of quality -->"

_CARD = """---
library_name: mlx
pipeline_tag: text-generation
{base}tags: [mlx, gemma4, speculative-decoding, multi-token-prediction]
---

# {title}

MLX weights of {source}: {size}. {about}

## Quality

{quality}

## How it was made

Made by `mgm convert --bits {recipe.bits}` with the recipe `{recipe.name}` ({reason}).
Unquantized tensors are {recipe.dtype}. Versions: {tools}.

{formats}

`4/64` is 4 bits in groups of 64. The first rule that matches a name decides:

{rules}
"""

_RUN = """Text only.

## Run

```sh
mgm chat --model {name}
```

```python
from mlx_gemma_mtp import load

with load("{name}") as engine:  # with its drafter, if it has one
    print(engine.generate("Why is the sky blue?")[0].text)
```

mlx-lm loads it too, without the drafter; mlx-vlm loads both."""


def card(name: str, plan: Plan, manifest: Manifest) -> str:
    """Return the card of the output called `name`, or of its drafter."""
    origin, recipe = manifest.source, manifest.recipe
    hub = f"base_model: {origin.name}\nbase_model_relation: quantized\n"
    commit = f" at commit `{origin.revision}`" if origin.revision else ""
    rules = [(f"`{names}`", chosen) for names, chosen in recipe.rules]
    is_target = plan.kind == "target"
    return _CARD.format(
        base=hub if "/" in origin.name else "",
        title=name if is_target else f"The drafter of {name}",
        source=f"`{origin.name}`{commit}",
        size=plan.size,
        about=_RUN.format(name=name) if is_target else "It works only with the target it is in.",
        quality=_quality("Not measured: `mgm verify --quality` measures it and fills this in."),
        recipe=recipe,
        reason=RECIPES[recipe.name].reason,
        tools=", ".join(f"{tool} {version}" for tool, version in manifest.tools.items()),
        formats=format_table(plan),
        rules=table(["names", "format"], rules, markdown=True, left=2),
    )


def with_quality(text: str, section: str) -> str:
    """Return a card with this Markdown as its section about quality, added if it has none."""
    start, end = text.find(_START), text.find(_END)
    if 0 <= start < end:
        return text[:start] + _quality(section) + text[end + len(_END) :]
    return text.rstrip("\n") + f"\n\n## Quality\n\n{_quality(section)}\n"


def _quality(section: str) -> str:
    return f"{_START}\n{section.strip()}\n{_END}"
