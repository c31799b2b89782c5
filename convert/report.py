"""A plan for people to read: formats, sizes, and the memory to convert and to run it.

Tables are Markdown, which a terminal shows as well as a model card.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence

from rich.filesize import decimal

from mlx_gemma_mtp import device, memory
from mlx_gemma_mtp.files.weights import dtype_name
from mlx_gemma_mtp.model.config import DrafterConfig, TargetConfig
from mlx_gemma_mtp.show import table

from .parameter import Parameter
from .plan import Options, Plan
from .slices import peak_bytes

CONTEXTS = (4_096, 32_768, 131_072, 262_144)
BATCHES = (1, 4, 8)
OTHERS = "others"  # the last row of a table of formats


def format_table(plan: Plan) -> str:
    """Return formats and bytes by module name, all layers together; at most 80 columns wide."""
    groups: dict[str, list[Parameter]] = defaultdict(list)
    for parameter in plan.parameters:
        name = re.sub(r"\.\d+\.", ".*.", parameter.path) if parameter.quantizable else OTHERS
        groups[name].append(parameter)
    rows = []
    for name, group in sorted(groups.items(), key=lambda item: item[0] == OTHERS):
        counts = Counter(dtype_name(p.dtype) if p.format is None else p.format.name for p in group)
        formats = [f"{chosen} ({count})" for chosen, count in counts.most_common()]
        size = decimal(sum(parameter.nbytes for parameter in group))
        rows.append([name, ", ".join(formats if len(counts) > 1 else counts), size])
    bits = f"{plan.bits_per_weight:.2f} bits per weight"
    rows.append(["total", bits, decimal(plan.nbytes)])
    return table(["module", "format", "size"], rows, markdown=True, left=2)


def dry_run(plans: Sequence[Plan], options: Options) -> str:
    """Return the plan of a pair: formats and sizes, memory to convert and to run it."""
    parts = []
    for plan in plans:
        origin = plan.source.origin
        commit = f" at commit {origin.revision[:12]}" if origin.revision else ""
        parts.append(f"{plan.kind}: {origin.name}{commit}, recipe {plan.recipe.name}")
        parts.append(format_table(plan))
    if len(plans) == 1:
        parts.append("no drafter")
    files = sum(len(plan.shards) for plan in plans)
    size, left_out = sum(plan.nbytes for plan in plans), sum(plan.left_out for plan in plans)
    parts.append(
        f"output: {decimal(size)} of weights in {files} file{'s' * (files > 1)}\n"
        f"left out: {decimal(left_out)} that a text model doesn't need\n"
        f"memory to convert: at most {decimal(peak_bytes(plans, options))}"
    )
    parts.append(f"memory to run, and the smallest Mac with enough:\n\n{_memory(plans)}")
    return "\n\n".join(parts)


def _memory(plans: Sequence[Plan]) -> str:
    target, *drafters = plans
    config, drafter = target.config, drafters[0].config if drafters else None
    assert isinstance(config, TargetConfig)
    assert isinstance(drafter, DrafterConfig | None)
    sizes = target.nbytes, sum(plan.nbytes for plan in drafters)
    dtype_bytes = 4 if target.recipe.dtype == "float32" else 2
    pair = memory.Pair(config, drafter, *sizes, dtype_bytes=dtype_bytes)

    def cell(context: int, batch: int) -> str:
        total = pair.needs(context, batch)
        macs = device.macs_with(total)
        return f"{decimal(total)}: {f'{min(macs)} GB Mac' if macs else 'no Mac'}"

    contexts = [c for c in CONTEXTS if c < config.max_position_embeddings]
    contexts.append(config.max_position_embeddings)
    return table(
        ["context", *(f"batch {batch}" for batch in BATCHES)],
        [[f"{c:,}", *(cell(c, batch) for batch in BATCHES)] for c in contexts],
        markdown=True,
    )
