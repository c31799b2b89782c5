"""`mgm estimate`: what a Mac could do with a model, predicted from its chip's figures."""

from __future__ import annotations

import json
from typing import Annotated, Literal

import typer

from mlx_gemma_mtp.cli import options

SCHEMA = 1
CONTEXT = 4096  # or the model's maximum if that is less


def estimate(
    model: Annotated[
        str, typer.Argument(help="E2B, E4B, 12B, 26B-A4B, 31B, a folder, a cached Hub name, demo.")
    ],
    chip: Annotated[str, typer.Option(help='Such as "M4 Max", or "M4 Max 32-core".')],
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
    """Predict speed and memory on a Mac's chip.

    Tokens per second, the best number of draft tokens, and which Macs have the memory: a prediction
    from the chip's bandwidth and compute, not a measurement.
    """
    from rich.filesize import decimal

    from mlx_gemma_mtp.bench import estimate
    from mlx_gemma_mtp.bench.chips import find_chip
    from mlx_gemma_mtp.show import table

    chances, batches = options.chances(accept), options.batches(batch)
    found, planned = find_chip(chip), estimate.plan(model, bits=bits)
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
            "bits": bits,
            "target_bytes": pair.target_bytes,
            "drafter_bytes": pair.drafter_bytes if pair.drafter else None,
            "chip": found._asdict(),
            "predictions": [one._asdict() for one in predictions],
            "context": tokens,
            "accept": chances,
        }
        print(json.dumps(described, ensure_ascii=False))
        return
    size = f" in {bits} bits" if bits else ""
    size += f" ({decimal(pair.target_bytes)}"
    size += f", drafter {decimal(pair.drafter_bytes)})" if pair.drafter else ")"
    speeds = f"{found.bandwidth / 1e9:.0f} GB/s, {found.compute / 1e12:.1f} TFLOP/s"
    print(
        f"{planned.name}{size} on {found.name} ({speeds})\n"
        "A prediction from bandwidth and compute, not a measurement. It assumes that rounds reach\n"
        f"{estimate.SHARE:.0%} of both, and that drafts are accepted at {accept} by position.\n"
        "It may be far too high if the host's work counts, as for small models on fast chips."
    )
    if pair.target.num_experts:
        print("Experts count as if chosen evenly: text whose tokens share them is faster.")
    print(f"\nTokens/s of all rows, by number of draft tokens; {tokens:,} tokens a row")
    rows = []
    for one in predictions:
        gain = one.tokens_per_second[one.best] / one.tokens_per_second[0]
        cells = [f"{speed:.{0 if speed >= 100 else 1}f}" for speed in one.tokens_per_second]
        best = f"{one.best} ({gain:.1f}x)" if one.best else "plain"
        fits = ", ".join(map(str, one.fits)) + " GB" if one.fits else "none"
        rows.append([str(one.batch), *cells, best, decimal(one.needs), fits])
    counts = range(1, len(predictions[0].tokens_per_second))
    print(table(["batch", "plain", *map(str, counts), "best", "memory", "Macs"], rows, left=0))
