"""From the samples of a setting to its case: medians, spreads, acceptance, the floor's share.

Plain arithmetic: knows nothing of engines or of how samples are taken.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from mlx_gemma_mtp.engine.results import Stats

from .decode import Sample
from .floor import Floor
from .record import OURS, Case, Drafts, Ideal, Spread


def case(
    engine: str,
    task: str,
    drafts: Drafts,
    lengths: Sequence[int],
    samples: Sequence[Sample],
    *,
    plain: Sequence[Sample] | None,
    floor: Floor,
    bytes_per_second: float,
    accept: Sequence[float] | None,
) -> Case:
    """The case of a setting; one sample a turn. plain: the same turns of the same engine
    without drafts.

    lengths: tokens of each row's prompt. accept: the rates at which accepts were drawn.
    """
    windows = [sample.window for sample in samples]
    rates = [window.rate for window in windows]
    speedup = None
    if plain is not None:
        pairs = zip(rates, plain, strict=True)
        speedup = Spread.of([rate / without.window.rate for rate, without in pairs])
    found: dict[str, Any] = {}
    if engine == OURS:
        # Real drafts come true alike in every turn, for its texts are the same.
        found = _inside(samples) | _accepted(samples if accept else samples[:1], drafts)
        found["floor"] = _ideal(lengths, samples, found, floor, bytes_per_second)
    return Case(
        engine,
        task,
        len(lengths),
        drafts,
        list(lengths),
        [window._asdict() for window in windows],
        decode_tokens_per_second=Spread.of(rates),
        round_ms=Spread.of([window.seconds / window.rounds * 1e3 for window in windows]),
        prefill_tokens_per_second=Spread.of(
            [window.prefill_tokens / window.prefill_seconds for window in windows]
        ),
        speedup=speedup,
        accept=None if accept is None else list(accept),
        **found,
    )


def _inside(samples: Sequence[Sample]) -> dict[str, Any]:
    """What only our own engine tells."""
    stats = [one for sample in samples for one in sample.stats]
    gaps = np.array([gap for sample in samples for gap in sample.gaps]) * 1e3
    found: dict[str, Any] = {
        "first_token_ms": Spread.of(
            [statistics.median(sample.first_tokens) * 1e3 for sample in samples]
        ),
        "drafted_per_round": sum(_summed(stats, "drafted_at")) / sum(one.rounds for one in stats),
        "distinct_experts": None,
        "peak_bytes": max(sample.peak_bytes for sample in samples),
    }
    if len(gaps):
        p50, p95 = np.percentile(gaps, [50, 95])
        found["token_gap_ms"] = {
            "mean": float(gaps.mean()),
            "p50": float(p50),
            "p95": float(p95),
            "max": float(gaps.max()),
        }
    return found


def _accepted(samples: Sequence[Sample], drafts: Drafts) -> dict[str, Any]:
    """How many drafts came true; nothing where none were made."""
    stats = [one for sample in samples for one in sample.stats]
    drafted, accepted = _summed(stats, "drafted_at"), _summed(stats, "accepted_at")
    if not drafted:
        return {}
    rounds = sum(one.rounds for one in stats)
    reached = [rounds, *accepted]
    found: dict[str, Any] = {
        "acceptance_rate": sum(accepted) / sum(drafted),
        "acceptance_length": 1 + sum(accepted) / rounds,
        "accepted_histogram": [*(a - b for a, b in pairwise(reached)), accepted[-1]],
    }
    if drafts != "auto":  # whose rounds do not all try every position
        found["acceptance_by_position"] = [
            after / before for before, after in pairwise(reached) if before
        ]
    return found


def _ideal(
    lengths: Sequence[int],
    samples: Sequence[Sample],
    found: dict[str, Any],
    floor: Floor,
    bytes_per_second: float,
) -> Ideal:
    windows = [sample.window for sample in samples]
    rounds, tokens = sum(one.rounds for one in windows), sum(one.tokens for one in windows)
    waves = sum(len(s.stats) for s in samples) / len(lengths)
    midway = [length + int(tokens / waves / len(lengths) / 2) for length in lengths]
    num_bytes = floor.round_bytes(midway, found["drafted_per_round"], found["distinct_experts"])
    allowed = tokens / rounds * bytes_per_second / num_bytes
    reached = statistics.median(one.rate for one in windows)
    return Ideal(num_bytes, allowed, reached / allowed)


def _summed(stats: Sequence[Stats], name: str) -> list[int]:
    """Counts by position, of all rows."""
    counts: list[list[int]] = [getattr(one, name) for one in stats]
    longest = max(map(len, counts), default=0)
    return [sum(of[at] for of in counts if at < len(of)) for at in range(longest)]
