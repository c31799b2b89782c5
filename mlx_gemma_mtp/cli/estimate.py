"""`mgm estimate`: what a Mac could do with a model, predicted from its chip's figures."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Literal

import typer

from mlx_gemma_mtp.cli import options

SCHEMA = 1
CONTEXT = 4096  # or the model's maximum if that is less


def estimate(
    model: options.Model,
    chip: Annotated[
        str | None, typer.Option(help='Such as "M4 Max" or "M4 Max 32-core" [this Mac\'s].')
    ] = None,
    batch: Annotated[str, typer.Option(help="Batch sizes.")] = "1,2,4,8",
    context: Annotated[
        int | None, typer.Option(help=f"Tokens of each row, with its prompt [{CONTEXT}].")
    ] = None,
    bits: Annotated[int | None, typer.Option(help="As if quantized to 4 or 8 bits.")] = None,
    accept: Annotated[
        str, typer.Option(help="Chance that each draft is accepted, by position.")
    ] = ".84,.71,.64,.70",  # what vLLM's users saw with 26B
    output: Annotated[Literal["table", "json"], typer.Option("--format")] = "table",
) -> None:
    """Predict speed and memory on a Mac. Downloads nothing.

    Tokens per second, the best number of draft tokens, and which Macs have the memory: a prediction
    from the chip's bandwidth and compute, not a measurement.
    """
    from rich.filesize import decimal

    from mlx_gemma_mtp.bench import estimate
    from mlx_gemma_mtp.bench.chips import find_chip, own_chip
    from mlx_gemma_mtp.device import chip_name
    from mlx_gemma_mtp.show import columns, table, wrapped

    chances, batches = options.chances(accept), options.batches(batch)
    found = find_chip(chip) if chip else own_chip(chip_name())
    planned = estimate.plan(model, bits=bits)
    pair = planned.pair
    tokens = context or min(CONTEXT, pair.target.max_position_embeddings)
    predictions = [
        estimate.predict(planned, found, batch=rows, context=tokens, accept=chances)
        for rows in batches
    ]
    if output == "json":
        described = {
            "schema": SCHEMA,
            "kind": "prediction from bandwidth and compute, not a measurement",
            "share_assumed": estimate.SHARE,
            "model": planned.name,
            "bits": planned.bits,
            "target_bytes": pair.target_bytes,
            "drafter_bytes": pair.drafter_bytes if pair.drafter else None,
            "chip": found._asdict(),
            "predictions": [one._asdict() for one in predictions],
            "context": tokens,
            "accept": chances,
        }
        print(json.dumps(described, ensure_ascii=False))
        return
    width = columns(sys.stdout)
    size = f" in {planned.bits} bits" if planned.bits else ""
    size += f" ({decimal(pair.target_bytes)}"
    size += f", drafter {decimal(pair.drafter_bytes)})" if pair.drafter else ")"
    chip_speed = f"{found.bandwidth / 1e9:.0f} GB/s, {found.compute / 1e12:.1f} TFLOP/s"
    lines = [
        f"{planned.name}{size} on {found.name} ({chip_speed})",
        "A prediction, not a measurement. It assumes that rounds reach "
        f"{estimate.SHARE:.0%} of the chip's bandwidth and compute, and that drafts are accepted "
        f"at {', '.join(f'{chance:.0%}' for chance in chances)} by position. It may be far too "
        "high for small models on fast chips, where the host's work counts.",
    ]
    if pair.target.num_experts:
        lines.append("Experts count as if chosen evenly: text whose tokens share them is faster.")
    print(wrapped("\n".join(lines), width))
    counts = range(1, len(predictions[0].tokens_per_second))
    print(wrapped(f"\nTokens/s of all rows by number of drafts; {tokens:,} tokens a row", width))
    speeds = [
        [str(one.batch), *(f"{rate:.{0 if rate >= 100 else 1}f}" for rate in one.tokens_per_second)]
        for one in predictions
    ]
    print(table(["batch", "plain", *map(str, counts)], speeds, left=0, width=width))
    rows = []
    for one in predictions:
        gain = one.tokens_per_second[one.best] / one.tokens_per_second[0]
        fits = ", ".join(map(str, one.fits)) + " GB" if one.fits else "none"
        rows.append([str(one.batch), str(one.best), f"{gain:.2f}x", decimal(one.needs), fits])
    header = ["batch", "best", "gain", "memory", f"Macs with {found.name}"]
    print(f"\n{table(header, rows, left=0, width=width)}")
