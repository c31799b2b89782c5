"""From the turns of a setting to its case: medians, spreads, acceptance, what the bytes allow.

Plain arithmetic, without engines.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from mlx_gemma_mtp.engine.results import Stats

from .floor import Floor
from .record import OURS, Acceptance, Allowed, Case, NumDrafts, Spread
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
    )
    if plain is not None:
        gains = [rate / one.window.rate for rate, one in zip(rates, plain, strict=True)]
        case = replace(case, speedup=Spread.of(gains))
    if engine != OURS:
        return case
    stats = [one for turn in turns for one in turn.stats]
    drafted = sum(one.drafted for one in stats) / sum(one.rounds for one in stats)
    first_tokens = [statistics.median(turn.first_tokens) * 1e3 for turn in turns]
    return replace(
        case,
        first_token_ms=Spread.of(first_tokens),
        token_gap_ms=_gaps([gap * 1e3 for turn in turns for gap in turn.gaps]),
        drafted_per_round=drafted,
        # Real accepts are the same in every turn, because the output is.
        acceptance=_acceptance(stats if drawn else turns[0].stats, num_draft_tokens),
        peak_bytes=max(turn.peak_bytes for turn in turns),
        allowed=_allowed(case, len(stats), drafted, floor, bandwidth),
    )


def _gaps(gaps: list[float]) -> dict[str, float] | None:
    if not gaps:
        return None
    p50, p95 = np.percentile(gaps, [50, 95]).tolist()
    return {"mean": statistics.fmean(gaps), "p50": p50, "p95": p95, "max": max(gaps)}


def _acceptance(stats: Sequence[Stats], num_draft_tokens: NumDrafts) -> Acceptance | None:
    """None if nothing was drafted."""
    drafted = sum(one.drafted for one in stats)
    if not drafted:
        return None
    rounds, deepest = sum(one.rounds for one in stats), max(len(one.drafted_at) for one in stats)
    # Rounds that accepted at least 0, 1, 2, ... drafts.
    reached = [rounds, *(sum(sum(s.accepted_at[i : i + 1]) for s in stats) for i in range(deepest))]
    chances = [after / before for before, after in pairwise(reached) if before]
    return Acceptance(
        rate=sum(reached[1:]) / drafted,
        length=sum(reached) / rounds,
        # Rounds of auto don't try every position.
        by_position=None if num_draft_tokens == "auto" else chances,
        histogram=[*(a - b for a, b in pairwise(reached)), reached[-1]],
    )


def _allowed(
    case: Case, num_played: int, drafted: float, floor: Floor, bandwidth: float
) -> Allowed:
    """At the bandwidth of the run, with rows as long as midway through the window."""
    rounds = sum(window.rounds for window in case.windows)
    tokens = sum(window.tokens for window in case.windows)
    midway = [length + int(tokens / num_played / 2) for length in case.prompt_tokens]
    num_bytes = floor.round_bytes(midway, drafted)
    rate = tokens / rounds * bandwidth / num_bytes
    return Allowed(num_bytes, rate, case.tokens_per_second.median / rate)
