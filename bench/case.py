"""From the turns of a setting to its case: medians, spreads, acceptance, what the bytes allow.

Plain arithmetic, without engines.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from statistics import median
from typing import Any

import numpy as np

from .floor import Floor
from .record import Case, NumDrafts, Spread
from .turn import Turn


def make_case(
    task: str,
    engine: str,
    num_draft_tokens: NumDrafts,
    prompt_tokens: list[int],
    turns: Sequence[Turn],
    plain: Sequence[Turn] | None,
    floor: Floor,
    bandwidth: float,
) -> Case:
    """The case of a setting. plain: the same turns of the same engine without drafts.

    prompt_tokens: of each row.
    """
    windows = [turn.window for turn in turns]
    rates = [window.rate for window in windows]
    found: dict[str, Any] = {}
    if plain is not None:
        found["speedup"] = Spread.ratio(rates, [turn.window.rate for turn in plain])
    if turns[0].stats:  # ours
        found |= _acceptance(turns, len(prompt_tokens), num_draft_tokens)
        tokens = sum(window.tokens for window in windows)
        num_rows = sum(len(turn.stats) for turn in turns)
        # Rows are as long as midway through the window.
        midway = [length + int(tokens / num_rows / 2) for length in prompt_tokens]
        num_bytes = floor.round_bytes(midway, found["drafted_per_round"])
        allowed = tokens / sum(window.rounds for window in windows) * bandwidth / num_bytes
        found |= {
            "allowed_round_gb": num_bytes / 1e9,
            "allowed_tokens_per_second": allowed,
            "allowed_share": median(rates) / allowed,
        }
    gaps = [gap * 1e3 for turn in turns for gap in turn.gaps]
    p50, p95 = np.percentile(gaps, [50, 95]).tolist()
    return Case(
        engine,
        task,
        len(prompt_tokens),
        num_draft_tokens,
        prompt_tokens,
        windows,
        tokens_per_second=Spread.of(rates),
        round_ms=Spread.of([window.seconds / window.rounds * 1e3 for window in windows]),
        prefill_tokens_per_second=Spread.of(
            [window.prefill_tokens / window.prefill_seconds for window in windows]
        ),
        first_token_ms=Spread.of([median(turn.first_tokens) * 1e3 for turn in turns]),
        token_gap_ms_p50=p50,
        token_gap_ms_p95=p95,
        token_gap_ms_max=max(gaps),
        peak_gb=max(turn.peak_bytes for turn in turns) / 1e9,
        **found,
    )


def _acceptance(
    turns: Sequence[Turn], num_rows: int, num_draft_tokens: NumDrafts
) -> dict[str, Any]:
    stats = [one for turn in turns for one in turn.stats]
    rounds, drafted = sum(one.rounds for one in stats), sum(one.drafted for one in stats)
    found: dict[str, Any] = {"drafted_per_round": drafted / rounds}
    if drafted:
        deepest = max(len(one.accepted_at) for one in stats)
        # Rounds that accepted at least 0, 1, 2, ... drafts.
        reached = [rounds]
        reached += [
            sum(sum(one.accepted_at[at : at + 1]) for one in stats) for at in range(deepest)
        ]
        rows = [stats[row::num_rows] for row in range(num_rows)]
        by_row = [sum(one.drafted for one in row) / sum(one.rounds for one in row) for row in rows]
        found["drafted_by_row"], found["tokens_per_pass"] = by_row, sum(by_row) + num_rows
        if copied := sum(one.copies_drafted for one in stats):
            found["copied_per_round"] = copied / rounds
            accepted = sum(one.copies_accepted for one in stats)
            found["copied_acceptance_rate"] = accepted / copied
        found["acceptance_rate"] = sum(reached[1:]) / drafted
        found["acceptance_length"] = sum(reached) / rounds
        found["accepted_histogram"] = [*(a - b for a, b in pairwise(reached)), reached[-1]]
        if num_draft_tokens != "auto":  # whose rounds don't try every position
            found["acceptance_by_position"] = [b / a for a, b in pairwise(reached) if a]
    return found
