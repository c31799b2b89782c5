"""Which passes agree: their digests, and the ranges of those that are the same."""

import mlx.core as mx
import numpy as np

from mlx_gemma_mtp.engine.agreement import BATCHES, WIDTHS, runs
from mlx_gemma_mtp.engine.passes import digests
from mlx_gemma_mtp.engine.probe import POINTS


def test_bits_that_differ_have_other_digests(rng: np.random.Generator) -> None:
    for dtype in (mx.float32, mx.bfloat16):
        drawn = rng.standard_normal((4, 33))
        drawn[:, 1] = 1.3 * drawn[:, 0]  # never equal, as types of few bits may be
        x = mx.array(drawn).astype(dtype)
        assert digests(x).tolist() == digests(mx.array(x)).tolist()
        swapped = x[:, mx.array([1, 0, *range(2, 33)])]
        assert all((digests(x) != digests(swapped)).tolist())
        bits = x.view(mx.uint32 if dtype == mx.float32 else mx.uint16)
        flipped = mx.concatenate([bits[:, :7], bits[:, 7:8] ^ 1, bits[:, 8:]], axis=1).view(dtype)
        assert all((digests(x) != digests(flipped)).tolist())


def test_runs_are_the_largest_ranges_that_agree() -> None:
    one, other = {(0, 0): (1,)}, {(0, 0): (2,)}
    assert runs({}) == []
    assert runs({4: one, 1: one, 2: one}) == [(1, 4)]
    assert runs({1: one, 2: other, 3: other, 9: one}) == [(1, 1), (2, 3), (9, 9)]
    assert runs({1: one, 2: None, 3: one}) == [(1, 1), (3, 3)]
    # What only the wide ones have counts as well.
    assert runs({1: one, 2: {**one, (0, 1): (1,)}, 3: {**one, (0, 1): (2,)}}) == [(1, 2), (3, 3)]


def test_what_is_compared_has_both_ends() -> None:
    assert {1, 8} <= {*BATCHES}
    assert {*POINTS} <= {*WIDTHS}
