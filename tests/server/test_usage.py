"""Statistics in the words of other servers."""

from __future__ import annotations

from mlx_gemma_mtp.engine.results import Completion, Stats
from mlx_gemma_mtp.server.usage import metrics_of, usage_of


def completion(**stats: object) -> Completion:
    return Completion("", [1], "stop", Stats(**stats), 0)  # type: ignore[arg-type]


def test_the_histogram_counts_rounds_by_the_drafts_that_they_accepted() -> None:
    # Rounds that accepted 2, 1 and 0 of their drafts, and of another completion 1.
    first = completion(rounds=3, drafted_at=[3, 2], accepted_at=[2, 1])
    second = completion(rounds=1, drafted_at=[1], accepted_at=[1])
    found = metrics_of([first, second])["speculative_decoding"]
    assert found["acceptance_histogram"] == [1, 2, 1]
    assert found["mean_acceptance_length"] == 1 + 4 / 4
    assert found["draft_acceptance_rate"] == 4 / 6
    assert found["num_spec_tokens"] == 2


def test_the_prompt_of_several_completions_counts_once() -> None:
    both = [completion(prompt_tokens=10, reused_tokens=4, generated_tokens=n) for n in (2, 3)]
    usage = usage_of(both, 2)
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (
        10,
        5,
        15,
    )
    assert usage["prompt_tokens_details"] == {"cached_tokens": 4}
