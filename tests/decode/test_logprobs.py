"""Log-probabilities and masks on the device, for any vocabulary, and what they cost."""

import mlx.core as mx
import numpy as np
import pytest

from helpers.control import packed
from helpers.graph import Graph
from mlx_gemma_mtp.decode.control import counted, counts_at, counts_of_prompts, is_allowed
from mlx_gemma_mtp.decode.logprobs import logprobs

GEMMAS = 262_144  # tokens of every published Gemma 4
SOFTCAP = 30.0


@pytest.mark.parametrize("size", [97, 2048, GEMMAS])
@pytest.mark.parametrize("spread", [3.0, 40.0])
def test_the_most_likely_tokens_are_sorted_and_ties_go_to_lower_ids(
    size: int, spread: float, rng: np.random.Generator
) -> None:
    raw = np.round(rng.standard_normal((2, 3, size)) * spread)
    raw[0, 0, :20] = raw[0, 0].max() + np.arange(20) // 8  # more than a few tie at the top
    logits = mx.array(raw).astype(mx.bfloat16)
    chosen = mx.array(rng.integers(0, size, (2, 3)), mx.int32)
    found = logprobs(logits, chosen, 7, SOFTCAP)
    exact = np.array(logits.astype(mx.float32), np.float64)
    capped = np.array(mx.tanh(mx.array(exact, mx.float32) / SOFTCAP) * SOFTCAP, np.float64)
    expected = capped - np.log(np.exp(capped).sum(-1, keepdims=True))
    for row, at in np.ndindex(2, 3):
        order = np.lexsort((np.arange(size), -capped[row, at]))[:7]
        assert found.top_ids[row, at].tolist()[::-1] == order.tolist()
        best = expected[row, at, order]
        assert found.top[row, at].tolist()[::-1] == pytest.approx(best, abs=1e-4)
        own = expected[row, at, chosen[row, at].item()]
        assert found.chosen[row, at].item() == pytest.approx(own, abs=1e-4)


def test_log_probabilities_take_few_launches_and_no_long_sort() -> None:
    def found(logits: mx.array, chosen: mx.array) -> list[mx.array]:
        return list(logprobs(logits, chosen, 20, SOFTCAP))

    logits, chosen = mx.zeros((4, 4, GEMMAS), mx.bfloat16), mx.zeros((4, 4), mx.int32)
    launches = Graph(found, logits, chosen).launches()
    assert sum(one.launches for one in launches) <= 18
    assert sum(one.nbytes for one in launches) / 16 < 17 * GEMMAS  # float32 is written and read


@pytest.mark.parametrize("size", [64, 97])
def test_a_mask_allows_the_tokens_of_its_bits(size: int, rng: np.random.Generator) -> None:
    may = rng.random((2, 3, size)) < 0.5
    masks = mx.array(np.stack([[packed(one) for one in row] for row in may]))
    assert (np.array(is_allowed(masks, size, None)) == may).all()
    ids = rng.integers(0, size, (2, 3, 10))
    expected = np.take_along_axis(may, ids, axis=-1)
    assert (np.array(is_allowed(masks, size, mx.array(ids, mx.int32))) == expected).all()


def test_counts_hold_the_prompt_the_output_and_the_drafts_before_a_position() -> None:
    counts = counted(counts_of_prompts([[4, 4, 2], []], 6), mx.array([[4], [5]]))
    assert counts.tolist() == [[0, 0, 1, 0, 3, 0], [0, 0, 0, 0, 0, 2]]
    drafts, rows, positions = mx.array([[2, 2], [0, 1]]), mx.array([0, 0, 1]), mx.array([0, 2, 1])
    assert counts_at(counts, drafts, rows, positions).tolist() == [
        [0, 0, 1, 0, 3, 0],
        [0, 0, 5, 0, 3, 0],
        [2, 0, 0, 0, 0, 2],
    ]
