"""Timings of a busy machine must not rule plain decoding out once the machine is free again.

Other apps delay short rounds the most, so that drafts look cheap. Machines are simulated.
"""

import numpy as np
import pytest

from helpers.gains import TABLE_ERROR
from helpers.machines import Machine, Rng, mac, machine, play, steady
from mlx_gemma_mtp.decode.depth import Depth
from mlx_gemma_mtp.decode.division import Shape

pytestmark = pytest.mark.slow

PINNED = 60  # timings of each number of drafts on a busy machine
RECOVERY = 100  # rounds until it must be known that the machine is free

MACHINES = {
    "mixture": (machine("mixture"), "0.2"),
    "M1 Max": (mac("M1 Max", "31B", 1), "0.2"),
    "M5 Max, 4 rows": (mac("M5 Max", "26B-A4B", 4), "0.5"),
}  # plain decoding is the best on all of them


def pinned_while_busy(rng: Rng, depth: Depth, one: Machine) -> None:
    """Report rounds without drafts and with 3, as a busy machine plays them."""
    waiting = 1.3 * one.seconds(0, one.batch, 0)
    for drafts in (0, 3):
        tokens = one.batch * (drafts + 1)
        shape = Shape(one.batch, drafts, drafts + 1, tokens, tokens)
        seconds = 1.5 * one.seconds(0, tokens, drafts) + waiting
        for noise in np.maximum(rng.normal(1, 0.2, PINNED), 0.5):
            depth.round_took(shape, seconds * float(noise))


@pytest.mark.parametrize("free_before", [0, 200])
@pytest.mark.parametrize("with_table", [False, True])
@pytest.mark.parametrize("name", MACHINES)
def test_plain_decoding_is_found_again_after_busy_rounds(
    rng: Rng, name: str, with_table: bool, free_before: int
) -> None:
    one, text = MACHINES[name]
    texts = [text] * one.batch

    def behind() -> float:
        depth = Depth(table=one.probed(rng, TABLE_ERROR) if with_table else None)
        if free_before:
            play(rng, depth, one, steady(texts, free_before))
        pinned_while_busy(rng, depth, one)
        return play(rng, depth, one, steady(texts, 300)).behind_plain(RECOVERY)

    assert np.median([behind() for _ in range(5)]) < 0.05
