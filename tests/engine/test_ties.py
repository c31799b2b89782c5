"""Rounds whose choices are not sure are played again, with the outputs of the whole vocabulary."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest

from helpers.draws import params
from helpers.fake_target import VOCAB, fake_engine
from helpers.forced import Row
from helpers.plain import again
from helpers.tying import TyingTarget, guess
from mlx_gemma_mtp import Completion
from mlx_gemma_mtp.decode.player import RoundPlayer, round_player
from mlx_gemma_mtp.decode.round import Round
from mlx_gemma_mtp.decode.sampling import RowSettings
from mlx_gemma_mtp.memory import Limits
from mlx_gemma_mtp.model.cache import KVCache

LIMITS = Limits(slot_step=1, max_draft_tokens=7)
SETTINGS = [(1, 5, 1), (1, 64, 0.95), (0, 0, 1), (2, 5, 0.8), (0.5, 1, 1), (1, 5, 0.5)]
NUM_TOKENS = 24


def generated(
    target: TyingTarget,
    rows: Sequence[Row],
    drafts: Sequence[int],
    *,
    whole: bool = False,
    **options: Any,
) -> tuple[list[Completion], list[bool]]:
    """The rows side by side, and of each round whether it chose among the whole vocabulary.

    whole: choose among it in every round.
    """
    rounds = list[bool]()

    def player(*models: Any) -> RoundPlayer:
        halves = round_player(*models, draft=guess)  # type: ignore[arg-type]

        def verify(cache: KVCache, newest: Any, settings: RowSettings, *others: Any) -> Round:
            settings = settings._replace(full=settings.full or whole)
            rounds.append(settings.full)
            return halves.verify(cache, newest, settings, *others)

        return halves._replace(verify=verify)

    with fake_engine(target, player=player, **options) as engine:
        return again(engine, rows, NUM_TOKENS, drafts), rounds


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize(("batch", "drafts"), [(1, 0), (1, 3), (8, 0), (8, 3), (8, None)])
def test_ties_change_no_output_and_no_count(
    batch: int, drafts: int | None, overlap: bool, rng: np.random.Generator
) -> None:
    target = TyingTarget(rng)
    rows = [
        Row(
            rng.integers(0, VOCAB, rng.integers(1, 40)).tolist(),
            replace(params(*SETTINGS[n % 6], int(rng.integers(2**32))), ignore_eos=True),
            [],
        )
        for n in range(batch)
    ]
    alone = partial(generated, whole=True, max_batch=1, limits=LIMITS)
    expected, _ = alone(target, rows, [0] * batch)
    # Some rows with drafts and some without, if the number is open.
    each = [drafts if drafts is not None else (0, 1, 5, 7)[n % 4] for n in range(batch)]
    limits = replace(LIMITS, overlap=overlap)
    found, rounds = generated(target, rows, each, limits=limits)
    for one, other, most in zip(found, expected, each, strict=True):
        assert one.tokens == other.tokens
        stats = one.stats
        # A round that is played again counts once.
        assert stats.drafted_at == [stats.rounds] * (most if stats.rounds else 0)
        # The last round may have been cut by one token.
        assert 0 <= stats.rounds + stats.accepted + 1 - NUM_TOKENS <= 1
    assert any(rounds)
    assert not all(rounds)
    # Per token one that was not sure, one dispatched before that was known, and its own, at most.
    assert len(rounds) <= 3 * batch * NUM_TOKENS
