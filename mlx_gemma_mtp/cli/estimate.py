"""`mgm estimate`: what a Mac could do with a model, predicted from its chip's figures."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from mlx_gemma_mtp.cli import options

SCHEMA = 3
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
    bits: Annotated[
        int | None, typer.Option(help="As if quantized to 4 or 8 bits [a size: all three].")
    ] = None,
    accept: Annotated[
        str,
        typer.Option(
            help="Chance that a draft is accepted if those before it are, by position; the last "
            "one repeats."
        ),
    ] = ".84,.71,.64,.70",  # what vLLM's users saw with 26B
    as_json: options.Json = False,
) -> None:
    """Predict speed and memory on a Mac. Downloads nothing.

    Tokens per second, the best number of draft tokens, and which Macs have the memory: a prediction
    from what others measured of the chip's kernels, not a measurement.
    """
    from rich.filesize import decimal

    from mlx_gemma_mtp.bench import estimate
    from mlx_gemma_mtp.bench.chips import find_chip, own_chip
    from mlx_gemma_mtp.bench.metal import kernels
    from mlx_gemma_mtp.bench.reported import error
    from mlx_gemma_mtp.device import chip_name
    from mlx_gemma_mtp.show import columns, table, wrapped

    chances, batches = options.chances(accept), options.batches(batch)
    plans = estimate.plans(model, bits=bits)
    found = find_chip(chip) if chip else own_chip(chip_name())
    most = plans[0].pair.target.max_position_embeddings
    tokens = min(CONTEXT, most) if context is None else context
    predicted = [
        [
            estimate.predict(planned, found, batch=rows, context=tokens, accept=chances)
            for rows in batches
        ]
        for planned in plans
    ]
    if as_json:
        described = {
            "schema": SCHEMA,
            "kind": "prediction from what others measured of kernels, not a measurement",
            "share": estimate.SHARE,
            "error": error()._asdict(),
            "sources": [found.source, *kernels(found.name).sources],
            "model": plans[0].name,
            "chip": found._asdict(),
            "context": tokens,
            "accept": chances,
            "weights": [
                {
                    "bits": planned.bits,
                    "target_bytes": planned.pair.target_bytes,
                    "drafter_bytes": planned.pair.drafter_bytes if planned.pair.drafter else None,
                    "predictions": [one._asdict() for one in predictions],
                }
                for planned, predictions in zip(plans, predicted, strict=True)
            ],
        }
        print(json.dumps(described, ensure_ascii=False))
        return
    width = columns(sys.stdout)
    chip_speed = f"{found.bandwidth / 1e9:.0f} GB/s, {found.compute / 1e12:.1f} TFLOP/s"
    *first, last = (f"{chance:.0%}" for chance in chances)
    by_position = ", ".join([*first, f"{last} from position {len(chances)} on"])
    known = error()
    if of_chip := known.chips.get(found.name):
        low, high, others, here = known.low, known.high, "", f", {of_chip:.2f} on this chip"
    else:  # then each chip was as unknown as this one
        low, high, others, here = known.unseen_low, known.unseen_high, "other ", ""
    lines = [
        f"{plans[0].name} on {found.name} ({chip_speed}), {tokens:,} tokens a row",
        f"A prediction, not a measurement. For {known.points} published speeds of Gemma 4 on "
        f"{len(known.chips)} {others}chips it is {low:.2f} to {high:.2f} times the measured "
        f"speed, {known.median:.2f} in the median{here}. "
        "Assumed chances by position that a draft is accepted if those before it are: "
        f"{by_position}.",
    ]
    print(wrapped("\n".join(lines), width))
    rows = []
    for planned, predictions in zip(plans, predicted, strict=True):
        stored = "bfloat16" if len(plans) > 1 else "as stored"
        for one in predictions:
            rates = one.tokens_per_second
            rows.append(
                [
                    f"{planned.bits} bits" if planned.bits else stored,
                    str(one.batch),
                    _speed(rates[0]),
                    str(one.best),
                    _speed(rates[one.best]),
                    f"{rates[one.best] / rates[0]:.2f}x",
                    decimal(one.needs),
                    ", ".join(map(str, one.fits)) + " GB" if one.fits else "none",
                ]
            )
    header = ["weights", "batch", "plain", "drafts", "tok/s", "gain", "memory", "Macs"]
    print(wrapped("\nTokens/s of all rows: plain, and with the best number of drafts", width))
    print(table(header, rows, width=width))
    if len(plans) > 1:
        print(wrapped("\nBy number of drafts: add --bits 4 or 8.", width))
        return
    counts = range(1, len(predicted[0][0].tokens_per_second))
    print(wrapped("\nTokens/s of all rows by number of drafts (K)", width))
    speeds = [[str(one.batch), *map(_speed, one.tokens_per_second)] for one in predicted[0]]
    print(table(["batch", "plain", *(f"K={n}" for n in counts)], speeds, left=0, width=width))


def _speed(rate: float) -> str:
    return f"{rate:.{0 if rate >= 100 else 1}f}"
