"""`mgm bench --check`: is the output of whole batches the same without drafts?"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import typer

from mlx_gemma_mtp.errors import INTERRUPTED, VerificationError

if TYPE_CHECKING:
    from mlx_gemma_mtp.bench.record import Plan
    from mlx_gemma_mtp.decode.division import Exact
    from mlx_gemma_mtp.engine.pair import OpenPair


def check_batches(
    pair: OpenPair,
    exact: Exact,
    prompts: Callable[[int], list[list[int]]],
    plan: Plan,
    *,
    as_json: bool,
    keep: Callable[[dict[str, Any]], None],
) -> None:
    """Compare whole batches, print the report, and pass it to `keep` as JSON.

    Ctrl-C ends it with what was compared so far. Raises VerificationError for a difference that
    rounding does not explain.
    """
    from mlx_gemma_mtp import Engine, check, show
    from mlx_gemma_mtp.progress import progress

    report, size = check.Report.of(pair), max(plan.batches)
    own = pair._replace(fingerprint=None)  # nothing that it learns here is kept
    with (
        Engine(own, max_batch=size, max_queue=size, exact=exact) as engine,
        progress("items") as update,
    ):
        for note in {*engine.notes} - {*pair.notes}:
            show.say(note)
        asked = plan.batches, plan.num_draft_tokens, plan.tokens
        with suppress(KeyboardInterrupt):
            update("comparing", 0, None)
            for one in check.compare(engine, pair, prompts, *asked):
                report.compared.append(one)
                update(one.settings, len(report.compared), None)
            report.complete = True
    found = report.to_json()
    keep(found)
    if as_json:
        print(json.dumps(found, ensure_ascii=False))
    else:
        show.say(str(report), sys.stdout)
    if report.faults:
        raise VerificationError(report.summary)
    if not report.complete:
        raise typer.Exit(INTERRUPTED)
