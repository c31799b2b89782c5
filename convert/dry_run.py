"""What a conversion would write and need, for people to read before it begins."""

from __future__ import annotations

from rich.filesize import decimal

from mlx_gemma_mtp import device, memory
from mlx_gemma_mtp.model.config import DrafterConfig, TargetConfig

from .conversion import Conversion
from .output import peak_bytes
from .report import format_table, table

CONTEXTS = (4_096, 32_768, 131_072, 262_144)
BATCHES = (1, 4, 8)


def dry_run(conversion: Conversion) -> str:
    """The plan: formats and sizes of both models, memory to convert and to run them."""
    parts = []
    for model in conversion.models:
        origin = model.origin
        commit = f" at commit {origin.revision[:12]}" if origin.revision else ""
        parts.append(f"{model.kind}: {origin.name}{commit}, recipe {model.plan.recipe.name}")
        parts.append(format_table(model.plan))
    if conversion.drafter is None:
        parts.append("no drafter")
    files = sum(len(model.plan.shards) for model in conversion.models)
    left_out = sum(model.plan.left_out for model in conversion.models)
    plural = "s" * (files > 1)
    lines = [f"output: {decimal(conversion.nbytes)} of weights in {files} file{plural}"]
    if left_out:
        lines.append(f"left out: {decimal(left_out)}, towers and what no text needs")
    lines.append(f"memory to convert: {decimal(peak_bytes(conversion.models))} at most")
    parts.append("\n".join(lines))
    parts.append(f"memory to run, and the smallest Mac that it fits:\n\n{_memory(conversion)}")
    return "\n\n".join(parts)


def _memory(conversion: Conversion) -> str:
    target, drafter = conversion.target.plan, conversion.drafter
    config = target.config
    assert isinstance(config, TargetConfig)
    of_drafter = None if drafter is None else drafter.plan.config
    assert isinstance(of_drafter, DrafterConfig | None)

    pair = memory.Pair(
        config,
        of_drafter,
        target.nbytes,
        0 if drafter is None else drafter.plan.nbytes,
        dtype_bytes=4 if target.recipe.dtype == "float32" else 2,
    )

    def cell(context: int, batch: int) -> str:
        total = pair.needs(context, batch).total
        macs = [mac for mac in device.MAC_SIZES if device.mac_limit(mac) >= total]
        return f"{decimal(total)}: {f'{min(macs)} GB Mac' if macs else 'no Mac'}"

    contexts = [c for c in CONTEXTS if c < config.max_position_embeddings]
    contexts.append(config.max_position_embeddings)
    return table(
        ["context", *(f"batch {batch}" for batch in BATCHES)],
        [[f"{c:,}", *(cell(c, batch) for batch in BATCHES)] for c in contexts],
    )
