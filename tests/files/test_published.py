"""The table of published models: its figures are those of the shapes, and how names are read."""

import pytest
from mlx_gemma_mtp.bench import synthetic

from mlx_gemma_mtp import memory
from mlx_gemma_mtp.files.published import CONTEXT, SIZES, Size, best_fit, size_of, size_within

GB = 10**9


@pytest.mark.parametrize("size", SIZES, ids=lambda size: size.kind)
def test_the_figures_are_those_of_the_published_shapes(size: Size) -> None:
    shape = synthetic.settings(size.kind)[0]
    assert size.hidden_size == shape["hidden_size"]
    assert size.num_layers == shape["num_hidden_layers"]
    assert size.is_mixture == bool(shape.get("enable_moe_block"))
    for bits in (16, 8, 4):
        made = synthetic.random_pair(size.kind, bits=None if bits == 16 else bits)
        pair = memory.Pair.of(*made)
        room = pair.needs(CONTEXT, 1) - pair.target_bytes - pair.drafter_bytes
        assert size.weights[bits] == pytest.approx(pair.target_bytes, rel=0.01)
        assert size.room == pytest.approx(room, rel=0.02)
        if bits == 16:
            assert size.drafter_bytes == pytest.approx(pair.drafter_bytes, rel=0.01)
    assert size.weights[8] < size.needs(8) < size.needs(12) < size.needs(16)


SPELLED = {
    "E2B": ("e2b", "E2B", "gemma-4-e2b", "gemma4:e2b", "Gemma 4 E2B"),
    "E4B": ("e4b", "E4B-it", "gemma4:e4b", "gemma-4-E4B-it", " e4b "),
    "12B": ("12b", "gemma4-12b", "gemma-4-12B-it"),
    "26B-A4B": ("26b", "26B-A4B", "26b_a4b", "26ba4b", "gemma4:26b", "gemma-4-26b-a4b-it"),
    "31B": ("31b", "31B", "gemma_4_31b"),
}


def test_a_size_is_understood_however_it_is_spelled() -> None:
    for size in SIZES:
        for spelled in (*SPELLED[size.kind], size.short, size.kind):
            assert size_of(spelled) == size, spelled
        for name in (size.original, size.quantized(4), f"unsloth/{size.kind}-UD-MLX-4bit"):
            assert size_of(name) is None
            assert size_within(name) == size, name
    for other in ("", "4b", "27b", "e4", "e4b-8bit", "gemma-3-12b", "demo", "gemma4", "a/e4b"):
        assert size_of(other) is None, other
    assert size_within("google/gemma-3-112b") is None


def test_the_best_fit_is_the_most_capable_size_that_fits() -> None:
    found = {}
    for available in (1, 5.7, 11.4, 17.1, 29, 70):  # GB; from the second, as Macs of 8 GB on have
        size, bits = best_fit(int(available * GB))
        found[available] = (size.short, bits)
        assert size.needs(bits) <= available * GB or available == 1
    assert found == {
        1: ("e2b", 4),
        5.7: ("e2b", 8),
        11.4: ("12b", 4),
        17.1: ("26b", 4),
        29: ("26b", 8),
        70: ("26b", 8),
    }
