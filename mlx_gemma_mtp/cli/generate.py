"""`mgm generate`: one prompt in, one text out."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import Annotated

import typer

from mlx_gemma_mtp.cli import options
from mlx_gemma_mtp.errors import UsageError


def generate(
    model: options.Model = "demo",
    drafter: options.Drafter = "auto",
    prompt: Annotated[str | None, typer.Option(help="The prompt [standard input].")] = None,
    max_tokens: options.MaxTokens = None,
    temperature: options.Temperature = None,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    seed: options.Seed = None,
    stop: Annotated[list[str] | None, typer.Option(help="Ends the text; repeatable.")] = None,
    num_draft_tokens: options.NumDraftTokens = "auto",
    bits: options.Bits = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print text, tokens and statistics as one JSON object.")
    ] = False,
) -> None:
    """Answer one prompt, given as --prompt or on standard input."""
    from mlx_gemma_mtp import SamplingParams

    params = SamplingParams(
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        stop=stop or (),
        num_draft_tokens=options.draft_count(num_draft_tokens),
    )
    if prompt is None:
        if sys.stdin.isatty():
            raise UsageError("no prompt: give --prompt, or pipe one in")
        prompt = sys.stdin.read().rstrip("\n")
    with options.open_engine(model, drafter, bits) as engine:
        if as_json:
            done = engine.generate(prompt, params)[0]
            stats = dataclasses.asdict(done.stats) | {
                "drafted": done.stats.drafted,
                "accepted": done.stats.accepted,
                "acceptance_rate": done.stats.acceptance_rate,
                "acceptance_length": done.stats.acceptance_length,
                "decode_tokens_per_second": done.stats.decode_tokens_per_second,
            }
            print(json.dumps(dataclasses.asdict(done) | {"stats": stats}, ensure_ascii=False))
            return
        for chunk in engine.stream(prompt, params):
            print(chunk.text, end="", flush=True)
        print()
