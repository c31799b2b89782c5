"""A round never waits for the device, and the next one starts before the last is read."""

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from helpers.checkpoints import VOCAB, PairPaths
from helpers.rounds import (
    FILTERED,
    GREEDY,
    SAMPLED,
    Models,
    Start,
    load_models,
    start,
    watched_engine,
)
from mlx_gemma_mtp import SamplingParams
from mlx_gemma_mtp.decode.round import Newest, PlayRound, Round, agreeing_prefix, speculate
from mlx_gemma_mtp.decode.sampling import RowSettings, row_settings
from mlx_gemma_mtp.model.cache import Buffers, KVCache

SOME_KIND = "E2B"  # for what does not depend on the kind


@pytest.fixture(scope="module")
def models(pair: PairPaths) -> Models:
    return load_models(pair)


@pytest.fixture(scope="module")
def some_models(pairs: dict[str, PairPaths]) -> Models:
    return load_models(pairs[SOME_KIND])


def trace(
    models: Models, at: Start, settings: RowSettings, num_draft_tokens: int, **functions: Any
) -> None:
    """Run a round on arrays without values; anything that asks for one raises."""
    given = {name: part for name, part in settings._asdict().items() if isinstance(part, mx.array)}

    def play_round(
        given: dict[str, mx.array], buffers: Buffers, newest: Newest, max_accepted: mx.array
    ) -> Any:
        cache = KVCache(at.cache.config, buffers)
        own = settings._replace(**given)
        rest = (newest, own, max_accepted, num_draft_tokens)
        return speculate(*models, cache, *rest, **functions), cache.buffers

    most = mx.full((len(at.newest.token),), num_draft_tokens, mx.int32)
    mx.compile(play_round)(given, at.cache.buffers, at.newest, most)


@pytest.fixture
def nobody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """`mx.synchronize` needs no array, so tracing would not notice it."""

    def synchronize(*_: object) -> None:
        raise ValueError("waited for the device during graph transformations")

    monkeypatch.setattr(mx, "synchronize", synchronize)


@pytest.mark.usefixtures("nobody_waits")
@pytest.mark.parametrize("num_draft_tokens", [0, 3])
def test_a_round_makes_no_host_read(
    models: Models, rng: np.random.Generator, num_draft_tokens: int
) -> None:
    at = start(models.target, rng, [40, 0, 25])
    suppress = mx.where(mx.arange(VOCAB) < 5, -mx.inf, 0.0)
    for rows in ([GREEDY] * 3, [SAMPLED, None, SAMPLED], [GREEDY, None, FILTERED]):
        trace(models, at, row_settings(rows), num_draft_tokens)
        trace(models, at, row_settings(rows, suppress), num_draft_tokens)


READS: dict[str, Callable[[mx.array], object]] = {
    "item": lambda x: x.sum().item(),
    "tolist": lambda x: x.tolist(),
    "int": lambda x: int(x.sum()),
    "bool": lambda x: bool(x.any()),
    "numpy": lambda x: np.array(x),
    "print": lambda x: str(x),
    "eval": lambda x: mx.eval(x),
    "async_eval": lambda x: mx.async_eval(x),
    "synchronize": lambda x: mx.synchronize(),
}


@pytest.mark.usefixtures("nobody_waits")
@pytest.mark.parametrize("read", READS)
def test_a_host_read_in_a_round_would_be_noticed(
    some_models: Models, rng: np.random.Generator, read: str
) -> None:
    def reading(drafts: mx.array, chosen: mx.array) -> mx.array:
        READS[read](chosen)
        return agreeing_prefix(drafts, chosen)

    at = start(some_models.target, rng, [20])
    with pytest.raises((ValueError, RuntimeError), match="transformation"):
        trace(some_models, at, row_settings([GREEDY]), 3, agree=reading)


def test_the_next_round_is_dispatched_before_the_last_is_read(
    pairs: dict[str, PairPaths], monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[tuple[str, int]] = []
    rounds: list[Round] = []  # kept, so that no other array gets the identity of one of theirs

    def number(array: mx.array) -> int:
        found = [i for i, r in enumerate(rounds) if array is r.tokens or array is r.accepted]
        return found[0] if found else -1

    def record_play(play_round: PlayRound, *arguments: Any) -> Round:
        rounds.append(play_round(*arguments))
        events.append(("play", len(rounds) - 1))
        return rounds[-1]

    def recorded(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def record(*arguments: Any) -> Any:
            if rounds:  # prefill is over
                which = arguments[0] if name != "dispatch" else arguments[0].tokens
                events.append((name, number(which) if isinstance(which, mx.array) else -1))
            return call(*arguments)

        return record

    with watched_engine(pairs[SOME_KIND], record_play) as engine:
        monkeypatch.setattr(mx, "async_eval", recorded("dispatch", mx.async_eval))
        monkeypatch.setattr(mx, "eval", recorded("eval", mx.eval))
        for reader in ("tolist", "item", "__array__", "__int__", "__bool__"):
            monkeypatch.setattr(mx.array, reader, recorded("read", getattr(mx.array, reader)))
        settings = SamplingParams(max_tokens=12, temperature=0, num_draft_tokens=0, ignore_eos=True)
        engine.generate([5, 6, 7], settings)
        monkeypatch.undo()

    last = len(rounds) - 1
    assert last == 10
    expected = [("play", 0), ("dispatch", 0)]
    for i in range(1, last + 1):
        expected += [("play", i), ("dispatch", i), ("read", i - 1), ("read", i - 1)]
    expected += [("read", last), ("read", last)]
    assert events == expected
