"""`mgm estimate`: what a Mac could do with a model, predicted from its chip's figures."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from mlx_gemma_mtp.cli import options

if TYPE_CHECKING:
    from mlx_gemma_mtp.bench.chips import Chip
    from mlx_gemma_mtp.bench.estimate import Prediction, Subject

SCHEMA = 1

CONTEXT = 4096  # or as much as the model takes


def estimate(
    model: Annotated[
        str, typer.Argument(help="E2B, E4B, 12B, 26B-A4B, 31B, a folder, a cached Hub name, demo.")
    ],
    chip: Annotated[str, typer.Option(help='Such as "M4 Max", or "M4 Max 32-core".')],
    batch: Annotated[str, typer.Option(help="Numbers of rows, by comma.")] = "1,2,4,8",
    context: Annotated[
        int | None,
        typer.Option(help=f"Tokens of each row, its prompt included [{CONTEXT}, or all it takes]."),
    ] = None,
    bits: Annotated[int | None, typer.Option(help="As if quantized to 4 or 8 bits.")] = None,
    accept: Annotated[
        str | None,
        typer.Option(
            help="The chance of each draft, if those before it came true; the last one holds on."
            " [.84,.71,.64,.70]"
        ),
    ] = None,
    output: Annotated[Literal["table", "json"], typer.Option("--format")] = "table",
) -> None:
    """Predict speed and memory on a Mac's chip.

    Tokens per second, the best number of drafts, and which Macs have the memory: from the chip's
    bandwidth and compute, a prediction, not a measurement.
    """
    from mlx_gemma_mtp.bench import estimate
    from mlx_gemma_mtp.bench.chips import find_chip

    chances = list(estimate.ACCEPT) if accept is None else options.listed("--accept", accept, float)
    batches = dict.fromkeys(options.listed("--batch", batch, int))
    on = find_chip(chip)
    subject = estimate.find_subject(model, bits=bits)
    if context is None:
        context = min(CONTEXT, subject.pair.target.max_position_embeddings)
    predictions = [
        estimate.predict(subject, on, batch=rows, context=context, accept=chances)
        for rows in batches
    ]
    if output == "json":
        found = to_json(subject, on, predictions, context, chances)
        print(json.dumps(found, ensure_ascii=False))
        return
    _print_head(subject, on, chances, estimate.SHARE)
    print(f"\ntokens/s of all rows together, by the number of drafts; {context:,} tokens a row")
    _print_table(predictions)


def _print_head(subject: Subject, chip: Chip, accept: list[float], share: float) -> None:
    from rich.filesize import decimal

    pair = subject.pair
    of = decimal(pair.target_bytes)
    if pair.drafter is not None:
        of += f", drafter {decimal(pair.drafter_bytes)}"
    bits = f" in {subject.bits} bits" if subject.bits else ""
    speeds = f"{chip.bandwidth / 1e9:.0f} GB/s, {chip.compute / 1e12:.1f} TFLOP/s"
    print(f"{subject.name}{bits} ({of}) on {chip.name} ({speeds})")
    print(
        "A prediction from bandwidth and compute, not a measurement: it assumes that rounds reach\n"
        f"{share:.0%} of both, and drafts come true at {', '.join(f'{one:g}' for one in accept)}"
        + (", each if those before it did." if len(accept) > 1 else ".")
    )
    print(
        "Where the host's own work counts, as for small models on fast chips, it is far too high."
    )
    if pair.target.num_experts:
        print("Experts are counted as if chosen evenly: text whose tokens share them is faster.")


def _print_table(predictions: list[Prediction]) -> None:
    from rich.filesize import decimal

    rows = [
        [f"{found:.{0 if found >= 100 else 1}f}" for found in one.tokens_per_second]
        for one in predictions
    ]
    width = max(6, *(2 + len(cell) for cells in rows for cell in cells))
    head = "".join(f"{count or 'plain':>{width}}" for count in range(len(rows[0])))
    print(f"batch{head}  {'best':<10}{'memory':>8}  fits Macs of")
    for one, cells in zip(predictions, rows, strict=True):
        speeds = "".join(f"{cell:>{width}}" for cell in cells)
        gain = one.tokens_per_second[one.best] / one.tokens_per_second[0]
        best = f"{one.best} ({gain:.1f}x)" if one.best else "plain"
        fits = ", ".join(map(str, one.fits)) + " GB" if one.fits else "no size"
        print(f"{one.batch:>5}{speeds}  {best:<10}{decimal(one.needs):>8}  {fits}")


def to_json(
    subject: Subject,
    chip: Chip,
    predictions: list[Prediction],
    context: int,
    accept: list[float],
) -> dict[str, Any]:
    """What bench/SCHEMA.md tells the keys of."""
    from mlx_gemma_mtp.bench import estimate

    return {
        "schema": SCHEMA,
        "kind": "prediction from bandwidth and compute, not a measurement",
        "share_assumed": estimate.SHARE,
        "model": subject.name,
        "bits": subject.bits,
        "target_bytes": subject.pair.target_bytes,
        "drafter_bytes": subject.pair.drafter_bytes if subject.pair.drafter else None,
        "chip": chip._asdict(),
        "predictions": [one._asdict() for one in predictions],
        "context": context,
        "accept": accept,
    }
