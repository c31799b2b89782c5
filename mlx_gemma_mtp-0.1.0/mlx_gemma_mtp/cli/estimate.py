"""`mgm estimate`: what a Mac could do with a model, predicted from its chip's figures."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from mlx_gemma_mtp.cli import options

if TYPE_CHECKING:
    from mlx_gemma_mtp.bench.chips import Chip
    from mlx_gemma_mtp.bench.estimate import Planned, Prediction

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
        str | None,
        typer.Option(help="Chance that each draft is accepted, by position [.84,.71,.64,.70]."),
    ] = None,
    output: Annotated[Literal["table", "json"], typer.Option("--format")] = "table",
) -> None:
    """Predict speed and memory on a Mac's chip.

    Tokens per second, the best number of draft tokens, and which Macs have the memory: a prediction
    from the chip's bandwidth and compute, not a measurement.
    """
    from mlx_gemma_mtp.bench import estimate
    from mlx_gemma_mtp.bench.chips import find_chip

    chances = list(estimate.ACCEPT) if accept is None else options.listed("--accept", accept, float)
    batches = dict.fromkeys(options.listed("--batch", batch, int))
    found, planned = find_chip(chip), estimate.plan(model, bits=bits)
    tokens = context or min(CONTEXT, planned.pair.target.max_position_embeddings)
    predictions = [
        estimate.predict(planned, found, batch=rows, context=tokens, accept=chances)
        for rows in batches
    ]
    if output == "table":
        _print(planned, found, predictions, tokens, chances)
        return
    pair = planned.pair
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


def _print(
    planned: Planned, chip: Chip, predictions: list[Prediction], context: int, accept: list[float]
) -> None:
    from rich.filesize import decimal

    from mlx_gemma_mtp.bench.estimate import SHARE
    from mlx_gemma_mtp.show import table

    pair, bits = planned.pair, f" in {planned.bits} bits" if planned.bits else ""
    size = decimal(pair.target_bytes)
    size += f", drafter {decimal(pair.drafter_bytes)}" if pair.drafter else ""
    speeds = f"{chip.bandwidth / 1e9:.0f} GB/s, {chip.compute / 1e12:.1f} TFLOP/s"
    print(
        f"{planned.name}{bits} ({size}) on {chip.name} ({speeds})\n"
        "A prediction from bandwidth and compute, not a measurement. It assumes that rounds reach\n"
        f"{SHARE:.0%} of both, and that drafts are accepted at "
        f"{', '.join(f'{one:g}' for one in accept)} by position.\n"
        "It may be far too high if the host's work counts, as for small models on fast chips."
    )
    if pair.target.num_experts:
        print("Experts count as if chosen evenly: text whose tokens share them is faster.")
    print(f"\nTokens/s of all rows, by number of draft tokens; {context:,} tokens a row")
    counts = range(len(predictions[0].tokens_per_second))
    rows = []
    for one in predictions:
        gain = one.tokens_per_second[one.best] / one.tokens_per_second[0]
        cells = [f"{found:.{0 if found >= 100 else 1}f}" for found in one.tokens_per_second]
        best = f"{one.best} ({gain:.1f}x)" if one.best else "plain"
        fits = ", ".join(map(str, one.fits)) + " GB" if one.fits else "none"
        rows.append([str(one.batch), *cells, best, decimal(one.needs), fits])
    header = ["batch", *(str(count or "plain") for count in counts), "best", "memory", "Macs"]
    print(table(header, rows, left=0))
