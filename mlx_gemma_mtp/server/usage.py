"""What completions took, in the words of other servers. Knows nothing of HTTP."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from mlx_gemma_mtp.engine.results import Completion, Stats


def usage_of(completions: Sequence[Completion], n: int) -> dict[str, Any]:
    """Return OpenAI's usage; of the n completions of one prompt, its tokens count once."""
    firsts = [one.stats for one in completions[::n]]
    prompt = sum(one.prompt_tokens for one in firsts)
    generated = sum(one.stats.generated_tokens for one in completions)
    thought = sum(one.stats.thought_tokens for one in completions)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": generated,
        "total_tokens": prompt + generated,
        "prompt_tokens_details": {"cached_tokens": sum(one.reused_tokens for one in firsts)},
        "completion_tokens_details": {"reasoning_tokens": thought},
    }


def timings_of(stats: Stats) -> dict[str, Any]:
    """Return llama.cpp's timings of a completion. Milliseconds, and tokens per second."""
    read = stats.prompt_tokens - stats.reused_tokens
    reading, decoding = stats.first_token_seconds, stats.decode_seconds
    return {
        "cache_n": stats.reused_tokens,
        "prompt_n": read,
        "prompt_ms": 1000 * reading,
        "prompt_per_second": read / reading if reading else 0.0,
        "predicted_n": stats.generated_tokens,
        "predicted_ms": 1000 * decoding,
        "predicted_per_second": stats.decode_tokens_per_second or 0.0,
        "draft_n": stats.drafted,
        "draft_n_accepted": stats.accepted,
    }


class Timings:
    """llama.cpp's timings of completions that still run: the tokens so far, and their speed."""

    def __init__(self) -> None:
        self._started: float | None = None
        self._first = self._count = 0

    def after(self, tokens: int) -> dict[str, Any]:
        """Return them after this many more tokens. The first ones are not part of the speed."""
        now = time.perf_counter()
        self._count += tokens
        if self._started is None:
            self._started, self._first = now, tokens
        seconds = now - self._started
        return {
            "predicted_n": self._count,
            "predicted_ms": 1000 * seconds,
            "predicted_per_second": (self._count - self._first) / seconds if seconds else 0.0,
        }


def metrics_of(completions: Sequence[Completion]) -> dict[str, Any]:
    """Return vLLM's statistics of drafts, of all completions.

    acceptance_histogram[j] counts the rounds that accepted exactly j drafts.
    """
    each = [one.stats for one in completions]
    rounds = sum(one.rounds for one in each)
    drafted = sum(one.drafted for one in each)
    accepted = sum(one.accepted for one in each)
    longest = max((len(one.drafted_at) for one in each), default=0)
    at_least = np.zeros(longest + 2, dtype=int)
    at_least[0] = rounds
    for one in each:
        at_least[1 : len(one.accepted_at) + 1] += np.array(one.accepted_at, dtype=int)
    return {
        "speculative_decoding": {
            "mean_acceptance_length": 1 + accepted / rounds if rounds else None,
            "draft_acceptance_rate": accepted / drafted if drafted else None,
            "acceptance_histogram": [int(a - b) for a, b in pairwise(at_least)],
            "num_spec_steps": rounds,
            "num_accepted_draft_tokens": accepted,
            "num_draft_tokens": drafted,
            "num_spec_tokens": longest,
        }
    }


def statistics_of(completions: Sequence[Completion]) -> dict[str, Any]:
    """Return the fields of an answer that say what it took, besides its protocol's own usage."""
    found = {"metrics": metrics_of(completions), "output_hash": hash_of(completions)}
    if len(completions) == 1:
        found["timings"] = timings_of(completions[0].stats)
    return found


def hash_of(completions: Sequence[Completion]) -> str:
    """Return a short hash of the tokens of outputs, to see whether two are the same."""
    digest = hashlib.sha256()
    for one in completions:
        digest.update(np.array([len(one.tokens), *one.tokens], dtype="<u4").tobytes())
    return digest.hexdigest()[:16]
