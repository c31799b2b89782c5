"""From the turns of a setting to its case: medians, spreads, acceptance, what the bytes allow.

Plain arithmetic, without engines.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np

from mlx_gemma_mtp.engine.results import Stats

from .floor import Floor
from .record import Case, NumDrafts, Spread
from .turn import Turn


def make_case(
    engine: str,
    task: str,
    num_draft_tokens: NumDrafts,
    prompt_tokens: list[int],
    turns: Sequence[Turn],
    *,
    plain: Sequence[Turn] | None,
    floor: Floor,
    bandwidth: float,
    drawn: bool,
) -> Case:
    """The case of a setting. plain: the same turns of the same engine without drafts.

    prompt_tokens: of each row. drawn: accepts are drawn, so that they differ from turn to turn.
    """
    windows = [turn.window for turn in turns]
    rates = [window.rate for window in windows]
    prefill_rates = [window.prefill_tokens / window.prefill_seconds for window in windows]
    case = Case(
        engine,
        task,
        len(prompt_tokens),
        num_draft_tokens,
        prompt_tokens,
        windows,
        tokens_per_second=Spread.of(rates),
        round_ms=Spread.of([window.seconds / window.rounds * 1e3 for window in windows]),
        prefill_tokens_per_second=Spread.of(prefill_rates),
        first_token_ms=Spread.of([statistics.median(turn.first_tokens) * 1e3 for turn in turns]),
        peak_gb=max(turn.peak_bytes for turn in turns) / 1e9,
        **_gaps([gap * 1e3 for turn in turns for gap in turn.gaps]),
    )
    if plain is not None:
        gains = [rate / one.window.rate for rate, one in zip(rates, plain, strict=True)]
        case = replace(case, speedup=Spread.of(gains))
    stats = [one for turn in turns for one in turn.stats]
    if not stats:
        return case
    # Real accepts are the same in every turn, because the output is.
    case = replace(case, **_acceptance(stats if drawn else turns[0].stats, num_draft_tokens))
    drafted = sum(one.drafted for one in stats) / sum(one.rounds for one in stats)
    allowed = _allowed(case, len(stats), drafted, floor, bandwidth)
    return replace(case, drafted_per_round=drafted, **allowed)


def _gaps(gaps: list[float]) -> dict[str, Any]:
    p50, p95 = np.percentile(gaps, [50, 95]).tolist()
    return {"token_gap_ms_p50": p50, "token_gap_ms_p95": p95, "token_gap_ms_max": max(gaps)}


def _acceptance(stats: Sequence[Stats], num_draft_tokens: NumDrafts) -> dict[str, Any]:
    """Nothing if nothing was drafted."""
    drafted = sum(one.drafted for one in stats)
    if not drafted:
        return {}
    deepest = max(len(one.accepted_at) for one in stats)
    # Rounds that accepted at least 0, 1, 2, ... drafts.
    reached = [sum(one.rounds for one in stats)]
    reached += [sum(sum(one.accepted_at[at : at + 1]) for one in stats) for at in range(deepest)]
    found: dict[str, Any] = {
        "acceptance_rate": sum(reached[1:]) / drafted,
        "acceptance_length": sum(reached) / reached[0],
        "accepted_histogram": [*(a - b for a, b in pairwise(reached)), reached[-1]],
    }
    if num_draft_tokens != "auto":  # whose rounds don't try every position
        found["acceptance_by_position"] = [b / a for a, b in pairwise(reached) if a]
    return found


def _allowed(
    case: Case, num_played: int, drafted: float, floor: Floor, bandwidth: float
) -> dict[str, Any]:
    """By the bytes of a round at this bandwidth, with rows as long as midway through the window."""
    rounds = sum(window.rounds for window in case.windows)
    tokens = sum(window.tokens for window in case.windows)
    midway = [length + int(tokens / num_played / 2) for length in case.prompt_tokens]
    num_bytes = floor.round_bytes(midway, drafted)
    rate = tokens / rounds * bandwidth / num_bytes
    return {
        "allowed_round_gb": num_bytes / 1e9,
        "allowed_tokens_per_second": rate,
        "allowed_share": case.tokens_per_second.median / rate,
    }
