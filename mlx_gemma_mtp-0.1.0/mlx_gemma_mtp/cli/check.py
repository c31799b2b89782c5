"""`--check` of `mgm generate` and `mgm bench`: is the output the same without drafts?"""

from __future__ import annotations

import json
import os
import secrets
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import typer

from mlx_gemma_mtp.cli import options
from mlx_gemma_mtp.errors import UsageError, VerificationError

if TYPE_CHECKING:
    from mlx_gemma_mtp import SamplingParams
    from mlx_gemma_mtp.check import Difference, Drafts
    from mlx_gemma_mtp.engine.pair import OpenPair


def exact_products() -> None:
    """Make the digits of a float32 product independent of how many rows it has.

    With TF32, which MLX uses if the GPU has it, they depend on it. Call this before the first
    product: MLX looks once.
    """
    os.environ["MLX_ENABLE_TF32"] = "0"


def with_drafts(params: SamplingParams) -> SamplingParams:
    """Return settings that can be checked: drafts in every round, and a seed to repeat it.

    Raises UsageError for 0 drafts.
    """
    from mlx_gemma_mtp.check import NUM_DRAFT_TOKENS

    asked = params.num_draft_tokens
    if asked == 0:
        raise UsageError("--check has nothing to compare: --num-draft-tokens must be at least 1")
    return replace(
        params,
        num_draft_tokens=NUM_DRAFT_TOKENS if asked == "auto" else asked,
        seed=secrets.randbits(32) if params.seed is None else params.seed,
    )


def as_json(difference: Difference | None, num_tokens: int) -> dict[str, Any]:
    """Return what `mgm generate --check --json` prints of a completion of num_tokens tokens."""
    found: dict[str, Any] = {"identical": difference is None, "tokens": num_tokens}
    if difference is not None:
        found |= {
            "position": difference.position,
            "before": difference.before,
            "with_drafts": asdict(difference.found),
            "without": asdict(difference.wanted),
        }
    return found


def report(difference: Difference | None, num_tokens: int) -> None:
    """Say on stderr that the output is the same. Raises VerificationError if it is not."""
    if difference is not None:
        before = json.dumps(difference.before, ensure_ascii=False)
        raise VerificationError(
            f"output differs: {difference.position} tokens match, then after {before} "
            f"{difference.found} with drafts, {difference.wanted} without"
        )
    print(f"the same {num_tokens} tokens with drafts and without", file=sys.stderr)


def check_batches(
    pair: OpenPair,
    prompts: Callable[[int], list[list[int]]],
    *,
    batches: Sequence[int],
    drafts: Sequence[Drafts],
    max_tokens: int,
    as_json: bool,
    keep: Callable[[dict[str, Any]], None],
) -> None:
    """Compare whole batches, print the report, and pass it to `keep` as JSON.

    Arguments are those of `check.compare`. After Ctrl-C, what was compared is reported, too. Raises
    VerificationError for a difference that rounding does not explain.
    """
    from mlx_gemma_mtp import Engine, check, show

    exact_products()
    report, ended = check.Report.of(pair), False
    size = max(batches)
    own = pair._replace(fingerprint=None)  # nothing that it learns here is kept
    with Engine(own, max_batch=size, max_queue=size) as engine, show.progress("items") as update:
        try:
            update("comparing", 0, None)
            for one in check.compare(
                engine, pair, prompts, batches=batches, drafts=drafts, max_tokens=max_tokens
            ):
                report.compared.append(one)
                update(one.settings, len(report.compared), None)
            report.complete = True
        except KeyboardInterrupt:
            ended = True
    found = report.to_json()
    keep(found)
    print(json.dumps(found, ensure_ascii=False) if as_json else report)
    if report.faults:
        raise VerificationError(report.summary)
    if ended:
        raise typer.Exit(options.INTERRUPTED)
